"""Measure what tracking adds to a run's time: the same cells scored with MLflow's store on disk and without tracking."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from section import write_section

EXPERIMENT = """\
version: 1
name: tracked
tasks: [stdlib_module]
models: [{name: embedded, max_tokens: 16}]
methods: [zero_shot, {few_shot: {demos: 2}}, {few_shot: {demos: 4}}, {retrieved_demos: {demos: 2}}]
"""
NOWHERE = "http://127.0.0.1:9"
"""Nothing listens here, and tracking is off after the first try."""


def seconds(file: Path, store: Path, *flags: str) -> float:
    """Return the wall time of one run in a process of its own."""
    command = [sys.executable, "-m", "eval.cli", "run", str(file), "--store", str(store), "-q", *flags]
    start = time.perf_counter()
    environment = os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> int:
    """Run both in turn and write the ratio of the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", default="400")
    flags = parser.parse_args()
    times: dict[str, list[float]] = {"tracked": [], "untracked": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tracked.yaml"
        file.write_text(EXPERIMENT)
        for n in range(flags.repeats):
            for name, more in (("tracked", []), ("untracked", ["--tracking-uri", NOWHERE])):
                times[name].append(seconds(file, Path(folder) / f"{name}-{n}", "--limit", flags.limit, *more))
                print(f"{name} {times[name][-1]:.1f} s", file=sys.stderr)
    tracked, untracked = (statistics.median(times[n]) for n in ("tracked", "untracked"))
    slower = tracked / untracked - 1
    text = (
        f"Tracking in MLflow's sqlite store adds {100 * slower:.1f} % to a run of 4 cells of {flags.limit} test examples "
        f"({tracked:.1f} s against {untracked:.1f} s, medians of {flags.repeats}; `python benchmarks/tracking.py`)."
    )
    write_section("tracking", text)
    return 0 if slower <= 0.03 else 1


if __name__ == "__main__":
    raise SystemExit(main())
