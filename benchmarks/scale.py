"""Compare and report 1,000 cells of 10,000 rows each, read from a store: `python benchmarks/scale.py`.

5 tasks, 2 models, 4 methods (the trained one in 4 variants), 4 train sizes, 5 seeds. The rows are invented; the
command is the one that people run. The figures go into docs/scale.md.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from section import write_section
from speed import finished, timed, write_cell, write_splits

from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Cell, plan
from crossover.eval.run.loading import prepare
from crossover.eval.store.recorded import record

SCALE = Path(__file__).parent.parent / "docs" / "scale.md"
FILE = """\
version: 1
name: scale
tasks:
TASKS
models: [MODEL, openai/gpt-4o-mini]
methods:
  - few_shot: {demos: 8}
  - retrieved_demos: {demos: 8}
  - many_shot
  - sft: {rank: 4}
  - sft: {rank: 8}
  - sft: {rank: 16}
  - sft: {rank: 32}
train_sizes: [125, 250, 500, 1000]
seeds: [0, 1, 2, 3, 4]
"""
RIGHT = {"few_shot": 0.6, "retrieved_demos": 0.68, "many_shot": 0.66, "sft": 0.75}
"""Share of right answers of a method with endless examples."""


def write_experiment(folder: Path, tasks: int, rows: int, model: str) -> Path:
    """Write the data of the tasks and the experiment file, and return the file."""
    lines = []
    for number in range(tasks):
        write_splits(folder, rows, str(number))
        data = ", ".join(f"{split}: {split}{number}.jsonl" for split in ("train", "val", "test"))
        fields = "{text: input, label: output}"
        lines.append(f"  - {{name: task{number}, program: classify, data: {{{data}}}, fields: {fields}}}")
    file = folder / "scale.yaml"
    file.write_text(FILE.replace("TASKS", "\n".join(lines)).replace("MODEL", model), encoding="utf-8")
    return file


def write_store(file: Path, store: Path, rows: int) -> int:
    """Write the finished cells of the experiment and return how many there are."""
    experiment, problems = read_experiment(file)
    assert experiment is not None, problems
    keyed, rng, keys = prepare(experiment, store=store), np.random.default_rng(0), []
    for cell in plan(experiment):
        keys.append(keyed.of(cell))
        rate = rate_of(cell) + rng.normal(0, 0.01)
        result = finished(keys[-1], cell, keyed.split_sha256[cell.task], rng, val=rate)
        write_cell(store, result, rate, rows, rng)
    record(store, experiment, keys, keyed.split_sha256)
    return len(keys)


def rate_of(cell: Cell) -> float:
    """Return the share of right answers of a cell, which follows a power law of its train size."""
    bonus = 0.002 * cell.method.options.get("rank", 0) ** 0.5 + 0.05 * (not cell.model.runs_here)
    return RIGHT[cell.method.name] + bonus - 2.0 * (cell.train_size or 1000) ** -0.5


def main() -> int:
    """Write the store, report on it and rewrite the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--model", default="smollm2", help="The local model of the invented arms; it is not loaded.")
    parser.add_argument("--dry", action="store_true", help="Print the figures and leave the document as it is.")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, store, page = write_experiment(folder, flags.tasks, flags.rows, flags.model), folder / "mlruns", "p.html"
        count = write_store(file, store, flags.rows)
        size = sum(f.stat().st_size for f in store.rglob("*.jsonl"))
        command = [sys.executable, "-m", "crossover.eval.cli.main", "report", str(file), "--store", str(store)]
        began = time.perf_counter()
        seconds, memory = timed([*command, "-o", str(folder / page)])
        wall, weight = time.perf_counter() - began, (folder / page).stat().st_size
    pace = f"{count * flags.rows / wall:,.0f} rows a second"
    text = (
        f"{count:,} cells of {flags.rows:,} rows each ({size / 1e9:.1f} GB on disk), read, compared and reported by "
        f"one `crossover report`: {wall:.0f} seconds ({seconds:.0f} of processor time, {pace}), at most "
        f"{memory:,.0f} MiB, and a page of {weight / 1e6:.2f} MB (`python benchmarks/scale.py`)."
    )
    print(text)
    if not flags.dry:
        write_section("store", text, SCALE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
