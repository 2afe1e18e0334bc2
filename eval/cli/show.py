"""The verb `crossover show`; heavy packages are imported when it runs."""

from pathlib import Path

import click

from crossover.eval.cli.options import store_option
from crossover.eval.cli.output import echo


@click.command()
@click.argument("cell")
@click.argument("example", required=False)
@store_option
def show(cell: str, example: str | None, store: Path) -> None:
    """Show one test example as the model saw it: messages, passages, raw answer, parsed answer, gold and score.

    CELL is its key, or the start of it, as `crossover ls runs` shows it, or `winner`. EXAMPLE is an id of the test
    data; without it, the first example that the cell did not get right.

    Example: crossover show winner

    Example: crossover show winner t-17
    """
    from crossover.eval.run.show import question_lines
    from crossover.eval.run.winner import cell_named

    for line in question_lines(store, cell_named(store, cell), example):
        echo(line)
