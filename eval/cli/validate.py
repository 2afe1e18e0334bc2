"""The verb `crossover validate`; heavy packages are imported when the experiment file itself is in order."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import EXIT_CANNOT_RUN, CellFlags, experiment_options, file_of
from crossover.eval.cli.output import echo, say

if TYPE_CHECKING:
    from crossover.eval.experiment.spec import Experiment
    from crossover.programs.records import Problem

FILE_FIRST = "; data and methods are checked once the file is right"


@click.command()
@experiment_options
def validate(cells: CellFlags) -> int:
    """Check all that `run` would stumble over, and report every fault; spends nothing, loads no weights.

    Faults of FILE itself come first and alone; then data, models and methods are checked together. Without FILE:
    crossover.yaml of this folder, else the quickstart.

    Example: crossover validate

    Example: crossover validate intents.yaml
    """
    from crossover.eval.experiment.read import read_experiment

    logging.getLogger("dspy").setLevel(logging.ERROR)
    experiment, problems = read_experiment(*file_of(cells))
    if experiment is not None:
        problems += _beyond_the_file(experiment)
    for p in problems:
        say(p)
    errors = sum(p.level == "error" for p in problems)
    warnings = sum(p.level == "warning" for p in problems)
    counts = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    echo(f"{counts}{FILE_FIRST if experiment is None else ''}")
    return EXIT_CANNOT_RUN if errors else 0


def _beyond_the_file(experiment: "Experiment") -> "Sequence[Problem]":
    """Return the problems of data, weights, keys and methods, and print each sound task with its sizes."""
    from crossover.eval.experiment.spec import plan
    from crossover.eval.run.loading import check_cells, check_weights, load_tasks

    tasks, problems = load_tasks(experiment.tasks)
    problems += check_weights(experiment)
    sound = not any(p.level == "error" for p in problems)
    problems += check_cells(experiment, tasks, plan(experiment) if sound else ())
    for name, task in tasks.items():
        sizes = ", ".join(f"{k} {len(v)}" for k, v in task.splits().items())
        corpus = f", corpus {len(task.corpus)}" if task.corpus else ""
        metric = task.metric_name.partition("@")[0]
        echo(f"{name}: {sizes}{corpus}, metric {metric}, split {task.split_sha256()[:12]}")
    return problems
