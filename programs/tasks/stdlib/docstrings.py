"""The documentation strings of Python's standard library: real text that every machine has."""

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from crossover.models.cache_folder import cache_folder
from crossover.models.jsonl import write_text
from crossover.programs.splits import fold


@dataclass(frozen=True)
class Documented:
    """One public callable with its documentation."""

    name: str
    """Qualified, such as `shutil.copytree`."""
    module: str
    """The public module it belongs to, such as `os.path`."""
    text: str
    """Its documentation as running text, without signature lines and interpreter sessions."""
    sentence: str
    """The first sentence of `text`."""


@cache
def harvest() -> tuple[Documented, ...]:
    """Return the documented public callables of the standard library, each text once, ordered by name."""
    entries = _collected()
    by_text: dict[str, Documented] = {}
    # The shortest name first, so that `random.choice` stands for `random.Random.choice`, the same function.
    for item in sorted((Documented(**entry) for entry in entries), key=lambda item: (item.name.count("."), item.name)):
        if len(item.text.split()) >= 4:
            by_text.setdefault(fold(item.text), item)
    return tuple(sorted(by_text.values(), key=lambda item: item.name))


def _collected() -> list[dict[str, str]]:
    """Return what collect.py prints, from the cache folder if this Python wrote it there before: that saves a second.

    A folder that cannot be written, or a damaged file, costs only the second.
    """
    script = Path(__file__).with_name("collect.py")
    made_by = hashlib.sha256(script.read_bytes() + sys.version.encode()).hexdigest()[:16]
    file = cache_folder() / f"stdlib-{made_by}.json"
    with contextlib.suppress(OSError, ValueError):
        return list(json.loads(file.read_bytes()))
    command = [sys.executable, "-I", "-S", str(script)]
    text = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL, text=True).stdout
    with contextlib.suppress(OSError):
        write_text(file, text)
    return list(json.loads(text))


def mask(text: str, names: Collection[str]) -> str:
    """Return the text with each of the names, as a whole word in any case, replaced by `___`."""
    if text.isascii():
        # Most names are not in the text, and a pattern takes longer to compile than to search with.
        lower = text.lower()
        names = [n for n in names if n.lower() in lower]
    if not any(names):
        return text
    pattern = "|".join(re.escape(n) for n in sorted(names, key=lambda n: (-len(n), n)) if n)
    return re.sub(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", "___", text, flags=re.IGNORECASE)
