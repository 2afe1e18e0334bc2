"""Read YAML as nodes, within bounds: a small file may stand for more than any memory holds."""

import re
from pathlib import Path

import yaml

from crossover.models.errors import UserError

MOST_BYTES, MOST_NODES, DEEPEST = 200_000, 20_000, 50
"""Bounds of a file, of its values once aliases are written out, and of their nesting."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_text(file: Path) -> str:
    """Return the text of an experiment file.

    Raises:
        UserError: there is no such file, or it is too large to be one.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no regular file" if file.exists() else "no such file"
        raise UserError(f"{file}: {what}; give the path of an experiment file")
    if file.stat().st_size > MOST_BYTES:
        raise UserError(
            f"{file}: {file.stat().st_size / 1e3:.0f} kB, too large for one; give the path of an experiment file"
        )
    return file.read_text(encoding="utf-8")


def composed(text: str, where: str) -> yaml.Node | None:
    """Return a YAML text as nodes, None for an empty one.

    Raises:
        yaml.YAMLError: it is no YAML.
        UserError: it is nested too deeply, or too large once its aliases are written out.
    """
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError(f"{where}: nested more than {DEEPEST} deep; write it flatter") from None
    nodes, waiting = 0, [] if root is None else [(root, 1)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if isinstance(node, yaml.ScalarNode) and (odd := NO_TEXT.search(node.value)):
            line = node.start_mark.line + 1
            raise UserError(f"{where}:{line}: U+{ord(odd[0]):04X} cannot be part of a text; remove it")
        if depth > DEEPEST:
            raise UserError(f"{where}: nested more than {DEEPEST} deep; write it flatter")
        if nodes > MOST_NODES:
            raise UserError(f"{where}: more than {MOST_NODES} values once its aliases are written out; write fewer")
        waiting += [(inner, depth + 1) for inner in below(node)]
    return root


def below(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes directly below a node, the keys of a mapping among them."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
