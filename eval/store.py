"""The local store: one folder a cell, rows appended while they come, the summary written last."""

import hashlib
import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dspy

from eval.experiment import Cell, Knowledge, MethodSpec, Retrieval
from eval.measure import Latency, Result
from eval.rows import read_table
from models.spec import ModelSpec
from programs.task import Fitted, Spent

HUMAN = "human.json"


def cell_folder(store: Path, key: str) -> Path:
    """Return the folder of a cell."""
    return store / "cells" / key


def write_json(file: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    with draft.open("w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=False, indent=1, default=str)
        f.flush()
        os.fsync(f.fileno())
    draft.replace(file)


def save_result(store: Path, result: Result) -> None:
    """Write the summary; from then on the cell is finished."""
    write_json(cell_folder(store, result.key) / "result.json", result.summary())


def load_result(store: Path, key: str) -> Result | None:
    """Return a finished cell, or None."""
    folder = cell_folder(store, key)
    if not (folder / "result.json").exists():
        return None
    data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    cell = data.pop("cell")
    return Result(
        cell=Cell(
            task=cell["task"],
            model=ModelSpec(**cell["model"]),
            method=MethodSpec(**cell["method"]),
            train_size=cell["train_size"],
            knowledge=Knowledge(**cell["knowledge"]),
            seed=cell["seed"],
            retrieval=Retrieval(**cell["retrieval"]) if cell.get("retrieval") else None,
        ),
        rows=read_table(folder / "rows.jsonl"),
        latency=Latency(tuple(data.pop("latency")["seconds"]), 1),
        fit=Spent(**data.pop("fit")),
        human=_read_human(folder / HUMAN),
        **data,
    )


def _read_human(file: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def save_human(store: Path, result: Result) -> None:
    """Write what people graded of a cell's answers."""
    write_json(cell_folder(store, result.key) / HUMAN, result.human)


def save_fitted(folder: Path, fitted: Fitted) -> None:
    """Write the fitted program as JSON, without its language model, and what fitting spent."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "program.json", program_state(fitted.program))
    write_json(folder / "fit.json", {"spent": asdict(fitted.spent), "notes": fitted.notes, "lm": fitted.lm.model})


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
