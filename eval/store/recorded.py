"""Remember which cells an experiment consisted of, so that its verdict can be reached again without its data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Compare, Experiment, Needs, Prices, params_of
from crossover.eval.store.cells import load_result
from crossover.eval.store.names import file_name
from crossover.eval.store.result import Result
from crossover.models.errors import UserError
from crossover.models.jsonl import write_json


@dataclass(frozen=True)
class Recorded:
    """One experiment as the store remembers it."""

    experiment: str
    results: tuple[Result, ...]
    """In the order of the experiment file."""
    planned: int
    """Cells of the experiment; in a record of an older version, those that were finished."""
    needs: Needs
    prices: Prices
    params: dict[str, Any] = field(default_factory=dict)
    """All that file and flags said; empty in a record of an older version."""
    command: str = ""
    """The command line that measured it; empty where Python code did, and in a record of an older version."""

    @property
    def compare(self) -> Compare:
        """Return what the experiment compares, `methods` in a record of an older version."""
        return "all" if self.params.get("compare") == "all" else "methods"


def record(
    store: Path,
    experiment: Experiment,
    keys: Sequence[str],
    splits: Mapping[str, str] | None = None,
    planned: int | None = None,
) -> None:
    """Remember the finished cells of an experiment, of how many, its needs and its prices.

    The last run of a name counts. Without `planned` all are finished.
    """
    needs, prices = asdict(experiment.needs), asdict(experiment.prices)
    facts: dict[str, Any] = {"experiment": experiment.name, "cells": list(keys), "needs": needs, "prices": prices}
    facts |= {"params": params_of(experiment), "split_sha256": dict(splits or {}), "command": experiment.command}
    facts |= {"planned": len(keys) if planned is None else planned}
    file = _folder(store) / f"{file_name(experiment.name)}.json"
    # A run that had nothing left to do is still the newest.
    number = 1 + max((_order(f)[0] for f in _folder(store).glob("*.json")), default=0)
    write_json(file, facts | {"number": number})


def read_recorded(store: Path, name: str | None = None) -> Recorded:
    """Return an experiment with its results, the one that ran last when no name is given.

    Raises:
        UserError: nothing of that name was recorded, or a cell of it is gone.
    """
    files = sorted(_folder(store).glob("*.json"), key=_order)
    if not files:
        raise UserError(f"{store}: no finished run is recorded here; `crossover run` first, or name the --store")
    named = [f for f in files if name is None or _name(f) == name]
    if not named:
        raise UserError(f"{store}: no run is named {name!r}; use one of {', '.join(sorted(map(_name, files)))}")
    file = named[-1]
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        needs, prices = Needs(**facts["needs"]), Prices(**facts["prices"])
        keys, experiment = [str(k) for k in facts["cells"]], str(facts["experiment"])
    except (ValueError, KeyError, TypeError) as e:
        what = f"{file}: not readable as a recorded run ({type(e).__name__}: {e})"
        raise UserError(f"{what}; `crossover run` the experiment again, which spends nothing on finished cells") from e
    found = [load_result(store, key) for key in keys]
    results = tuple(r for r in found if r is not None)
    if len(results) < len(keys):
        gone = next(k for k, r in zip(keys, found, strict=True) if r is None)
        raise UserError(f"{store}: cell {gone} of {experiment!r} is gone; `crossover run` the experiment again")
    planned, params, command = facts.get("planned", len(keys)), facts.get("params", {}), facts.get("command", "")
    return Recorded(experiment, results, int(planned), needs, prices, params, str(command))


def params_with(store: Path, key: str) -> dict[str, Any]:
    """Return the settings of the last recorded experiment that holds a cell, empty when there is none."""
    return next((dict(f["params"]) for f in recorded_facts(store) if key in f["cells"] and f.get("params")), {})


def recorded_facts(store: Path) -> Iterator[dict[str, Any]]:
    """Yield the records as `record` wrote them, the newest first; damaged ones are left out."""
    for file in sorted(_folder(store).glob("*.json"), key=_order, reverse=True):
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if {"experiment", "cells", "prices"} <= facts.keys():
                yield facts
        except (OSError, ValueError, AttributeError):  # a damaged record of another experiment is no hindrance
            continue


def changed_tasks(store: Path, name: str, splits: Mapping[str, str]) -> list[str]:
    """Return the tasks whose data differs from that of the last run of this experiment."""
    before = _of_last_run(store, name, "split_sha256")
    return [task for task, split in splits.items() if before.get(task, split) != split]


def is_changed(store: Path, experiment: Experiment) -> bool:
    """Return whether file and flags say something else than at the last run of this experiment."""
    return _of_last_run(store, experiment.name, "params") != params_of(experiment)


def _of_last_run(store: Path, name: str, key: str) -> dict[str, Any]:
    """Return what the record of an experiment holds under a key; nothing without one, or if it is damaged."""
    try:
        return dict(json.loads((_folder(store) / f"{file_name(name)}.json").read_text(encoding="utf-8")).get(key, {}))
    except (OSError, ValueError, AttributeError, TypeError):  # no run yet, or a record that the next one replaces
        return {}


def find_cell(store: Path, prefix: str) -> Result:
    """Return the finished cell whose key starts so.

    Raises:
        UserError: none or several do.
    """
    found = sorted(f.parent.name for f in (store / "cells").glob(f"{prefix}*/result.json")) if prefix.isalnum() else []
    if len(found) > 1:
        raise UserError(f"{prefix}: {len(found)} cells start so ({found[0]}, {found[1]}); write more of it")
    result = load_result(store, found[0]) if found else None
    if result is None:
        raise UserError(f"{prefix}: neither a file nor a finished cell of {store}; see `crossover ls runs`")
    return result


def finished_cell_lines(store: Path) -> list[str]:
    """Return a line for each finished cell of the store, newest last: when, its key and what it measured."""
    lines = []
    for file in sorted((store / "cells").glob("*/result.json"), key=lambda f: (f.stat().st_mtime, f.parent.name)):
        when = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        try:
            cell = json.loads(file.read_text(encoding="utf-8"))["cell"]
            method = MethodSpec(**cell["method"]).label
            what = f"{cell['task']}  {cell['model']['name']}  {method}  seed={cell['seed']}"
        except (OSError, ValueError, KeyError, TypeError):
            what = "unreadable; delete the folder and run again"
        lines.append(f"{when}  {file.parent.name}  {what}")
    return lines


def _order(file: Path) -> tuple[int, int, str]:
    """Return what sorts records from the first to the last; a clock that went backwards does not mislead it."""
    try:
        number = int(json.loads(file.read_text(encoding="utf-8"))["number"])
    except (OSError, ValueError, KeyError, TypeError):
        number = 0
    return number, file.stat().st_mtime_ns, file.name


def _name(file: Path) -> str:
    """Return the experiment of a record, or the name of its file where it is damaged."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["experiment"])
    except (OSError, ValueError, KeyError, TypeError):
        return file.stem


def _folder(store: Path) -> Path:
    return store / "comparisons"
