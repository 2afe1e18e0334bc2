"""Time a comparison of 12 arms with 200,000 rows each, read from a store: `python benchmarks/speed.py`.

The figure goes into docs/method.md. The rows are invented; the command is the one that people run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from section import write_section

from eval.experiment import Cell, Experiment, Knowledge, MethodSpec
from eval.measure import Latency, Result
from eval.recorded import record
from eval.store import cell_folder, save_result
from models.spec import ModelSpec
from programs.task import Spent


def processor_seconds() -> float:
    """Return the processor time of finished children, which other work on the machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_cell(store: Path, number: int, rows: int, rng: np.random.Generator) -> str:
    """Write one finished cell and return its key."""
    cell = Cell("big", ModelSpec("embedded"), MethodSpec("few_shot", {"demos": number + 1}), None, Knowledge(), 0)
    key = f"{number:016x}"
    latency = Latency(tuple(rng.lognormal(-3, 0.3, 100)), 1)
    result = Result(key, cell, "ab" * 32, [], 600.0, latency, Spent(seconds=10), True)
    save_result(store, result)
    right, tokens = rng.random(rows) < 0.5 + 0.03 * number, rng.integers(50, 400, rows)
    with (cell_folder(store, key) / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(
                f'{{"id": "test-{i}", "score": {float(right[i])}, "failure": "", "prompt_tokens": {tokens[i]}, '
                f'"cached_tokens": 0, "completion_tokens": 3, "calls": 1, "seconds": 0.123, "usd": 0.0, '
                f'"output": {{"label": "label {i % 77}"}}}}\n'
            )
    return key


def main() -> int:
    """Write the store, run the command and rewrite the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=12)
    flags = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        keys = [write_cell(store, number, flags.rows, rng) for number in range(flags.arms)]
        record(store, Experiment("big", (), (), ()), keys)
        before = processor_seconds()
        command = [sys.executable, "-m", "eval.cli", "compare", *keys, "--json", "--store", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, mebibytes = processor_seconds() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.loads(done.stdout)["verdict"][0]["because"], file=sys.stderr)
    figure = f"{seconds:.0f} seconds of one core and {mebibytes:.0f} MiB"
    what = f"{flags.arms} arms of {flags.rows:,} rows each"
    text = f"`crossover compare` of {what}, read from the store: {figure} (`python benchmarks/speed.py`)."
    write_section("speed", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
