"""A data file in place of an experiment file: the flags of the guess, its display, and the file that is written."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import CellFlags, Decorated, MeasuringFlags, gathered
from crossover.eval.cli.output import say
from crossover.eval.experiment.choices import Choices

if TYPE_CHECKING:
    from crossover.eval.experiment.draft import Draft


def split_names(text: str) -> tuple[str, ...]:
    """Return the column names of a comma-separated flag; a name that holds commas is quoted, as in CSV."""
    return tuple(n.strip() for n in next(csv.reader([text], skipinitialspace=True), []))


def columns_option(flag: str, text: str) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds a flag of column names."""
    return click.option(flag, default="", metavar="A,B", callback=lambda c, p, names: split_names(names), help=text)


def guess_options(command: Decorated) -> Decorated:
    """Add the flags that settle parts of the guess, as the argument `choices`, and `--yes`."""
    command = gathered(command, "choices", Choices)
    for add in (
        click.option("--yes", is_flag=True, help="Take the guess as it is."),
        click.option("--model", default="", help="A data file's: the model, in place of smollm2."),
        click.option("--metric", default="", help="A data file's: the metric, or mine.py:my_metric."),
        click.option("--program", default="", help="A data file's: classify, record, rag, …, or mine.py:MyProgram."),
        click.option("--docs", default="", metavar="FOLDER", help="A data file's: documents that hold the answers."),
        click.option("--group", default="", metavar="COLUMN", help="A data file's: its rows share a split."),
        columns_option("--ignore", "A data file's: columns to leave out."),
        columns_option("--input", "A data file's: columns to read."),
    ):
        command = add(command)
    return command


def with_data(cells: CellFlags, measuring: MeasuringFlags, choices: Choices) -> tuple[CellFlags, MeasuringFlags]:
    """Return the flags of `run` with the experiment file of a data file in its place.

    `--output` means two things there: a path by whose suffix a report is written, else columns to answer.
    """
    if cells.file is not None:
        from crossover.eval.experiment.data_source import is_data

        if is_data(str(cells.file)):
            return _with_data(cells, measuring, choices)
    if words := choices.words():
        raise click.UsageError(f"{words[0]} is for a data file such as tickets.csv; set it in the experiment file")
    return cells, measuring


def _with_data(cells: CellFlags, measuring: MeasuringFlags, choices: Choices) -> tuple[CellFlags, MeasuringFlags]:
    from crossover.eval.report.forms import FORMS

    names = [o for o in measuring.output if o.suffix not in FORMS]
    columns = split_names(",".join(map(str, names)))
    reports = tuple(o for o in measuring.output if o not in names)
    file = experiment_of_data(str(cells.file), replace(choices, output=columns))
    return replace(cells, file=file), replace(measuring, output=reports)


def experiment_of_data(source: str, choices: Choices) -> Path:
    """Return the experiment file of a data file, which is written unless it exists.

    Raises:
        UserError: the file exists and was written for other flags.
    """
    from crossover.eval.experiment.data_source import experiment_file_of
    from crossover.eval.experiment.draft import Draft
    from crossover.models.errors import UserError

    file = experiment_file_of(source)
    if not file.exists():
        draft = Draft.of(source, choices, file)
        show(draft, err=True)
        draft.write()
        say(f"wrote {file}")
        return file
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    if choices.words() and first != f"# {Draft.command_of(source, choices)}":
        flags = " ".join(w for w in choices.words() if w.startswith("--"))
        raise UserError(f"{file}: already there, written without these {flags}; edit it, or delete it to guess again")
    say(f"using {file}")
    return file


def show(draft: "Draft", *, err: bool) -> None:
    """Print what the data looks like and what it is taken for."""
    rows, columns = len(draft.records), len(draft.guess.columns)
    for text in (f"{draft.source}: {rows} rows, {columns} columns", *map(str, draft.notes)):
        say(text, err=err)
    say("", err=err)
    for line in draft.table():
        say(line, err=err, lead=9)
