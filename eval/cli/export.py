"""The verb `crossover export`; heavy packages are imported when it runs."""

from pathlib import Path

import click

from crossover.eval.cli.options import store_option
from crossover.eval.cli.output import echo


@click.command()
@click.argument("cell")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Of the merged weights.")
@store_option
def export(cell: str, folder: Path, dtype: str, store: Path) -> None:
    """Write a finished cell for other tools: adapter, merged weights, chat template, DSPy program, model card.

    CELL is its key, or the start of it, as `crossover ls runs` shows it, or `winner` (`winner.TASK` where the last run
    had several tasks). DIR must be empty or absent.

    Example: crossover export winner ./merged --dtype bfloat16

    Example: crossover export winner ./winner
    """
    from crossover.eval.run.winner import cell_named
    from crossover.eval.tracking.export import export_cell

    for line in export_cell(store, cell_named(store, cell), folder, dtype=dtype):
        echo(line)
