"""What the store holds and MLflow lacks.

The store is the truth: a cell is pending until its `tracked.json` names the tracking store. What MLflow shows of the
whole run (settings, prices, verdict) comes from `unfinished/`: a run writes a record there before its first result, and
the record goes when its verdict is in MLflow. So the next run, or `crossover sync`, completes a run that was killed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crossover.eval.experiment.spec import Experiment, Prices, params_of
from crossover.eval.store.cells import TRACKED, cell_folder, is_finished
from crossover.eval.store.result import MOVE_AWAY
from crossover.models.api_keys import redact
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json

NONE = "none"
"""URI of a run that is not tracked; `crossover sync` can still send it."""
UNFINISHED = "unfinished"
"""Folder of the records of runs whose verdict is not in MLflow."""
UNSENT = "unsent.json"
"""File that earlier versions left in the folder of a pending cell, with the settings of its run."""


@dataclass(frozen=True)
class PendingRun:
    """A run whose verdict is not in MLflow yet."""

    experiment: str
    params: Mapping[str, Any]
    prices: Prices
    cells: tuple[str, ...]
    files: tuple[Path, ...] = ()
    """Records to delete once the verdict is in MLflow."""


def begin_run(store: Path, experiment: Experiment, cells: Iterable[str]) -> PendingRun:
    """Record a run before its first result is written, so that its cells can be sent even if the run is killed."""
    run = PendingRun(experiment.name, params_of(experiment), experiment.prices, tuple(cells))
    facts = {"experiment": run.experiment, "params": run.params, "prices": asdict(run.prices), "cells": run.cells}
    # Named by the cells too: the same settings on changed data must not hide the cells of the old data.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    write_json(store / UNFINISHED / f"{digest}.json", facts)
    return run


def pending_runs(store: Path, uri: str) -> list[PendingRun]:
    """Return the runs to send to a tracking store, one for each experiment and its settings, the oldest first.

    Raises:
        UserError: a record was damaged since it was written.
    """
    runs: dict[str, PendingRun] = {}
    files = [*store.glob(f"{UNFINISHED}/*.json"), *store.glob(f"cells/*/{UNSENT}")]
    # The oldest first, so that a cell of several runs is sent as part of the one that measured it.
    for file in sorted(files, key=lambda f: f.stat().st_mtime_ns):
        remedy = MOVE_AWAY if file.name == UNSENT else "delete it: a run in MLflow may stay open for it"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            cells = (file.parent.name,) if file.name == UNSENT else tuple(facts.get("cells", ()))
            run = PendingRun(facts["experiment"], facts["params"], Prices(**facts["prices"]), cells, (file,))
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file}: damaged; {remedy}") from e
        # Earlier versions wrote one record for each tracking store.
        if facts.get("uri", redact(uri)) == redact(uri):
            settings = json.dumps([run.experiment, run.params], sort_keys=True)
            known = runs.get(settings, replace(run, cells=(), files=()))
            runs[settings] = replace(known, cells=known.cells + cells, files=(*known.files, file))
    return list(runs.values())


def tracked_run(store: Path, key: str, uri: str) -> str:
    """Return the id of a cell's run in a tracking store, or an empty string when the cell was not sent there."""
    folder = cell_folder(store, key)
    if not (folder / TRACKED).exists() or (folder / UNSENT).exists():
        return ""
    facts = json.loads((folder / TRACKED).read_text(encoding="utf-8"))
    return str(facts["run_id"]) if facts["uri"] == redact(uri) else ""


def pending_cells(store: Path, cells: Iterable[str], uri: str) -> list[str]:
    """Return the finished cells that were not sent to a tracking store; none when tracking is off."""
    return [k for k in cells if uri != NONE and is_finished(store, k) and not tracked_run(store, k, uri)]
