"""What is measured and not yet in MLflow: a mark in the cell's folder, written before the result, gone when it is sent.

A run that was killed, or whose tracking server was away, leaves marks; `crossover sync` and the next run send them.
So does an experiment's run in MLflow, from its first cell to its verdict: whoever comes next ends it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.cost import cost_of
from crossover.eval.experiment.spec import Experiment, Prices, params_of
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render
from crossover.eval.store.cells import TRACKED, UNSENT, cell_folder, check_fitted, load_result, write_json
from crossover.eval.store.result import MOVE_AWAY, Result
from crossover.eval.tracking.tracker import Tracker
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.programs.retrieval.base import silent

PARENTS = "unfinished"
"""Folder of the marks of experiments."""


@dataclass(frozen=True)
class Unsent:
    """What MLflow is told of the experiment that a cell was measured for."""

    experiment: str
    params: dict[str, Any]
    prices: Prices

    @classmethod
    def of(cls, experiment: Experiment) -> "Unsent":
        """Return what is told of an experiment."""
        return cls(experiment.name, params_of(experiment), experiment.prices)

    @property
    def name(self) -> str:
        """Return what tells the experiment's run in MLflow from those of other settings."""
        return hashlib.sha256(json.dumps([self.experiment, self.params], sort_keys=True).encode()).hexdigest()[:16]


def mark(store: Path, key: str, unsent: Unsent) -> None:
    """Mark a cell as not sent."""
    write_json(cell_folder(store, key) / UNSENT, asdict(unsent))


def waiting(store: Path, keys: Iterable[str]) -> list[tuple[Result, Unsent]]:
    """Return those of the cells that are finished and not sent.

    Raises:
        UserError: a cell was damaged since it was measured.
    """
    found = []
    for key in keys:
        file = cell_folder(store, key) / UNSENT
        if file.exists() and (result := load_result(store, key)) is not None:
            check_fitted(cell_folder(store, key))
            found.append((result, _read_mark(file, MOVE_AWAY)[0]))
    return found


def _read_mark(file: Path, remedy: str) -> tuple[Unsent, str]:
    """Return what a mark tells, and the tracking store that it is about where it names one.

    Raises:
        UserError: the mark was damaged since it was written.
    """
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        unsent = Unsent(facts["experiment"], facts["params"], Prices(**facts["prices"]))
        return unsent, str(facts.get("uri", ""))
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: damaged; {remedy}") from e


def send(tracker: Tracker, store: Path, result: Result, unsent: Unsent) -> None:
    """Log a cell, remember where, and take its mark away; its experiment's run waits for a verdict from then on.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    file, uri = _parent_file(store, unsent, tracker.uri), redact(tracker.uri)
    if not file.exists():
        write_json(file, asdict(unsent) | {"uri": uri})
    parent, folder = tracker.parent(unsent.experiment, unsent.params), cell_folder(store, result.key)
    result.mlflow_run_id = tracker.result(parent, result, cost_of(result, unsent.prices), folder)
    write_json(folder / TRACKED, {"uri": uri, "run_id": result.mlflow_run_id})
    (folder / UNSENT).unlink(missing_ok=True)


def is_tracked(store: Path, key: str, tracker: Tracker) -> bool:
    """Return whether a cell's run is in this tracking store."""
    file = cell_folder(store, key) / TRACKED
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["uri"] == redact(tracker.uri)


def unfinished(store: Path, uri: str) -> list[Unsent]:
    """Return the experiments whose run in a tracking store waits for a verdict."""
    remedy = "delete it: a run in MLflow may stay open for it"
    found = [_read_mark(f, remedy) for f in sorted((store / PARENTS).glob("*.json"))]
    return [unsent for unsent, where in found if where == redact(uri)]


def finish(
    tracker: Tracker,
    store: Path,
    unsent: Unsent,
    comparison: Comparison | None = None,
    *,
    then: Callable[[str], None] = silent,
) -> None:
    """End the run of an experiment, with its verdict where there is one, and take its mark away.

    `then` tells MLflow the rest, given the run; as long as it fails, the mark stays and the next run tries again.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    parent = tracker.parent(unsent.experiment, unsent.params)
    if comparison is not None:
        tracker.verdict(parent, render(comparison), to_json(comparison))
    tracker.finish(parent)
    then(parent)
    _parent_file(store, unsent, tracker.uri).unlink(missing_ok=True)


def _parent_file(store: Path, unsent: Unsent, uri: str) -> Path:
    where = hashlib.sha256(redact(uri).encode()).hexdigest()[:16]
    return store / PARENTS / f"{unsent.name}-{where}.json"
