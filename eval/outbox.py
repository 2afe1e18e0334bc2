"""What is measured and not yet in MLflow: a mark in the cell's folder, written before the result, gone when it is sent.

A run that was killed, or whose tracking server was away, leaves marks; `crossover sync` and the next run send them.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.cost import cost_of
from eval.experiment import Experiment, Prices, params_of
from eval.measure import Result
from eval.store import TRACKED, UNSENT, cell_folder, check_fitted, load_result, write_json
from eval.tracking import Tracker
from models.secret import redact


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
            facts = json.loads(file.read_text(encoding="utf-8"))
            found.append((result, Unsent(facts["experiment"], facts["params"], Prices(**facts["prices"]))))
    return found


def send(tracker: Tracker, store: Path, result: Result, unsent: Unsent) -> str:
    """Log a cell, remember where, take its mark away, and return the run of its experiment.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    parent, folder = tracker.parent(unsent.experiment, unsent.params), cell_folder(store, result.key)
    result.mlflow_run_id = tracker.result(parent, result, cost_of(result, unsent.prices), folder)
    write_json(folder / TRACKED, {"uri": redact(tracker.uri), "run_id": result.mlflow_run_id})
    (folder / UNSENT).unlink(missing_ok=True)
    return parent
