"""The local store: one folder a cell, rows appended while they come, the summary written last."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import dspy

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Knowledge, Retrieval
from crossover.eval.store.facts import flat_notes, split_notes
from crossover.eval.store.result import MOVE_AWAY, Latency, Result, drop_failed_rows
from crossover.eval.store.rows import read_table
from crossover.models.api_keys import redact_all
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.models.weights import folder_sha256
from crossover.programs.task import Fitted

TRACKED = "tracked.json"
"""File of a cell that is in MLflow: the tracking store and the run's id."""

HUMAN = "human.json"
"""What people graded of a cell's answers."""


def cell_folder(store: Path, key: str) -> Path:
    """Return the folder of a cell.

    Raises:
        UserError: the key, which a damaged or foreign file may have named, is none.
    """
    if not re.fullmatch(r"[\w-]+", key, re.ASCII):
        raise UserError(f"{store}: {key!r} is no key of a cell; {MOVE_AWAY}")
    return store / "cells" / key


def set_aside(store: Path, key: str) -> None:
    """Move what the store holds of a cell out of the way; nothing is deleted."""
    folder = cell_folder(store, key)
    if folder.exists():
        aside = store / "aside"
        aside.mkdir(exist_ok=True)
        # Not their count: one of them may have been deleted.
        last = max((int(f.name.rpartition("-")[2]) for f in aside.glob(f"{key}-*")), default=0)
        folder.rename(aside / f"{key}-{last + 1}")


def is_finished(store: Path, key: str) -> bool:
    """Return whether the cell's summary is written."""
    return (cell_folder(store, key) / "result.json").exists()


def reopen(store: Path, key: str, note: Callable[[str], None]) -> None:
    """Make a cell unfinished: its scored rows stay, to be added to, and the failed ones are dropped, to be asked again.

    Raises:
        UserError: the cell's rows are damaged.
    """
    folder = cell_folder(store, key)
    (folder / "result.json").unlink(missing_ok=True)
    drop_failed_rows(folder / "rows.jsonl", note)


def save_result(store: Path, result: Result) -> None:
    """Write the summary; from then on the cell is finished."""
    folder = cell_folder(store, result.key)
    result.rows_sha256 = _file_sha256(folder / "rows.jsonl")
    result.finished_on = date.today().isoformat()
    # What MLflow holds of an earlier measurement, such as of an arm that left a race, is not this one.
    (folder / TRACKED).unlink(missing_ok=True)
    write_json(folder / "result.json", result.summary())


def _file_sha256(file: Path) -> str:
    """Return the hash of a file, empty where there is none."""
    if not file.exists():
        return ""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load_result(store: Path, key: str) -> Result | None:
    """Return a finished cell, or None.

    Raises:
        UserError: what the store holds of the cell is not what was measured.
    """
    folder = cell_folder(store, key)
    if not is_finished(store, key):
        return None
    try:
        data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        result = _result(data, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{folder / 'result.json'}: damaged ({type(e).__name__}); {MOVE_AWAY}") from e
    if result.rows_sha256 and result.rows_sha256 != _file_sha256(folder / "rows.jsonl"):
        raise UserError(f"{folder / 'rows.jsonl'}: not the rows that were measured; {MOVE_AWAY}")
    return result


def load_standing(store: Path, keys: Iterable[str], *, racing: bool, planned: Collection[str]) -> dict[str, Result]:
    """Return those of the cells, by key, that are finished and count in an experiment of these planned cells."""
    found = {k: load_result(store, k) for k in keys}
    return {k: r for k, r in found.items() if r is not None and r.stands(racing=racing, planned=planned)}


def _result(data: dict[str, Any], folder: Path) -> Result:
    if data["key"] != folder.name:
        raise ValueError("the summary of another cell")
    cell, (facts, notes) = data.pop("cell"), split_notes(data.pop("notes", {}))
    if (folder / TRACKED).exists():
        data["mlflow_run_id"] = json.loads((folder / TRACKED).read_text(encoding="utf-8"))["run_id"]
    return Result(
        cell=Cell(
            task=cell["task"],
            model=ModelSpec.stored(cell["model"]),
            method=MethodSpec(**cell["method"]),
            train_size=cell["train_size"],
            knowledge=Knowledge(**cell["knowledge"]),
            seed=cell["seed"],
            retrieval=Retrieval(**cell["retrieval"]) if cell.get("retrieval") else None,
        ),
        rows=read_table(folder / "rows.jsonl"),
        latency=_latency(data.pop("latency")),
        fit=Usage(**data.pop("fit")),
        facts=facts,
        notes=notes,
        human=_read_human(folder / HUMAN),
        **data,
    )


def _latency(data: dict[str, Any]) -> Latency:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Latency(**values)


def _read_human(file: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def save_human(store: Path, result: Result) -> None:
    """Write what people graded of a cell's answers."""
    write_json(cell_folder(store, result.key) / HUMAN, result.human)


def save_fitted(folder: Path, fitted: Fitted) -> bool:
    """Write the fitted program as JSON, without its language model, and what fitting spent.

    Returns whether rows of an earlier fit that came out differently were set aside: they are another program's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # As it is written, without what looks like a secret: so it is held against its hash.
    state = redact_all(program_state(fitted.program))
    digest = _fitted_sha256(state, fitted.artifact)
    before = _fitted_before(folder)
    stale = before not in ("", digest)
    for name in ("rows.jsonl", "pace.jsonl", "latency.jsonl", "serving.jsonl") if stale else ():
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.{before[:8]}")
    write_json(folder / "program.json", state)
    spent = {"spent": asdict(fitted.spent), "notes": flat_notes(fitted.facts, fitted.notes), "lm": fitted.lm.model}
    # Relative, so that a store can be moved.
    kept = fitted.artifact is not None and fitted.artifact.is_relative_to(folder)
    artifact = str(fitted.artifact.relative_to(folder)) if fitted.artifact is not None and kept else ""
    write_json(folder / "fit.json", spent | {"artifact": artifact, "fitted_sha256": digest})
    return stale


def is_fitted(store: Path, key: str) -> bool:
    """Return whether a cell was fitted, whether or not it was measured since."""
    return (cell_folder(store, key) / "fit.json").exists()


def check_fitted(folder: Path) -> None:
    """Hold a fitted program and its weights against their hash.

    Raises:
        UserError: they are not what was fitted.
    """
    if not _fitted_before(folder):
        return
    try:
        name = json.loads((folder / "fit.json").read_text(encoding="utf-8"))["artifact"]
        state = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        sound = _fitted_sha256(state, inside(folder, name) if name else None) == _fitted_before(folder)
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{folder}: program or weights are not those that were fitted; {MOVE_AWAY}")


def inside(folder: Path, name: str) -> Path:
    """Return the file of that name in a folder.

    Raises:
        UserError: the name leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: {name!r} leads out of the folder; {MOVE_AWAY}")
    return path


def _fitted_sha256(state: Any, artifact: Path | None) -> str:
    weights = "" if artifact is None else folder_sha256(artifact)
    return hashlib.sha256(json.dumps([state, weights], sort_keys=True).encode()).hexdigest()


def _fitted_before(folder: Path) -> str:
    """Return the hash of what an earlier fit came to, empty where there was none."""
    file = folder / "fit.json"
    if not file.exists():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("fitted_sha256", ""))
    except (ValueError, AttributeError) as e:
        raise UserError(f"{file}: damaged; {MOVE_AWAY}") from e


def program_state(program: dspy.Module) -> dict[str, Any]:
    """Return the program's demonstrations, instructions and fields; no language model, so no key."""
    state: dict[str, Any] = json.loads(json.dumps(program.dump_state(), default=str))

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: None if k == "lm" else strip(v) for k, v in value.items()}
        return [strip(v) for v in value] if isinstance(value, list) else value

    cleaned: dict[str, Any] = strip(state)
    return cleaned


def program_sha256(program: dspy.Module) -> str:
    """Return the hash of a program before adaptation: its fields, its instructions, its class's own code."""
    try:
        code = inspect.getsource(type(program))
    except (OSError, TypeError):
        code = type(program).__qualname__
    return hashlib.sha256(json.dumps([program_state(program), code], sort_keys=True).encode()).hexdigest()
