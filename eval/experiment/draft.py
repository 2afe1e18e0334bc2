"""Draft an experiment file from a data file: read it, guess the task, show the guess, and write the file beside it."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crossover.eval.experiment.choices import Choices
from crossover.eval.experiment.data_source import task_name
from crossover.eval.experiment.guess import Guess, guess, settled
from crossover.eval.experiment.starter_file import experiment_text, methods_for
from crossover.models.api_keys import PROVIDER_KEYS
from crossover.models.errors import UserError
from crossover.models.jsonl import write_text
from crossover.programs.data import USUAL_METRIC, load_and_check, read_corpus, read_rows
from crossover.programs.fields import text_of
from crossover.programs.records import Problem, Record

EXAMPLE_WIDTH, NAME_WIDTH = 30, 20
"""Columns of a terminal for an example and for a name, so that the table fits into 80."""


@dataclass
class Draft:
    """An experiment file to be written, and the guess that it is written from."""

    source: str
    choices: Choices
    file: Path
    records: Sequence[Record]
    guess: Guess
    notes: list[Problem]

    @classmethod
    def of(cls, source: str, choices: Choices, file: Path) -> "Draft":
        """Read the data and guess; paths in `choices` start at the current folder.

        Raises:
            UserError: the data cannot be read, or no column looks like the input or the output.
        """
        records, problems = read_rows(source)
        _refuse(problems)
        placed = replace(
            choices,
            docs=_relative(choices.docs, file),
            program=_relative(choices.program, file) if ".py" in choices.program else choices.program,
            metric=_relative(choices.metric, file) if ".py" in choices.metric else choices.metric,
        )
        corpus = read_corpus(placed.docs, file.parent, problems) if placed.docs else ()
        _refuse(problems)
        names = [name for p in corpus for name in (p.id, p.title) if name]
        guessed = guess(records, placed, passages=names, base=file.parent)
        return cls(source, choices, file, records, guessed, problems)

    @staticmethod
    def command_of(source: str, choices: Choices) -> str:
        """Return the command that writes the experiment file of a data file."""
        return shlex.join(["crossover", "init", source, *choices.words()])

    def table(self) -> list[str]:
        """Return the lines that show each column with its role, then the program, metric, model and methods."""
        guess, rows = self.guess, [("column", "kind", "distinct", "example", "taken as")]
        for c in guess.columns:
            rows.append((_cut(c.name, NAME_WIDTH), c.kind, str(c.distinct), _cut(c.example, EXAMPLE_WIDTH), c.role))
        widths = [max(len(r[n]) for r in rows) for n in range(5)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return [*table, "", *(f"{name:<8} {text}" for name, text in self._facts())]

    def _facts(self) -> list[tuple[str, str]]:
        """Return the rest of the guess, each part with its name."""
        guess = self.guess
        keys = ", ".join(k for k in PROVIDER_KEYS if os.environ.get(k))
        facts = [
            ("program", f"{guess.program} ({guess.why})"),
            ("metric", guess.metric or USUAL_METRIC.get(guess.program, "exact_match")),
            ("model", f"{guess.model}{f'; API keys present: {keys}' if keys else ''}"),
            ("methods", ", ".join(m.partition(":")[0] for m in methods_for(guess.model))),
        ]
        for name in [c.name for c in guess.columns if (c.kind, c.role) == ("group", "ignored")]:
            facts.append(("group", f"rows of one {name} may stand in train and in test; --group {shlex.quote(name)}"))
        outputs = guess.by_role["output"]
        holes = [n for n in outputs if any(not text_of(r.values.get(n)).strip() for r in self.records)]
        if guess.program == "record" and holes:
            facts.append(("answers", f"an empty cell of {', '.join(holes)} is the answer `none`"))
        return facts

    def checked(self) -> list[Problem]:
        """Return what `validate` will find in the task."""
        return load_and_check(self.guess.spec(task_name(self.source), self._data()), base=self.file.parent)[1]

    def give_role(self, name: str, role: str) -> None:
        """Give a column another role and guess the rest again."""
        for column in self.guess.columns:
            column.role = role if column.name == name else column.role
        kept = Choices(docs=self.guess.docs, model=self.guess.model, metric=self.choices.metric)
        self.guess = settled(self.guess.columns, self.records, kept)

    def write(self) -> None:
        """Write the experiment file."""
        text = experiment_text(
            self.guess,
            name=task_name(self.source),
            data=self._data(),
            file=shlex.quote(str(self.file)),
            command=self.command_of(self.source, self.choices),
        )
        write_text(self.file, text)

    def _data(self) -> dict[str, str]:
        """Return the source as an experiment file names it."""
        if self.source.startswith("hf:"):
            return {"hf": self.source.removeprefix("hf:")}
        return {"file": os.path.relpath(self.source, self.file.parent)}


def _refuse(problems: Sequence[Problem]) -> None:
    if errors := [str(p) for p in problems if p.level == "error"]:
        raise UserError("\n".join(errors))


def _relative(path: str, file: Path) -> str:
    """Return a path of the command line as the experiment file names it."""
    if not path:
        return ""
    text = os.path.relpath(path, file.parent)
    return text if text.startswith("..") else f"./{text}"


def _cut(text: str, width: int) -> str:
    """Return the start of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
