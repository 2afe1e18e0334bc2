"""Read scores that other tools wrote, one JSON object a line, as results that can be compared.

A line holds `id` and `score` (0 to 1, true or false, or null for a failure), and where there are any `seed`,
`cluster`, `split`, `seconds`, `usd`, `prompt_tokens` and `completion_tokens`.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Knowledge
from crossover.eval.store.document import chosen_cells
from crossover.eval.store.recorded import find_cell
from crossover.eval.store.result import Latency, Result
from crossover.models.errors import UserError
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.records import parsed_json
from crossover.programs.score import Row

TEST_SPLITS = ("", "test")
MOST_TOKENS = 2**31 - 1
"""Tokens that a row can hold."""


def read_operands(operands: Sequence[str], store: Path) -> list[Result]:
    """Return the results that files and keys of finished cells name, each an arm of its own, all of one task.

    A `.json` file is a document of `--json`, and names the arm that its verdict chose.

    Raises:
        UserError: one cannot be read, two are the same, or finished cells are of different tasks.
    """
    if len(set(operands)) < len(operands):
        raise UserError(f"{' '.join(operands)}: one stands twice; name different runs or files")
    read = {o: _read(o, store) for o in operands}
    cells = {o: r[0] for o, r in read.items() if r[0].split_sha256}
    tasks = sorted({r.cell.task for r in cells.values()})
    if len(tasks) > 1:
        raise UserError(f"{' '.join(operands)}: cells of different tasks ({', '.join(tasks)}); name cells of one task")
    labels = [_label(o, r) for o, r in read.items()]
    results = []
    for (operand, group), label in zip(read.items(), labels, strict=True):
        method, names = group[0].cell.method, {r.key: r.key for r in group}
        if labels.count(label) > 1 and operand in cells:
            method = replace(method, options={**method.options, "cell": group[0].key[:8]})
        elif labels.count(label) > 1:
            # Files of one name, in folders of their own.
            method = MethodSpec(str(Path(operand).with_suffix("")))
            names = {r.key: f"{method.name}-{r.cell.seed}" for r in group}
        for r in group:
            task = tasks[0] if tasks else r.cell.task
            results.append(replace(r, key=names[r.key], cell=replace(r.cell, task=task, method=method)))
    return _with_one_split(results)


def _read(operand: str, store: Path) -> list[Result]:
    """Return the results that one operand names, one a seed; those of a file of scores have no split."""
    file = Path(operand)
    if file.is_file() and file.suffix == ".json":
        return [find_cell(store, key) for key in chosen_cells(file)]
    return read_scores(file) if file.is_file() else [find_cell(store, operand)]


def read_scores(file: Path) -> list[Result]:
    """Return the scores of a file, one result a seed.

    Raises:
        UserError: a line is no JSON, lacks a field, repeats an id, or was not scored on test.
    """
    by_seed: dict[int, dict[str, Row]] = {}
    clusters: dict[str, str] = {}
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                data = _object(where, line)
                row, seed = _row(where, data), _seed(where, data)
                if row.id in by_seed.setdefault(seed, {}):
                    raise UserError(f"{where}: id {row.id!r} stands twice; give repeats different `seed` numbers")
                by_seed[seed][row.id] = row
                if data.get("cluster") is not None:
                    clusters[row.id] = str(data["cluster"])
    if not by_seed:
        raise UserError(f"{file}: no rows; write one JSON object a line with `id` and `score`")
    if clusters and (bare := next((i for rows in by_seed.values() for i in rows if i not in clusters), None)):
        raise UserError(f"{file}: id {bare!r} has no `cluster` and others have; give every row one, or none")
    first = set(next(iter(by_seed.values())))
    for seed, rows in by_seed.items():
        if rows.keys() != first:
            raise UserError(f"{file}: seed {seed} has other ids than the first seed; score the same examples")
    name = MethodSpec(file.stem)
    return [
        Result(
            key=f"{file.stem}-{seed}",
            cell=Cell("scores", ModelSpec("other tool"), name, None, Knowledge(), seed),
            split_sha256="",
            rows=list(rows.values()),
            serve_seconds=0.0,
            latency=Latency(tuple(r.seconds for r in rows.values() if r.seconds > 0), 1),
            fit=Usage(usd=None),
            local=False,
            clusters=clusters,
        )
        for seed, rows in sorted(by_seed.items())
    ]


def _object(where: str, line: str) -> Mapping[str, Any]:
    try:
        line.encode()  # bytes that are no UTF-8 came as halves of characters
        data = parsed_json(line)
    except UnicodeEncodeError as e:
        raise UserError(f"{where}: not UTF-8; save the file again in it") from e
    except ValueError as e:
        raise UserError(f"{where}: not JSON ({e}); write one JSON object a line") from e
    if not isinstance(data, dict) or "id" not in data or "score" not in data:
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise UserError(f"{where}: no `id` and `score` ({found}); name the fields so")
    split, selected = str(data.get("split") or ""), str(data.get("selected_on") or "")
    if split not in TEST_SPLITS:
        raise UserError(f"{where}: scored on {split!r}; only test scores are compared, for val has chosen the arms")
    if selected == "test":
        raise UserError(f"{where}: selected on 'test', so that its test score is too good; select on val, score again")
    return data


def _row(where: str, data: Mapping[str, Any]) -> Row:
    score = data["score"]
    if score is not None:
        if not isinstance(score, bool | int | float) or not 0 <= score <= 1:
            raise UserError(f"{where}: score {score!r} is not a number from 0 to 1; scale it; null is a failure")
        score = float(score)
    return Row(
        id=str(data["id"]),
        score=score,
        failure="" if score is not None else str(data.get("failure") or "no score"),
        prompt_tokens=_tokens(where, data, "prompt_tokens"),
        cached_tokens=_tokens(where, data, "cached_tokens"),
        completion_tokens=_tokens(where, data, "completion_tokens"),
        calls=1,
        seconds=_number(where, data, "seconds") or 0.0,
        usd=_number(where, data, "usd"),
        output={},
    )


def _number(where: str, data: Mapping[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: {key} {value!r} is not a number from 0 up; correct it or leave it out")
    return float(value)


def _tokens(where: str, data: Mapping[str, Any], key: str) -> int:
    number = _number(where, data, key) or 0
    if number > MOST_TOKENS:
        raise UserError(f"{where}: {key} {number:g} is more than a request can have; correct it or leave it out")
    return int(number)


def _seed(where: str, data: Mapping[str, Any]) -> int:
    seed = data.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{where}: seed {seed!r} is not a whole number; number the seeds")
    return seed


def _label(operand: str, results: Sequence[Result]) -> tuple[object, ...]:
    """Return what would make two operands one arm."""
    cell = results[0].cell
    return cell.model, cell.method.label, cell.train_size, cell.knowledge


def _with_one_split(results: Sequence[Result]) -> list[Result]:
    """Return the results with a split hash for those that came without: that of the cells, else one of the ids."""
    ids = "\n".join(sorted(r.id for r in results[0].rows))
    known = [r.split_sha256 for r in results if r.split_sha256]
    split = known[0] if known else hashlib.sha256(ids.encode()).hexdigest()
    return [r if r.split_sha256 else replace(r, split_sha256=split) for r in results]
