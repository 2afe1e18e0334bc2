"""The verb `crossover init`; heavy packages are imported when it runs."""

import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.data_file import columns_option, guess_options, show
from crossover.eval.cli.options import EXIT_CANNOT_RUN, STORE
from crossover.eval.cli.output import echo, say
from crossover.eval.experiment.choices import Choices

if TYPE_CHECKING:
    from crossover.eval.experiment.draft import Draft

STARTER = ("crossover.yaml", "train.jsonl", "test.jsonl")
YES, NO = ("y", "Y", "yes"), ("n", "N", "no")


@click.command()
@click.argument("source", required=False, default=".", metavar="[FILE|DIR]")
@guess_options
@columns_option("--output", "Columns that the model answers.")
@click.option("-o", "file", type=click.Path(path_type=Path), help="File to write, in place of NAME.crossover.yaml.")
def init(source: str, choices: Choices, yes: bool, file: Path | None) -> int:
    """Write a commented experiment file: from your data FILE, or with sample data into DIR.

    FILE is .csv, .tsv, .xlsx, .json, .jsonl or .parquet, or hf:org/name. What each column is taken for is shown and
    asked once; without a terminal, --yes takes it as it is.

    Example: crossover init questions.xlsx --docs docs --yes

    Example: crossover init tickets.csv --output Queue
    """
    from crossover.eval.experiment.data_source import experiment_file_of, is_data
    from crossover.eval.experiment.draft import Draft

    if not is_data(source):
        return _init_folder(Path(source))
    file = file or experiment_file_of(source)
    _refuse_to_overwrite([file], "give another by -o, or run it")
    draft = Draft.of(source, choices, file)
    _show(draft)
    if not yes:
        if not sys.stdin.isatty():
            say("error: nobody to ask: add --yes to take the guess as it is; nothing was written")
            return EXIT_CANNOT_RUN
        if not _ask(draft):
            say("nothing was written")
            return EXIT_CANNOT_RUN
    draft.write()
    say(f"wrote {file}", err=False)
    say(_length_of(file), err=False)
    echo(f"next: crossover validate {shlex.quote(str(file))} && crossover run {shlex.quote(source)}")
    return 0


def _show(draft: "Draft") -> None:
    """Print the guess, and what `validate` will say of the task."""
    show(draft, err=False)
    for problem in draft.checked():
        say(problem, err=False)


def _length_of(file: Path) -> str:
    """Return in words what a run of the experiment takes at most, or the command that forecasts it."""
    from crossover.eval.experiment.read import read_experiment
    from crossover.eval.run.forecast import forecast, total_words
    from crossover.eval.run.loading import check_keys, check_weights

    command = f"crossover plan {shlex.quote(str(file))}"
    experiment, _ = read_experiment(file)
    if experiment is None or check_weights(experiment) or check_keys(experiment):
        return f"how long a run takes: {command}"
    return f"a run takes {total_words(forecast(experiment, store=STORE)[0])}; {command} shows each cell"


def _ask(draft: "Draft") -> bool:
    """Return whether the guess is right; a column that is named in answer gets another role, and it asks again."""
    from crossover.eval.experiment.guess import ROLES

    columns = {c.name.casefold(): c for c in draft.guess.columns}
    while (answer := click.prompt("Right? [Y/n/COLUMN]", default="y", show_default=False).strip()) not in YES:
        if answer in NO:
            return False
        if column := columns.get(answer.casefold()):
            role = click.prompt(f"{column.name} is", type=click.Choice(ROLES), default=column.role)
            draft.give_role(column.name, role)
            _show(draft)
        else:
            names = ", ".join(c.name for c in columns.values())
            say(f"no column {answer!r}; answer y, n or one of {names}", err=False)
    return True


def _init_folder(folder: Path) -> int:
    """Write the sample experiment and its data into a folder."""
    from crossover.models.errors import UserError
    from crossover.models.jsonl import write_text
    from crossover.programs.readers import READERS

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: neither a folder nor one of {', '.join(READERS)}; name either")
    _refuse_to_overwrite([folder / name for name in STARTER], "give another DIR, `crossover init DIR`")
    folder.mkdir(parents=True, exist_ok=True)
    for name in STARTER:
        write_text(folder / name, (files("crossover.eval.experiment") / "starter" / name).read_text(encoding="utf-8"))
        echo(f"wrote {folder / name}")
    go = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    echo(f"next: {go}crossover validate crossover.yaml && crossover run")
    return 0


def _refuse_to_overwrite(paths: Sequence[Path], remedy: str) -> None:
    from crossover.models.errors import UserError

    if there := [str(p) for p in paths if p.exists()]:
        raise UserError(f"{', '.join(there)}: already there; {remedy}")
