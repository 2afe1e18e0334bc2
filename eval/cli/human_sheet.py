"""The verb `human-sheet`: people grade a sample of the answers that a model judged."""

from pathlib import Path

import click

from crossover.eval.cli.options import CellFlags, check_readable, experiment_of, experiment_options, store_option
from crossover.eval.cli.output import echo


@click.command("human-sheet")
@experiment_options
@click.option("-n", "--examples", type=click.IntRange(2), default=60, show_default=True, help="Examples to draw.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the sheet here.")
@click.option("--import", "filled", type=click.Path(path_type=Path), help="Read the filled sheet back.")
@store_option
def human_sheet(cells: CellFlags, store: Path, examples: int, output: Path | None, filled: Path | None) -> int:
    """Export a sample of the judged answers for people to grade, or import their grades.

    The sheet shows question, reference and answer, and hides the arm. Fill the last columns with no, partly or
    yes; a judged score is then shown with its agreement with people, and as people would have given it.

    Example: crossover human-sheet intents.yaml --import sheet.csv

    Example: crossover human-sheet intents.yaml -n 60 -o sheet.csv
    """
    if (output is None) == (filled is None):
        raise click.UsageError("give either -o SHEET.csv to export or --import SHEET.csv")
    if filled is not None:
        check_readable(filled)
    experiment = experiment_of(cells)
    from crossover.eval.analysis.human import import_sheet, sheet
    from crossover.eval.run.loading import finished
    from crossover.models.errors import UserError
    from crossover.models.jsonl import write_text
    from crossover.programs.spec import criteria_of

    judges = [(t.name, t.judge) for t in experiment.tasks if t.judge is not None]
    if len(judges) != 1:
        raise UserError(f"{len(judges)} tasks are judged by a model; leave one, with `metric: {{judge: …}}`")
    (name, judge), found = judges[0], finished(experiment, store=store)
    results = [r for r in found.results if r.cell.task == name]
    criteria, task = list(criteria_of(judge)), found.tasks[name]
    if output is not None:
        text = sheet(task, results, criteria, examples)
        write_text(output, text)
        echo(f"{output}: fill {', '.join(criteria)} with no, partly or yes; then --import {output}")
        return 0
    assert filled is not None
    count = import_sheet(store, filled, task, results, criteria)
    echo(f"{count} graded answers are kept with the runs; `crossover report` shows what they change")
    return 0
