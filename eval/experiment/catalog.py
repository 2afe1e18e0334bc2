"""List what there is (tasks, programs, methods, finished cells) by reading files; none of them is imported."""

import ast
import json
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from crossover.eval.experiment.spec import MethodSpec

ROOT = Path(__file__).absolute().parents[2]
"""The folder of the installed package."""
RETRIEVAL = "programs/retrieval"


@dataclass(frozen=True)
class Entry:
    """One thing that can be named on the command line or in an experiment file."""

    name: str
    summary: str
    """First line of its docstring."""
    file: Path | None = None


def first_line(tree: ast.Module) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _modules(*folders: str) -> list[tuple[Entry, ast.Module]]:
    """Return every module of the folders with its syntax tree."""
    found = []
    for folder in folders:
        for file in sorted((ROOT / folder).glob("*.py")):
            if not file.stem.startswith("_"):
                tree = _tree(file, file.stat().st_mtime_ns)
                found.append((Entry(file.stem, first_line(tree), file), tree))
    return found


@cache
def _tree(file: Path, written: int) -> ast.Module:
    """Return the syntax tree of a file as it was written then: every method of an experiment is looked up in all."""
    return ast.parse(file.read_text(encoding="utf-8"))


def tasks() -> list[Entry]:
    """Return the built-in tasks: the files of programs/tasks/."""
    return [entry for entry, _ in _modules("programs/tasks")]


def modules() -> list[Entry]:
    """Return the built-in programs: the files of programs/modules/."""
    return [entry for entry, _ in _modules("programs/modules")]


def methods() -> list[Entry]:
    """Return the methods: the files of optimizers/ and finetune/ that hold a class of the file's name with a `fit`."""
    return [entry for entry, tree in _modules("optimizers", "finetune") if _named_class(entry.name, tree, "fit")]


def searches(name: str) -> bool:
    """Return whether the method searches prompts, and so has a budget and a teacher: it imports the search."""
    file = ROOT / "optimizers" / f"{name}.py"
    if not file.exists():
        return False
    tree = _tree(file, file.stat().st_mtime_ns)
    return any(
        isinstance(n, ast.ImportFrom) and n.module == "crossover.optimizers.common.search" for n in ast.walk(tree)
    )


def backends() -> list[Entry]:
    """Return the retrieval backends: the files of programs/retrieval/ that hold a class of the file's name."""
    return [entry for entry, tree in _modules(RETRIEVAL) if _named_class(entry.name, tree, "search")]


def runs(store: Path) -> list[str]:
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


def options(method: Entry) -> dict[str, str]:
    """Return a method's options with their types as written: the fields of its dataclass, not imported."""
    return _options(method, "fit", "optimizers", "finetune")


def backend_options(backend: Entry) -> dict[str, str]:
    """Return a retrieval backend's options with their types as written; where it keeps its index is not one."""
    return {k: v for k, v in _options(backend, "search", RETRIEVAL).items() if k != "folder" and not k.startswith("_")}


def _options(wanted: Entry, does: str, *folders: str) -> dict[str, str]:
    """Return the annotated fields of the class that makes a file what it is."""
    for entry, tree in _modules(*folders):
        if entry.name == wanted.name and (cls := _named_class(entry.name, tree, does)):
            fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
            return {
                node.target.id: ast.unparse(node.annotation) for node in fields if isinstance(node.target, ast.Name)
            }
    return {}


def _named_class(name: str, tree: ast.Module, does: str) -> ast.ClassDef | None:
    """Return the class that makes a file a method or a backend: CamelCase of the file name, with what it does."""
    wanted = "".join(word.capitalize() for word in name.split("_"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            has = any(isinstance(item, ast.FunctionDef) and item.name == does for item in node.body)
            return node if has else None
    return None
