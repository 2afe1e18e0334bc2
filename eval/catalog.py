"""List what there is (tasks, programs, methods, models, runs) by reading files; nothing of ours is imported."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Folder that holds the rooms."""


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
                tree = ast.parse(file.read_text(encoding="utf-8"))
                found.append((Entry(file.stem, first_line(tree), file), tree))
    return found


def tasks() -> list[Entry]:
    """Return the built-in tasks: the files of programs/tasks/."""
    return [entry for entry, _ in _modules("programs/tasks")]


def modules() -> list[Entry]:
    """Return the built-in programs: the files of programs/modules/."""
    return [entry for entry, _ in _modules("programs/modules")]


def methods() -> list[Entry]:
    """Return the methods: the files of optimizers/ and finetune/ that hold a class of the file's name with a `fit`."""
    return [entry for entry, tree in _modules("optimizers", "finetune") if _method_class(entry.name, tree)]


def backends() -> list[Entry]:
    """Return the retrieval backends: the files of programs/retrieval/ but the protocol."""
    return [entry for entry, _ in _modules("programs/retrieval") if entry.name != "base"]


def models() -> list[Entry]:
    """Return the forms in which a model can be named."""
    return [
        Entry("embedded", "The small model that ships with the project; runs anywhere, offline."),
        Entry("local:<folder or hub id>", "Any Hugging Face causal language model, in this process."),
        Entry("<provider>/<model>", "Any LiteLLM name: openai/…, anthropic/…, ollama_chat/…, hosted_vllm/…"),
    ]


def runs(store: Path) -> list[Entry]:
    """Return the comparisons kept in the store, by name."""
    found = []
    for file in sorted((store / "runs").glob("*.json")):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            chosen = ", ".join(f"{v['task']}: {v['choose'] or 'undecided'}" for v in data["verdict"])
            found.append(Entry(file.stem, f"{len(data['arms'])} arms; {chosen}", file))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Entry(file.stem, "unreadable; run the experiment again", file))
    return found


def options(method: Entry) -> dict[str, str]:
    """Return a method's options with their types as written: the fields of its dataclass, not imported."""
    for entry, tree in _modules("optimizers", "finetune"):
        if entry.name == method.name and (cls := _method_class(entry.name, tree)):
            fields = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
            return {node.target.id: ast.unparse(node.annotation) for node in fields if isinstance(node.target, ast.Name)}
    return {}


def _method_class(name: str, tree: ast.Module) -> ast.ClassDef | None:
    """Return the class that makes a file a method: CamelCase of the file name, with a `fit`."""
    wanted = "".join(word.capitalize() for word in name.split("_"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            fits = any(isinstance(item, ast.FunctionDef) and item.name == "fit" for item in node.body)
            return node if fits else None
    return None
