"""A data file in place of an experiment file: guess, show, ask, and write the experiment file beside it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossover.eval.cli.options import CellFlags, Decorated, MeasuringFlags, gathered
from crossover.eval.cli.output import echo

if TYPE_CHECKING:
    from crossover.eval.experiment.guess import Guess
    from crossover.programs.records import Record

YES, NO = ("y", "Y", "yes"), ("n", "N", "no")
EXAMPLE_WIDTH, NAME_WIDTH = 44, 24


@dataclass(frozen=True)
class GuessFlags:
    """What a person says of a data file; the fields are those of `Choices`."""

    input_columns: str | None = None
    output_columns: str | None = None
    ignore: str | None = None
    group: str | None = None
    docs: str | None = None
    program: str | None = None
    metric: str | None = None
    model: str | None = None
    yes: bool = False

    def words(self) -> list[str]:
        """Return the flags as a command line gives them, `--yes` apart."""
        names = {f.name: f.name.removesuffix("_columns") for f in fields(self)}
        given = {names[k]: v for k, v in vars(self).items() if v and k != "yes"}
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def guess_options(command: Decorated) -> Decorated:
    """Add the flags that settle what a data file is taken for, as the argument `guessing`."""
    command = gathered(command, "guessing", GuessFlags)
    for add in (
        click.option("--yes", is_flag=True, help="Take the guess as it is."),
        click.option("--model", help="A data file's: the model, in place of smollm2."),
        click.option("--metric", help="A data file's: the metric, or mine.py:my_metric."),
        click.option("--program", help="A data file's: classify, record, rag, …, or mine.py:MyProgram."),
        click.option("--docs", metavar="FOLDER", help="A data file's: documents that hold the answers."),
        click.option("--group", metavar="COLUMN", help="A data file's: rows that share it stay in one split."),
        click.option("--ignore", metavar="A,B", help="A data file's: columns to leave out."),
        click.option("--input", "input_columns", metavar="A,B", help="A data file's: columns that the model reads."),
    ):
        command = add(command)
    return command


def is_data(source: str) -> bool:
    """Return whether FILE is a data file or a dataset, no experiment and no folder."""
    from crossover.programs.readers import READERS
    from crossover.programs.sources import data_suffix

    return source.startswith("hf:") or data_suffix(Path(source)) in READERS


def experiment_file_of(source: str) -> Path:
    """Return where the experiment file of a data file lies: beside it, that of a dataset in this folder."""
    from crossover.eval.experiment.starter_file import task_name

    folder = Path() if source.startswith("hf:") else Path(source).parent
    return folder / f"{task_name(source)}.crossover.yaml"


def with_data(cells: CellFlags, measuring: MeasuringFlags, guessing: GuessFlags) -> tuple[CellFlags, MeasuringFlags]:
    """Return the flags of `run` with the experiment file of a data file in its place.

    `--output` means two things there: a path by whose suffix a report is written, else columns to answer. Without such
    a path the page is written beside the experiment file.
    """
    if cells.file is None or not is_data(str(cells.file)):
        if words := guessing.words():
            raise click.UsageError(f"{words[0]} is for a data file such as tickets.csv; set it in the experiment file")
        return cells, measuring
    from crossover.eval.report.forms import FORMS

    named = [o for o in measuring.output if o.suffix not in FORMS]
    guessing = replace(guessing, output_columns=",".join(map(str, named)) or None)
    reports = tuple(o for o in measuring.output if o not in named)
    file = experiment_of_data(str(cells.file), guessing)
    return replace(cells, file=file), replace(measuring, output=reports or (file.with_suffix(".html"),))


def experiment_of_data(source: str, guessing: GuessFlags) -> Path:
    """Return the experiment file of a data file, which is written unless it is there.

    Raises:
        UserError: the file is there and was written for other flags.
    """
    from crossover.models.errors import UserError

    file = experiment_file_of(source)
    if not file.exists():
        draft = Draft.of(source, guessing, file)
        echo(draft.shown(), err=True)
        draft.write()
        echo(f"wrote {file}", err=True)
        return file
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    if guessing.words() and first != f"# {_command(source, guessing)}":
        flags = " ".join(w for w in guessing.words() if w.startswith("--"))
        raise UserError(f"{file}: already there, written without these {flags}; edit it, or delete it to guess again")
    echo(f"using {file}", err=True)
    return file


def _command(source: str, guessing: GuessFlags) -> str:
    """Return the command that writes the file."""
    return shlex.join(["crossover", "init", source, *guessing.words()])


@dataclass
class Draft:
    """An experiment file to be written, and what it was guessed from."""

    source: str
    guessing: GuessFlags
    file: Path
    records: "Sequence[Record]"
    guess: "Guess"
    notes: list[str]

    @classmethod
    def of(cls, source: str, guessing: GuessFlags, file: Path) -> "Draft":
        """Read the data and guess.

        Raises:
            UserError: the data cannot be read, or no input or output can be told.
        """
        from crossover.eval.experiment.guess import Choices, guess
        from crossover.models.errors import UserError
        from crossover.programs.data import read_corpus, read_rows

        records, problems = read_rows(source)
        if errors := [p for p in problems if p.level == "error"]:
            raise UserError("\n".join(map(str, errors)))
        g = guessing
        choices = Choices(
            input=_names(g.input_columns),
            output=_names(g.output_columns),
            ignore=_names(g.ignore),
            group=g.group or "",
            docs=_relative(g.docs, file),
            program=_relative(g.program, file) if ".py" in (g.program or "") else g.program or "",
            metric=_relative(g.metric, file) if ".py" in (g.metric or "") else g.metric or "",
            model=g.model or "",
        )
        corpus = read_corpus(choices.docs, file.parent, problems) if choices.docs else ()
        if errors := [p for p in problems if p.level == "error"]:
            raise UserError("\n".join(map(str, errors)))
        names = [name for p in corpus for name in (p.id, p.title) if name]
        found = guess(records, choices, passages=names, base=file.parent)
        return cls(source, guessing, file, records, found, [str(p) for p in problems])

    def shown(self) -> str:
        """Return the columns with what they are taken for, and the rest of the guess."""
        from crossover.models.api_keys import PROVIDER_KEYS
        from crossover.programs.data import USUAL_METRIC
        from crossover.programs.fields import text_of

        guess, rows = self.guess, [("column", "kind", "distinct", "example", "taken as")]
        for c in guess.columns:
            role = "ignored (--group keeps it in one split)" if (c.kind, c.role) == ("group", "ignored") else c.role
            rows.append((_cut(c.name, NAME_WIDTH), c.kind, str(c.distinct), _cut(c.example, EXAMPLE_WIDTH), role))
        widths = [max(len(r[n]) for r in rows) for n in range(5)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        keys = ", ".join(k for k in PROVIDER_KEYS if os.environ.get(k)) or "none"
        facts = [
            f"program  {guess.program} ({guess.why})",
            f"metric   {guess.metric or USUAL_METRIC.get(guess.program, 'exact_match')}",
            f"model    {guess.model}; API keys present: {keys}",
        ]
        outputs = self.guess.by_role["output"]
        holes = [n for n in outputs if any(not text_of(r.values.get(n)).strip() for r in self.records)]
        if guess.program == "record" and holes:
            facts.append(f"answers  an empty cell of {', '.join(holes)} is the answer `none`")
        head = f"{self.source}: {len(self.records)} rows, {len(guess.columns)} columns"
        return "\n".join([head, *self.notes, "", *table, "", *facts])

    def checked(self) -> str:
        """Return what `validate` will say of the task, the columns left out apart, which the table shows."""
        from crossover.eval.experiment.starter_file import task_name
        from crossover.programs.data import load_and_check

        spec = self.guess.spec(task_name(self.source), self._data())
        spec = replace(spec, fields=dict.fromkeys(self.guess.by_role["ignored"], "ignored") | dict(spec.fields))
        return "\n".join(map(str, load_and_check(spec, base=self.file.parent)[1]))

    def ask(self) -> bool:
        """Return whether the guess is right; a column that is named in answer gets another role, and it asks again."""
        from crossover.eval.experiment.guess import ROLES, Choices, settled

        columns = {c.name.casefold(): c for c in self.guess.columns}
        while (answer := click.prompt("Right? [Y/n/COLUMN]", default="y", show_default=False).strip()) not in YES:
            if answer in NO:
                return False
            if column := columns.get(answer.casefold()):
                column.role = click.prompt(f"{column.name} is", type=click.Choice(ROLES), default=column.role)
                chosen = Choices(docs=self.guess.docs, model=self.guess.model, metric=self.guessing.metric or "")
                self.guess = settled(list(columns.values()), self.records, chosen)
                echo(f"{self.shown()}\n{self.checked()}")
            else:
                echo(f"no column {answer!r}; answer y, n or one of {', '.join(c.name for c in columns.values())}")
        return True

    def write(self) -> None:
        """Write the experiment file."""
        from crossover.eval.experiment.starter_file import experiment_text, task_name
        from crossover.models.jsonl import write_text

        text = experiment_text(
            self.guess,
            name=task_name(self.source),
            data=self._data(),
            file=shlex.quote(str(self.file)),
            command=_command(self.source, self.guessing),
        )
        write_text(self.file, text)

    def _data(self) -> dict[str, str]:
        """Return the source as an experiment file names it."""
        if self.source.startswith("hf:"):
            return {"hf": self.source.removeprefix("hf:")}
        return {"file": os.path.relpath(self.source, self.file.parent)}


def _names(text: str | None) -> tuple[str, ...]:
    """Return the columns of a comma-separated flag; a name that holds commas is quoted, as in CSV."""
    import csv

    return tuple(n.strip() for n in next(csv.reader([text], skipinitialspace=True))) if text else ()


def _relative(path: str | None, file: Path) -> str:
    """Return a path of the command line as the experiment file names it."""
    if not path:
        return ""
    text = os.path.relpath(path, file.parent)
    return text if text.startswith("..") else f"./{text}"


def _cut(text: str, width: int) -> str:
    """Return the start of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
