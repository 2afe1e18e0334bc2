"""Read the JSON document of a comparison, which `--json` writes."""

import json
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError

SCHEMA_VERSION = 2
"""Version of the documents that are written."""
READABLE_VERSIONS = (1, SCHEMA_VERSION)
"""Versions of the documents that are read; the first one has no ids, and names arms by their names."""


def check_version(document: dict[str, Any], where: str, remedy: str) -> None:
    """Check that a document is of a version that is read.

    Raises:
        UserError: it is of another.
        KeyError: it has no version.
    """
    if (version := document["schema_version"]) not in READABLE_VERSIONS:
        known = " or ".join(map(str, READABLE_VERSIONS))
        raise UserError(f"{where}: schema_version {version!r} is not {known}; {remedy}")


def chosen_cells(file: Path) -> list[str]:
    """Return the keys of the cells, one a seed, of the arm that the verdict of a document chose.

    Raises:
        UserError: the file is no such document, or it chose no arm, or arms of several tasks.
    """
    remedy = "give a file that `crossover run --json` wrote, or the key of a cell"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        check_version(document, str(file), remedy)
        chosen = [v["choose"] for v in document["verdict"] if v["choose"] is not None]
        if len(chosen) != 1:
            raise UserError(f"{file}: its verdicts choose {len(chosen)} arms; name one cell of it by its key")
        arm = next(a for a in document["arms"] if chosen[0] in (a.get("id"), a["name"]))
        return [str(key) for key in arm["cells"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as e:
        raise UserError(f"{file}: not a comparison ({type(e).__name__}: {e}); {remedy}") from None
