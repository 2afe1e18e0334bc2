"""Read the user's rows from jsonl, csv, parquet or a Hugging Face dataset, each with its file and line."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError
from crossover.programs.task import Problem

HF_KEYS = ("hf", "name", "split", "revision")
"""Keys of a Hugging Face source: the repository, its configuration, the split and the revision."""


@dataclass(frozen=True)
class Record:
    """One row of the user's data."""

    values: Mapping[str, Any]
    where: str
    """`file:line`, or for parquet and Hugging Face `file:row`, from 1."""


Read = tuple[list[Record], list[Problem]]
"""The rows that could be read, and the problems of the others."""


def fault(where: str, what: str, remedy: str) -> Problem:
    """Return a problem of level `error`."""
    return Problem("error", where, what, remedy)


def few(problems: Sequence[Problem], limit: int = 5) -> list[Problem]:
    """Return the first problems of one kind and one that counts the rest."""
    if len(problems) <= limit + 1:
        return list(problems)
    last = problems[limit]
    return [
        *problems[:limit],
        Problem(last.level, last.where, f"the same here and {len(problems) - limit - 1} times more", last.remedy),
    ]


def one_line(error: Exception, most: int) -> str:
    """Return the start of an error's text on one line."""
    return " ".join(str(error).split())[:most]


def read_source(source: Any, *, base: Path, key: str) -> Read:
    """Return the rows of a file path or of a mapping such as `{hf: org/name, split: test}`.

    `key` is the source's key in the experiment file, for messages.
    """
    if isinstance(source, Mapping):
        return _read_hf(source, key)
    return read_file(base / str(source), shown=shown_path(base / str(source), base), key=key)


def shown_path(path: Path, base: Path) -> str:
    """Return the path as messages show it: relative to the experiment file's folder if it lies below that."""
    path, base = path.resolve(), base.resolve()
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def read_file(path: Path, *, shown: str = "", key: str = "data") -> Read:
    """Return the rows of a .jsonl, .csv or .parquet file with their `file:line`."""
    shown = shown or str(path)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        what = f"{key} is a {path.suffix or 'nameless'} file"
        return [], [fault(shown, what, "use .jsonl, .csv, .parquet or {hf: org/name}")]
    if not path.is_file():
        return [], [fault(shown, f"{key}: no such file", "check the path, which starts at the experiment file")]
    records, problems = list[Record](), list[Problem]()
    try:
        for row in readers[path.suffix](path, shown):
            if isinstance(row, Record):
                records.append(row)
            else:
                problems.append(row)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as e:
        problems.append(fault(shown, f"cannot be read: {one_line(e, 120)}", "save it again, text as UTF-8"))
    if not records and not problems:
        problems.append(fault(shown, f"{key} has no rows", "give it at least one"))
    return records, few(problems)


def _read_jsonl(path: Path, shown: str) -> Iterator[Record | Problem]:
    """Yield a record or a problem for each line that is not blank."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{shown}:{number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as e:
                yield fault(where, f"not valid JSON: {e.msg} at column {e.colno}", "fix or delete the line")
                continue
            if isinstance(values, dict):
                yield Record(values, where)
            else:
                yield fault(where, f"a {type(values).__name__}, not an object", "write one {…} a line")


def _read_csv(path: Path, shown: str) -> Iterator[Record | Problem]:
    """Yield a record or a problem for each row below the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        line = reader.line_num + 1
        for cells in reader:
            where, line = f"{shown}:{line}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) == len(header):
                yield Record(dict(zip(header, cells, strict=True)), where)
            else:
                yield fault(where, f"{len(cells)} cells under {len(header)} columns", "quote cells that hold commas")


def _read_parquet(path: Path, shown: str) -> Iterator[Record | Problem]:
    """Yield one record for each row."""
    from pyarrow import parquet

    for number, values in enumerate(parquet.read_table(path).to_pylist(), 1):
        yield Record(values, f"{shown}:{number}")


def _read_hf(source: Mapping[str, Any], key: str) -> Read:
    """Return the rows of one split of a Hugging Face dataset, class numbers turned into class names."""
    if "hf" not in source or not set(source) <= set(HF_KEYS):
        return [], [fault(key, f"not a data source: {dict(source)}", f"use a path or {{{', '.join(HF_KEYS)}}}")]
    import datasets

    options = {k: str(v) for k, v in source.items() if k in ("name", "revision")}
    shown = f"{source['hf']}[{source['split']}]"
    try:
        data = datasets.load_dataset(str(source["hf"]), split=str(source["split"]), **options)
    # The hub client raises errors of several libraries; the user needs the name and the reason of any.
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(e, 160)}"
        remedy = "check the name, the split and the network, or give a file"
        return [], [fault(shown, f"{key} cannot be loaded: {reason}", remedy)]
    names = {c: f for c, f in data.features.items() if isinstance(f, datasets.ClassLabel)}
    records = []
    for number, row in enumerate(data, 1):
        values = {c: names[c].int2str(v) if c in names and v is not None else v for c, v in row.items()}
        records.append(Record(values, f"{shown}:{number}"))
    return records, [] if records else [fault(shown, f"{key} has no rows", "give it at least one")]


def hf_splits(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits of a whole Hugging Face dataset: train, test and, if it has one, val."""
    import datasets

    if not set(data) <= set(HF_KEYS) - {"split"}:
        others = ", ".join(k for k in data if k not in ("hf", "name", "revision"))
        raise UserError(f"`data` mixes `hf` with {others}; give each split its own source")
    options = {"config_name": data.get("name"), "revision": data.get("revision")}
    try:
        present = datasets.get_dataset_split_names(str(data["hf"]), **options)
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(e, 160)}"
        raise UserError(
            f"{data['hf']} cannot be loaded: {reason}; check the name and the network, or give files"
        ) from e
    val = next((n for n in ("validation", "val", "dev") if n in present), "")
    splits = {"train": "train", "val": val, "test": "test"}
    return {name: {**data, "split": split} for name, split in splits.items() if split}
