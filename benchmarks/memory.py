"""Measure what a million rows add to a process that appends, reads back and resumes them."""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from section import write_section

from crossover.eval.store.result import append_rows, read_rows
from crossover.eval.store.rows import read_table
from crossover.programs.score import Row

MOST = 100
"""Megabytes by which the process may grow."""


def resident() -> float:
    """Return the largest size that the process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> int:
    """Append the rows as a scoring pass does, resume the file, read it as a comparison does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    flags = parser.parse_args()
    # Ids are there already, in the examples that are scored.
    ids = [sys.intern(f"test-{n}") for n in range(flags.rows)]
    before, grown = resident(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        for n in range(0, flags.rows, 1000):
            part = [(i, {"label": f"label {n % 77}"}) for i in ids[n : n + 1000]]
            append_rows(file, [Row(i, 1.0, "", 100, 0, 5, 1, 0.1, 0.0, output) for i, output in part])
        grown.append(f"appending {resident() - before:.0f}")
        done = {sys.intern(row.id) for row in read_rows(file)}
        grown.append(f"resuming {resident() - before:.0f}")
        del done
        table = read_table(file)
        grown.append(f"reading as columns {resident() - before:.0f}")
    whole = resident() - before
    what = f"{len(table):,} rows add to a process, in megabytes at most so far"
    write_section("memory", f"What {what}: {', '.join(grown)} (`python benchmarks/memory.py`, fails above {MOST}).")
    return 0 if whole <= MOST else 1


if __name__ == "__main__":
    raise SystemExit(main())
