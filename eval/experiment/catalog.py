"""List the tasks, programs, methods and retrieval backends by reading their files; none of them is imported."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).absolute().parents[2]
"""The folder of the installed package."""
RETRIEVAL = "programs/retrieval"
MethodKind = Literal["in_context", "in_weights", "mixed"]
"""Whether prompts are adapted, or weights; `mixed` is a chain of both."""
METHOD_FOLDERS: dict[str, MethodKind] = {"optimizers": "in_context", "finetune": "in_weights"}
"""Folder of a method's file to its kind."""


@dataclass(frozen=True)
class Entry:
    """One thing that can be named on the command line or in an experiment file."""

    name: str
    summary: str
    """First line of its docstring."""
    file: Path | None = None


@dataclass(frozen=True)
class Traits:
    """The kind of a method, and whether it learns and searches, read from its file."""

    kind: MethodKind = "in_context"
    learns: bool = True
    """The fitted program depends on train."""
    searches: bool = False
    """Prompts are searched, so that the method has a budget and a teacher."""


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
    return [entry for entry, tree in _modules(*METHOD_FOLDERS) if _named_class(entry.name, tree, "fit")]


def traits(method: str) -> Traits:
    """Return the traits of a method by its file name, or the defaults for a method without a file."""
    for folder, kind in METHOD_FOLDERS.items():
        file = ROOT / folder / f"{method}.py"
        if method.isidentifier() and file.exists():
            cls = _named_class(method, _tree(file, file.stat().st_mtime_ns), "fit")
            given = {} if cls is None else _class_variables(cls)
            return Traits(kind, bool(given.get("learns", True)), bool(given.get("searches", False)))
    return Traits()


def backends() -> list[Entry]:
    """Return the retrieval backends: the files of programs/retrieval/ that hold a class of the file's name."""
    return [entry for entry, tree in _modules(RETRIEVAL) if _named_class(entry.name, tree, "search")]


def options(method: Entry) -> dict[str, str]:
    """Return a method's options with their types as written: the fields of its dataclass, not imported."""
    return _options(method, "fit", *METHOD_FOLDERS)


class Option(NamedTuple):
    """One option of a method, as its class describes it."""

    name: str
    type: str
    default: str
    meaning: str
    """The text under the field; empty where its name says all."""


def described_options(method: Entry) -> list[Option]:
    """Return a method's options with their defaults and their meaning, read from its file."""
    file = method.file
    tree = None if file is None else _tree(file, file.stat().st_mtime_ns)
    cls = None if tree is None else _named_class(method.name, tree, "fit")
    found = []
    for node, after in zip(cls.body, [*cls.body[1:], None], strict=True) if cls else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kind = ast.unparse(node.annotation)
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            if not kind.startswith("ClassVar"):
                default = "" if node.value is None else ast.unparse(node.value)
                found.append(Option(node.target.id, kind, default, " ".join(str(text).split())))
    return found


def option_defaults(method: str) -> dict[str, object]:
    """Return the defaults of a method's options; empty for a method without a file."""
    entry = next((m for m in methods() if m.name == method), None)
    return {o.name: ast.literal_eval(o.default) for o in described_options(entry) if o.default} if entry else {}


def backend_options(backend: Entry) -> dict[str, str]:
    """Return a retrieval backend's options with their types as written; where it keeps its index is not one."""
    return {k: v for k, v in _options(backend, "search", RETRIEVAL).items() if k != "folder" and not k.startswith("_")}


def _options(wanted: Entry, does: str, *folders: str) -> dict[str, str]:
    """Return the annotated fields of the class that makes a file what it is."""
    for entry, tree in _modules(*folders):
        if entry.name == wanted.name and (cls := _named_class(entry.name, tree, does)):
            types = {name: ast.unparse(node.annotation) for name, node in _annotated(cls).items()}
            return {name: kind for name, kind in types.items() if not kind.startswith("ClassVar")}
    return {}


def _class_variables(cls: ast.ClassDef) -> dict[str, object]:
    """Return the values of a class's `ClassVar`s."""
    return {
        name: ast.literal_eval(node.value)
        for name, node in _annotated(cls).items()
        if ast.unparse(node.annotation).startswith("ClassVar") and node.value is not None
    }


def _annotated(cls: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    """Return the annotated assignments of a class by name."""
    return {n.target.id: n for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def _named_class(name: str, tree: ast.Module, does: str) -> ast.ClassDef | None:
    """Return the class that makes a file a method or a backend: CamelCase of the file name, with what it does."""
    wanted = "".join(word.capitalize() for word in name.split("_"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            has = any(isinstance(item, ast.FunctionDef) and item.name == does for item in node.body)
            return node if has else None
    return None
