"""Collect the standard library's documentation strings; a script for a process of its own.

Other packages patch the standard library when they are imported (transformers adds methods to `logging.Logger`), so
docstrings.py runs this file in a fresh interpreter without site packages. It imports nothing of this project.
"""

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from types import ModuleType

SKIPPED = frozenset(
    (
        "__main__",
        "antigravity",
        "cgitb",
        "distutils",
        "encodings",
        "ensurepip",
        "genericpath",
        "idle_test",
        "idlelib",
        "lib2to3",
        "msilib",
        "nt",
        "ntpath",
        "nturl2path",
        "posix",
        "pydoc_data",
        "readline",
        "rlcompleter",
        "site",
        "test",
        "tests",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    )
)
"""Modules that act when imported, need a display, contain tests, or repeat another module."""

PUBLIC_HOME = {"posix": "os", "posixpath": "os.path", "_collections_abc": "collections.abc", "_pydecimal": "decimal"}
"""Public module under which the documentation lists the contents of a private one."""

_SIGNATURE = re.compile(r"(class\s+)?[\w.]+\(.*\)\s*(->|=|--|:|$)")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)\.(?=\s)")


def collect() -> list[dict[str, str]]:
    """Return name, module, text and first sentence of every documented public callable."""
    documented: dict[str, dict[str, str]] = {}
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        modules = dict(_public_modules())
        for home, module in modules.items():
            for name, value in _callables_of(home, module, modules):
                documented.setdefault(name, _documented(name, home, str(value.__doc__ or "")))
    return list(documented.values())


def _public_modules() -> Iterator[tuple[str, ModuleType]]:
    """Import and yield the public modules that this interpreter has, packages with their submodules."""
    waiting = sorted(sys.stdlib_module_names)
    while waiting:
        name = waiting.pop(0)
        last = name.rpartition(".")[2]
        if last.startswith("_") or last in SKIPPED:
            continue
        # Modules of other platforms fail to import in many ways, some by SystemExit.
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit):
            continue
        yield PUBLIC_HOME.get(name, name), module
        if hasattr(module, "__path__"):
            waiting += [f"{name}.{child.name}" for child in pkgutil.iter_modules(module.__path__)]


def _callables_of(home: str, module: ModuleType, modules: Collection[str]) -> Iterator[tuple[str, object]]:
    """Yield name and object of the functions, classes and methods whose public home is this module."""
    exported = [n for n in vars(module).get("__all__", sorted(vars(module))) if not n.startswith("_")]
    values = [(n, vars(module)[n]) for n in exported if n in vars(module)]
    for name, value in values:
        if (inspect.isclass(value) or inspect.isroutine(value)) and _home(value, home, modules) == home:
            yield f"{home}.{name}", value
            if inspect.isclass(value):
                for key, member in sorted(vars(value).items()):
                    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
                    if not key.startswith("_") and inspect.isroutine(function):
                        yield f"{home}.{name}.{key}", function


def _home(value: object, seen_in: str, modules: Collection[str]) -> str:
    """Return the public module that a callable belongs to, so that re-exports count once."""
    owner = str(value.__module__ or seen_in)
    for name in (PUBLIC_HOME.get(owner, owner), owner.lstrip("_")):
        if name in modules:
            return name
    is_private_part = owner.startswith("_") and owner.partition(".")[0] in sys.stdlib_module_names
    return seen_in if is_private_part else owner


def _documented(name: str, module: str, doc: str) -> dict[str, str]:
    """Return the callable with its documentation as running text."""
    lines = inspect.cleandoc(doc).splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE.match(lines[0])):
        described = _SIGNATURE.sub("", lines[0], count=1).strip(" -") if lines[0].strip() else ""
        lines = lines[1:]
        if described[:1].isalpha() and len(described.split()) >= 4:
            lines = [described, *lines]
            break
    session = next((i for i, line in enumerate(lines) if line.lstrip().startswith(">>>")), len(lines))
    lines = lines[:session]
    paragraph = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
    first = " ".join(" ".join(lines[:paragraph]).split())
    sentence = _SENTENCE_END.split(first, maxsplit=1)[0].rstrip(" .:")
    text = " ".join(" ".join(lines).split())
    return {"name": name, "module": module, "text": text, "sentence": f"{sentence}." if sentence else ""}


if __name__ == "__main__":
    json.dump(collect(), sys.stdout)
