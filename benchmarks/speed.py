"""Time a comparison and a report of 12 arms with 200,000 rows each, read from a store: `python benchmarks/speed.py`.

The figures go into docs/method.md. The rows are invented; the commands are those that people run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from section import write_section

from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Cell, plan
from crossover.eval.run.loading import prepare
from crossover.eval.store.cells import cell_folder, save_result
from crossover.eval.store.recorded import record
from crossover.eval.store.result import Latency, Result
from crossover.models.usage import Usage
from crossover.programs.task import FitFacts

LABELS = 77
FILE = """\
version: 1
name: big
tasks:
  - name: big
    program: classify
    data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
    fields: {text: input, label: output}
models: [MODEL]
methods: [METHODS]
"""


def processor_seconds() -> float:
    """Return the processor time of finished children, which other work on the machine does not lengthen."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_splits(folder: Path, rows: int, task: str = "") -> None:
    """Write the data of a task, with so many test rows; the name of each file ends in the task's."""
    for split, count in (("train", 1000), ("val", 100), ("test", rows)):
        with (folder / f"{split}{task}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                row = {
                    "id": f"{split}-{i}",
                    "text": f"{split}{task} question number {i}",
                    "label": f"label {i % LABELS}",
                }
                file.write(json.dumps(row) + "\n")


def write_task(folder: Path, rows: int, arms: int, model: str) -> Path:
    """Write the data and the experiment file, and return the file."""
    write_splits(folder, rows)
    methods = ", ".join(f"few_shot: {{demos: {n + 1}}}" for n in range(arms))
    (folder / "big.yaml").write_text(FILE.replace("METHODS", methods).replace("MODEL", model), encoding="utf-8")
    return folder / "big.yaml"


def write_store(file: Path, store: Path, rows: int) -> list[str]:
    """Write the finished cells of the experiment and return their keys."""
    experiment, problems = read_experiment(file)
    assert experiment is not None, problems
    keyed = prepare(experiment, store=store)
    rng, split, keys = np.random.default_rng(0), keyed.split_sha256["big"], []
    for number, cell in enumerate(plan(experiment)):
        keys.append(keyed.of(cell))
        write_cell(store, finished(keys[-1], cell, split, rng), 0.5 + 0.03 * number, rows, rng)
    record(store, experiment, keys, keyed.split_sha256)
    return keys


def finished(key: str, cell: Cell, split: str, rng: np.random.Generator, val: float | None = None) -> Result:
    """Return the summary of a finished cell, with its score on val where it has one."""
    latency = Latency(tuple(rng.lognormal(-3, 0.3, 100)), 1)
    facts, local = FitFacts(val_score=val), cell.model.runs_here
    return Result(key, cell, split, [], 600.0, latency, Usage(seconds=10), local, facts)


def write_cell(store: Path, result: Result, rate: float, rows: int, rng: np.random.Generator) -> None:
    """Write a finished cell whose answers are right at this rate."""
    right, tokens = rng.random(rows) < rate, rng.integers(50, 400, rows)
    folder = cell_folder(store, result.key)
    folder.mkdir(parents=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            said = i if right[i] else i + 1
            file.write(
                f'{{"id": "test-{i}", "score": {float(right[i])}, "failure": "", "prompt_tokens": {tokens[i]}, '
                f'"cached_tokens": 0, "completion_tokens": 3, "calls": 1, "seconds": 0.123, "usd": 0.0, '
                f'"output": {{"label": "label {said % LABELS}"}}, "unparsed": false, "raw": "label {said % LABELS}", '
                f'"ending": "", "tokens_estimated": false, "fields": {{}}}}\n'
            )
    save_result(store, result)


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Run a command and return its processor seconds and its own peak of MiB."""
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    before = processor_seconds()
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    return processor_seconds() - before, int(done.stdout.split()[-1]) / 1024


def main() -> int:
    """Write the store, run both commands and rewrite the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--arms", type=int, default=12)
    parser.add_argument("--model", default="smollm2", help="The model of the invented arms; it is not loaded.")
    parser.add_argument("--dry", action="store_true", help="Print the figures and leave the document as it is.")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, store = write_task(folder, flags.rows, flags.arms, flags.model), folder / "mlruns"
        keys = write_store(file, store, flags.rows)
        crossover = [sys.executable, "-m", "crossover.eval.cli.main"]
        page = str(folder / "report.html")
        commands = {
            "compare": [*crossover, "compare", *keys, "--json", "--store", str(store)],
            "report": [*crossover, "report", str(file), "--store", str(store), "-o", page],
        }
        figures = {verb: timed(command) for verb, command in commands.items()}
    words = [f"`crossover {verb}` took {s:.0f} seconds of one core and {m:.0f} MiB" for verb, (s, m) in figures.items()]
    text = f"{flags.arms} arms of {flags.rows:,} rows each, read from the store: {' and '.join(words)}"
    text += " (`python benchmarks/speed.py`)."
    print(text)
    if not flags.dry:
        write_section("speed", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
