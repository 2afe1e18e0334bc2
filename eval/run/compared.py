"""Compare from Python: what `crossover run` does, as objects for a script or a notebook."""

import html
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.choices import Choices
from crossover.eval.experiment.data_source import is_data
from crossover.eval.experiment.draft import Draft
from crossover.eval.experiment.read import Overrides, read_experiment
from crossover.eval.experiment.spec import Experiment
from crossover.eval.report.data import ReportData
from crossover.eval.report.forms import write_report
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render
from crossover.eval.report.text import visible
from crossover.eval.run.loading import finished
from crossover.eval.run.progress import Progress
from crossover.eval.run.run import run_experiment
from crossover.models.errors import UserError
from crossover.programs.load import unknown

if TYPE_CHECKING:
    import pandas as pd

STORE = Path("mlruns")
GIVEN = ("input", "output", "ignored", "group")
"""Roles of columns that `compare` can give in one data file."""


@dataclass(frozen=True)
class Compared:
    """A finished experiment: prints as its table, and shows as one in a notebook."""

    experiment: Experiment
    comparison: Comparison
    store: Path

    def __str__(self) -> str:
        """Return tables and verdict as `crossover run --details` prints them."""
        return render(self.comparison)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    @property
    def verdict(self) -> Mapping[str, Verdict]:
        """Return the verdict of each task, by its name."""
        return {v.task: v for v in self.comparison.verdicts}

    @cached_property
    def winner(self) -> str:
        """Return the key of the cell that the verdict of the only task chose, for `crossover.load`.

        Raises:
            UserError: there are several tasks, or no arm was chosen.
        """
        chosen = [arm for v in self.comparison.verdicts if (arm := self.comparison.chosen(v)) is not None]
        if len(chosen) != 1:
            raise UserError(f"{len(chosen)} arms were chosen; see `verdict`")
        return chosen[0].cells[0]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row an arm, with the columns of the JSON document, such as `score.mean`."""
        import pandas as pd

        return pd.json_normalize(to_json(self.comparison)["arms"])

    def report(self, path: str | Path) -> Path:
        """Write a report in the form of its suffix: .html, .md, .json, .csv, .xml or .txt."""
        found = finished(self.experiment, store=self.store)
        write_report(ReportData(self.experiment, self.comparison, found), Path(path))
        return Path(path)


def run(file: str | Path, *, store: str | Path = STORE, tracking_uri: str | None = None) -> Compared:
    """Run an experiment file, or go on with it, and return its comparison.

    Raises:
        UserError: the file, its data or a method has errors, or nothing could be measured.
    """
    return _run(Path(file), Overrides(), store=Path(store), tracking_uri=tracking_uri)


def _run(file: Path, overrides: Overrides, *, store: Path, tracking_uri: str | None) -> Compared:
    experiment, problems = read_experiment(file, overrides)
    if experiment is None:
        raise UserError("\n".join(str(p) for p in problems))
    progress = Progress()
    try:
        comparison = run_experiment(experiment, store=store, tracking_uri=tracking_uri, threads=32, progress=progress)
    finally:
        progress.close()
    return Compared(experiment, comparison, store)


def compare(
    data: str | Path | Mapping[str, str | Path],
    *,
    methods: Sequence[str | Mapping[str, Any]] | None = None,
    model: str | Mapping[str, Any] | None = None,
    program: str = "",
    fields: Mapping[str, str] | None = None,
    store: str | Path = STORE,
    tracking_uri: str | None = None,
) -> Compared:
    """Compare methods on one data file, on files of splits `{"train": …, "test": …}`, or on an experiment file.

    Args:
        data: A data file is taken for a task as `crossover init` does; what was guessed goes to stderr.
        methods: Methods as an experiment file lists them; None for the usual ones.
        model: Model as an experiment file names it; None for smollm2.
        program: Program as an experiment file names it, with an absolute path; empty for a guess, or `classify`.
        fields: Columns to their roles: input, output, ignored; in one data file also group, else also id and gold.
        store: Folder that keeps the results.
        tracking_uri: MLflow's; None for sqlite in the store, `none` for no tracking.

    Raises:
        UserError: the data or a method has errors, or nothing could be measured.
    """
    roles, settings = dict(fields or {}), []
    if methods is not None:
        settings.append(f"methods={json.dumps(list(methods))}")  # JSON is YAML
    drafted = not isinstance(data, Mapping) and is_data(str(data))
    # The guess gives a model that is only named the length of its answers.
    name = model if drafted and isinstance(model, str) else ""
    if model is not None and not name:
        settings.append(f"models={json.dumps([model])}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "compare.yaml"
        if isinstance(data, Mapping):
            file.write_text(json.dumps(_document(data, program or "classify", roles)), encoding="utf-8")
        elif drafted:
            _draft(str(data), _choices(roles, program, name), file)
        else:
            file = Path(data)
        return _run(file, Overrides(tuple(settings)), store=Path(store), tracking_uri=tracking_uri)


def _document(data: Mapping[str, str | Path], program: str, roles: Mapping[str, str]) -> dict[str, Any]:
    """Return the experiment on files of splits."""
    splits = {name: str(Path(file).resolve()) for name, file in data.items()}
    task = {"name": "task", "program": program, "data": splits} | ({"fields": roles} if roles else {})
    return {"version": 1, "name": "compare", "tasks": [task]}


def _choices(roles: Mapping[str, str], program: str, model: str) -> Choices:
    """Return the parts of a guess that the arguments of `compare` settle.

    Raises:
        UserError: a column has a role that cannot be given here.
    """
    if wrong := next((r for r in roles.values() if r not in GIVEN), None):
        raise unknown("role", wrong, GIVEN)
    input_, output, ignore, group = (tuple(c for c, r in roles.items() if r == role) for role in GIVEN)
    return Choices(input_, output, ignore, group="".join(group[:1]), program=program, model=model)


def _draft(data: str, choices: Choices, file: Path) -> None:
    """Write the experiment that a data file is taken for, and show the guess."""
    draft = Draft.of(data, choices, file)
    sys.stderr.write(visible("\n".join([*draft.table(), ""])))
    draft.write()


class Loaded(dspy.Module):  # type: ignore[misc]  # dspy is untyped
    """An adapted program with its own model, ready to call."""

    def __init__(self, answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        """Answer by a function from input fields to output fields."""
        super().__init__()
        self.answer = answer

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one question."""
        return dspy.Prediction(**self.answer(inputs))


def load(name: str, *, store: str | Path = STORE) -> Loaded:
    """Return the program of a finished cell with its model, by the start of its key or as `winner`.

    Raises:
        UserError: there is no such cell, or it needs something that cannot be loaded.
    """
    from crossover.eval.run.winner import cell_named
    from crossover.eval.store.recorded import params_with
    from crossover.eval.tracking.package import load_package, recorded_task, write_package

    result = cell_named(Path(store), name)
    task = recorded_task(params_with(Path(store), result.key), result.cell.task)
    if task is None:
        raise UserError(f"{name}: the data of its task cannot be read any more; `crossover export` writes its parts")
    with tempfile.TemporaryDirectory() as folder:
        write_package(Path(store), result, Path(folder) / "cell", task=task)
        return Loaded(load_package(Path(folder) / "cell"))
