"""Print text that may hold names and data of any origin."""

import sys
from typing import TextIO

import click

from crossover.eval.report.text import message, visible
from crossover.eval.run.progress import columns_of


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print a text with its control characters as codes: one of them could command the terminal.

    What the terminal's encoding lacks is printed as `?`.
    """
    click.echo(encodable(visible(text), sys.stderr if err else sys.stdout), err=err, nl=nl)


def encodable(text: str, stream: TextIO) -> str:
    """Return the text with `?` for what the stream's encoding lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def say(text: object, *, err: bool = True, lead: int = 2) -> None:
    """Print a message, wrapped where it goes to a terminal; its further lines are indented by `lead` columns."""
    stream = sys.stderr if err else sys.stdout
    echo(message(text, columns_of(stream) if stream.isatty() else None, lead), err=err)
