"""The verb `crossover validate`; heavy packages are imported when it runs."""

import logging

import click

from crossover.eval.cli.options import EXIT_CANNOT_RUN, CellFlags, experiment_options, file_of
from crossover.eval.cli.output import echo, say


@click.command()
@experiment_options
def validate(cells: CellFlags) -> int:
    """Check all that `run` would stumble over, and report every fault at once; spends nothing, loads no weights.

    Without FILE: crossover.yaml of this folder, else the quickstart.

    Example: crossover validate

    Example: crossover validate intents.yaml
    """
    from crossover.eval.experiment.read import read_partly
    from crossover.eval.experiment.spec import plan as cells_of
    from crossover.eval.run.loading import check_cells, check_weights, load_tasks

    logging.getLogger("dspy").setLevel(logging.ERROR)
    experiment, problems = read_partly(*file_of(cells))
    tasks, found = load_tasks(experiment.tasks)
    # Reading the experiment file has already reported missing files, with their line.
    problems += [p for p in found if not p.what.endswith("no such file")]
    problems += check_weights(experiment)
    sound = not any(p.level == "error" for p in problems)
    problems += check_cells(experiment, tasks, cells_of(experiment) if sound else ())
    for name, task in tasks.items():
        sizes = ", ".join(f"{k} {len(v)}" for k, v in task.splits().items())
        corpus = f", corpus {len(task.corpus)}" if task.corpus else ""
        metric = task.metric_name.partition("@")[0]
        echo(f"{name}: {sizes}{corpus}, metric {metric}, split {task.split_sha256()[:12]}")
    for p in problems:
        say(p)
    errors = sum(p.level == "error" for p in problems)
    warnings = sum(p.level == "warning" for p in problems)
    echo(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return EXIT_CANNOT_RUN if errors else 0
