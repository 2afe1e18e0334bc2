"""Find programs, tasks and metrics by name: a built-in by its file name, the user's own as `./file.py:name`."""

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy

import crossover.programs.modules
import crossover.programs.tasks
from crossover.models.errors import UserError, one_line
from crossover.programs.task import Task


def program_names() -> list[str]:
    """Return the names of the built-in programs: the files of programs/modules/."""
    return sorted(m.name for m in pkgutil.iter_modules(crossover.programs.modules.__path__))


def task_names() -> list[str]:
    """Return the names of the built-in tasks: the files of programs/tasks/, without its sub-folders."""
    return sorted(m.name for m in pkgutil.iter_modules(crossover.programs.tasks.__path__) if not m.ispkg)


def unknown(what: str, name: str, known: Iterable[str], others: str = "") -> UserError:
    """Return the error for an unknown name, with the nearest match and all known names."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1) or [c for c in choices if name and name in c]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {name!r}; {hint}choose from {', '.join(choices)}{others}")


def builtin_task(name: str) -> Task:
    """Return the built-in task of that name."""
    if name not in task_names():
        raise unknown("task", name, task_names(), ", or give the task `program` and `data`")
    task = importlib.import_module(f"crossover.programs.tasks.{name}").load()
    if not isinstance(task, Task):
        raise UserError(f"programs/tasks/{name}.py: load() returned a {type(task).__name__}; return a Task")
    return task


def load_program(
    name: str,
    *,
    inputs: Sequence[str],
    output: str,
    labels: Sequence[str],
    instructions: str,
    base: Path,
    kinds: Mapping[str, object] | None = None,
) -> Callable[[], dspy.Module]:
    """Return a function that builds the program: a built-in from the task's fields, or the user's own class.

    `kinds` are those of the fields of a `record`, which has them in place of one output with labels.
    """
    if is_reference(name):
        return _users_program(name, base)
    if name not in program_names():
        raise unknown("program", name, program_names(), " or ./file.py:Class")
    build = importlib.import_module(f"crossover.programs.modules.{name}").build
    outputs = {"kinds": dict(kinds)} if kinds else {"output": output, "labels": tuple(labels)}
    return partial(build, tuple(inputs), **outputs, instructions=instructions)


def is_reference(name: str) -> bool:
    """Return whether the name has the form `./file.py:name`."""
    return name.rpartition(":")[0].endswith(".py") or name.endswith(".py")


def load_object(reference: str, *, base: Path) -> Any:
    """Return the object that `./file.py:name` names; a relative path starts at `base`."""
    path, _, name = reference.rpartition(":")
    if not path.endswith(".py") or not name:
        raise UserError(f"{reference!r} names no object; write ./file.py:name")
    file = (base / path).resolve()
    if not file.is_file():
        raise UserError(f"{reference}: no file {path}; a relative path starts at the experiment file")
    module = _import_file(file, reference)
    public = [n for n in vars(module) if not n.startswith("_")]
    if name not in vars(module):
        raise unknown(f"name in {path}", name, public)
    return vars(module)[name]


def _users_program(reference: str, base: Path) -> Callable[[], dspy.Module]:
    """Return the user's class after checking that it builds a `dspy.Module`."""
    build = load_object(reference, base=base)
    try:
        program = build()
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(e, 160)}"
        raise UserError(f"{reference} cannot be built: {reason}; it is called without arguments") from e
    if not isinstance(program, dspy.Module):
        raise UserError(f"{reference} builds a {type(program).__name__}; it must be a dspy.Module")
    return build  # type: ignore[no-any-return]


def _import_file(file: Path, reference: str) -> ModuleType:
    """Import a Python file under a unique module name, so that two files of the same name do not collide."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{reference}: python cannot import this file; check its name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # The file may import its neighbours, also later; at the end, so that they hide no installed package.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise UserError(f"{reference} fails to import: {type(e).__name__}: {one_line(e, 160)}; correct the file") from e
    return module
