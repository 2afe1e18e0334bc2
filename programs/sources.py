"""Read the rows of a source that an experiment file names: a file, or a dataset of the Hugging Face hub."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError, one_line
from crossover.programs.readers import READERS
from crossover.programs.records import Problem, Read, Record, fault, few

HF_KEYS = ("hf", "name", "split", "revision")
"""Keys of a Hugging Face source: the repository, its configuration, the split and the revision."""
MOST_BYTES = 4_000_000_000
"""Largest data file; its rows take several times as much memory."""
HIDDEN = -1
"""Class number that datasets give to rows whose labels are kept secret."""


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


def data_suffix(path: Path) -> str:
    """Return the suffix that names the file's format: lower case, `.gz` left out."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_file(path: Path, *, shown: str = "", key: str = "data") -> Read:
    """Return the rows of a data file with their `file:line`, and all of its problems."""
    shown, suffix = shown or str(path), data_suffix(path)
    if suffix not in READERS:
        what = f"{key} is a {suffix or 'nameless'} file"
        return [], [fault(shown, what, f"use {', '.join(READERS)} or {{hf: org/name}}")]
    if not path.is_file():
        return [], [fault(shown, f"{key}: no such file", "check the path, which starts at the experiment file")]
    records, problems = list[Record](), list[Problem]()
    try:
        for row in READERS[suffix](_unpacked(path), shown):
            if isinstance(row, Record):
                records.append(row)
            else:
                problems.append(row)
    # pyarrow, openpyxl and what they unpack with raise errors of every kind for a file that is damaged.
    except Exception as e:
        problems.append(fault(shown, f"cannot be read: {one_line(e, 120)}", "save it again, text as UTF-8"))
    if not records and not any(p.level == "error" for p in problems):
        problems.append(fault(shown, f"{key} has no rows", "give it at least one"))
    return records, few(problems)


def _unpacked(path: Path) -> bytes:
    """Return the bytes of a file, those that `.gz` stands for where that is its suffix.

    Raises:
        ValueError: they are more than `MOST_BYTES`.
    """
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES / 1e9:g} GB{' once it is unpacked' if packed else ''}")
    return data


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
    if hidden := [c for c in names if len(data) and all(v == HIDDEN for v in data[c])]:
        what = f"the values of {hidden[0]!r} are hidden: each is {HIDDEN}"
        remedy = f"use a split that has them, such as `{key.rpartition('.')[2]}: {{hf: …, split: validation}}`"
        return [], [fault(shown, what, remedy)]
    records = []
    for number, row in enumerate(data, 1):
        values = {c: names[c].int2str(v) if c in names and v not in (None, HIDDEN) else v for c, v in row.items()}
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
    # Train alone is split here, as a file is.
    splits = {"train": "train", "val": val, "test": "test" if "test" in present or present != ["train"] else ""}
    return {name: {**data, "split": split} for name, split in splits.items() if split}
