"""The verb `crossover init`; heavy packages are imported when it runs."""

import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import click

from crossover.eval.cli.data_file import Draft, GuessFlags, experiment_file_of, guess_options, is_data
from crossover.eval.cli.options import EXIT_CANNOT_RUN
from crossover.eval.cli.output import echo

STARTER = ("crossover.yaml", "train.jsonl", "test.jsonl")


@click.command()
@click.argument("source", required=False, default=".", metavar="[FILE|DIR]")
@guess_options
@click.option("--output", "output_columns", metavar="A,B", help="Columns that the model answers.")
@click.option("-o", "file", type=click.Path(path_type=Path), help="File to write, in place of NAME.crossover.yaml.")
def init(source: str, guessing: GuessFlags, file: Path | None) -> int:
    """Write a commented experiment file: from your data FILE, or with sample data into DIR.

    FILE is .csv, .tsv, .xlsx, .json, .jsonl or .parquet, or hf:org/name. What each column is taken for is shown and
    asked once; without a terminal, --yes takes it as it is.

    Example: crossover init tickets.csv --output Queue
    """
    if not is_data(source):
        return _init_folder(Path(source))
    file = file or experiment_file_of(source)
    _refuse_to_overwrite([file], "give another by -o, or run it")
    draft = Draft.of(source, guessing, file)
    echo(f"{draft.shown()}\n{draft.checked()}")
    if not guessing.yes:
        if not sys.stdin.isatty():
            echo("error: nobody to ask: add --yes to take the guess as it is; nothing was written", err=True)
            return EXIT_CANNOT_RUN
        if not draft.ask():
            echo("nothing was written", err=True)
            return EXIT_CANNOT_RUN
    draft.write()
    echo(f"wrote {file}\nnext: crossover validate {shlex.quote(str(file))} && crossover run {shlex.quote(source)}")
    return 0


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
