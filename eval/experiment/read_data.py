"""Read which files and columns a task of an experiment file takes its rows from."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from crossover.eval.experiment.document import Document, is_empty

SHARE = {"val": "float", "test": "float"}


def read_data(doc: Document, node: yaml.Node, split: yaml.Node | None) -> tuple[Mapping[str, Any], Mapping[str, float]]:
    """Return the task's sources by split, and the shares of the splits of one file.

    `data: x.csv`, `data: {file: x.csv, split: {…}}` and `data: hf:org/name` are short forms; `split` is the task's key.
    """
    data: Mapping[str, Any] = {}
    if isinstance(node, yaml.ScalarNode):
        text = str(doc.value(node))
        data = {"hf": text.removeprefix("hf:")} if text.startswith("hf:") else {"file": text}
    elif isinstance(node, yaml.MappingNode) and any(k.value == "file" for k, _ in node.value):
        entries = doc.mapping(node, "data", ("file", "split"))
        data, split = {"file": doc.typed(entries["file"], "data.file", "str") or ""}, entries.get("split", split)
    else:
        data = texts_of(doc, node, "data")
    shares = doc.typed_mapping(split, "split", SHARE) if split is not None else {}
    if split is not None and (sum(shares.values()) >= 1 or 0 in shares.values()):
        doc.fault(split, "`split` leaves a split without rows", "write shares such as `split: {val: 0.1, test: 0.2}`")
    if split is not None and not {"file", "hf"} & set(data):
        doc.fault(split, "`split` beside files that are splits already", "give one file, or leave `split` out")
    return data, shares


def named_columns(doc: Document, node: yaml.Node, what: str) -> dict[str, str]:
    """Return the columns of `input` or `output`, a name or a list of names, each with its kind if `output` gives it."""
    if isinstance(node, yaml.MappingNode) and what == "output":
        return {str(k.value): str(doc.typed(n, f"output.{k.value}", "str") or "") for k, n in node.value}
    names = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if bad := next((n for n in names if not isinstance(n, yaml.ScalarNode) or is_empty(n)), None):
        doc.fault(bad, f"`{what}` holds no name of a column", f"write `{what}: [Column, Other column]`")
        return {}
    return {str(n.value): "" for n in names}


def texts_of(doc: Document, node: yaml.Node, what: str) -> dict[str, Any]:
    """Return a mapping of names to texts; in `data`, a split may also be a mapping."""
    value = doc.value(node)
    if isinstance(value, dict) and all(
        isinstance(v, str) or (what == "data" and isinstance(v, dict)) for v in value.values()
    ):
        return value
    shape = "{train: a.jsonl, test: b.jsonl}" if what == "data" else "{text: input, label: output}"
    doc.fault(node, f"`{what}` is not a mapping of texts", f"write `{what}: {shape}`")
    return {}


def data_file(doc: Document, section: yaml.Node, value: Any, *, folder: bool = False) -> Any:
    """Return the absolute path of a data file, or of a corpus, which may be a folder; it must exist."""
    if not isinstance(value, str):
        return value
    path = (doc.file.parent / Path(os.path.expanduser(value))).resolve()
    if not path.is_file() and not (folder and path.is_dir()):
        inner = [n for _, n in section.value if n.value == value] if isinstance(section, yaml.MappingNode) else []
        doc.fault(
            (inner or [section])[0], f"no such file {value!r}", "check the path, which starts at the experiment file"
        )
    return str(path)
