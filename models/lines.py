"""Read back JSON lines that were written while the process could die."""

import json
from pathlib import Path
from typing import Any


def whole_lines(file: Path | None) -> list[dict[str, Any]]:
    """Return the JSON lines of a file; one that a kill left torn is cut off, so that what follows stands alone."""
    if file is None or not file.exists():
        return []
    lines, good = [], 0
    with file.open("r+b") as f:
        for raw in f:
            try:
                lines.append(json.loads(raw))
            except ValueError:
                break
            good += len(raw)
        f.truncate(good)
    return lines
