"""Write a store of finished cells with chosen scores: real files, real keys, no model called."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tiny

from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Experiment, plan
from crossover.eval.run.loading import load_tasks
from crossover.eval.store.cells import cell_folder, program_sha256, save_result
from crossover.eval.store.result import Latency, Result, append_rows
from crossover.models.load import model_sha256
from crossover.models.usage import Usage
from crossover.programs.score import Row

HOSTILE = "<script>alert(1)</script> \x1b[31mred\u202e @someone | `tick` \x00"
"""What data can hold: markup, control characters, a right-to-left override, Markdown."""

LABELS = {"card_lost": 5, "refund_late": 3, "close_account": 2, "exchange_rate": 2}
"""Label to its share of the rows."""

FILE = """\
version: 1
name: support
tasks:
  - name: intents
    program: classify
    data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
    fields: {text: input, label: output}
models: [MODEL]
methods:
  - zero_shot
  - few_shot: {demos: 4}
  - retrieved_demos: {demos: 8}
  - sft: {rank: 16}
train_sizes: [64, 256, 1024]
prices: {machine_hour_usd: 2.50}
compare: all
"""


@dataclass(frozen=True)
class Made:
    """How one method did, by train size."""

    scores: Sequence[float]
    serve_seconds: float
    fit_seconds: Sequence[float]
    ms: float


MADE = {
    "zero_shot": Made((0.31,), 14, (0,), 46),
    "few_shot": Made((0.44, 0.45, 0.47), 21, (1, 1, 1), 61),
    "retrieved_demos": Made((0.62, 0.70, 0.77), 64, (2, 3, 5), 140),
    "sft": Made((0.40, 0.68, 0.79), 11, (95, 340, 1300), 33),
}
SIZES = (64, 256, 1024)


def write_experiment(folder: Path, *, test: int = 600) -> Path:
    """Write the data and the experiment file, and return the file; every third question is hostile."""
    labels = [label for label, share in LABELS.items() for _ in range(share)]
    for name, count in (("train", 1100), ("val", 60), ("test", test)):
        rows = [{"id": f"{name}-{i}", "text": f"{name} question {i}", "label": labels[i % 12]} for i in range(count)]
        for row in rows[::3]:
            row["text"] += HOSTILE
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    file = folder / "support.yaml"
    file.write_text(FILE.replace("MODEL", tiny.model()), encoding="utf-8")
    return file


def write_store(file: Path, store: Path, *, only: Sequence[str] = tuple(MADE), worse: float = 0.0) -> Experiment:
    """Write a finished cell for each that the experiment plans of these methods, all scores lower by `worse`."""
    experiment, problems = read_experiment(file)
    assert experiment is not None, problems
    tasks, _ = load_tasks(experiment.tasks)
    task = tasks["intents"]
    for cell in plan(experiment):
        if cell.method.name not in only:
            continue
        made, at = MADE[cell.method.name], SIZES.index(cell.train_size) if cell.train_size else 0
        key = cell.key(
            split_sha256=task.split_sha256(),
            program_sha256=program_sha256(task.program()),
            limit=None,
            model_sha256=model_sha256(cell.model),
            retriever="",
        )
        draw = random.Random(f"{cell.method.name} {cell.train_size}")
        rows = []
        for e in task.test:
            right = draw.random() < made.scores[at] - worse
            answer = str(e["label"]) if right else draw.choice([HOSTILE, *sorted(LABELS.keys() - {e["label"]})])
            tokens = 300 if cell.method.name == "retrieved_demos" else 60
            rows.append(Row(str(e["id"]), float(right), "", tokens, 0, 5, 1, 0.1, 0.0, {"label": answer}))
        folder = cell_folder(store, key)
        folder.mkdir(parents=True)
        append_rows(folder / "rows.jsonl", rows)
        seconds = tuple((made.ms + draw.expovariate(0.2)) / 1000 for _ in range(100))
        save_result(
            store,
            Result(
                key,
                cell,
                task.split_sha256(),
                rows,
                made.serve_seconds,
                Latency(seconds, 1),
                Usage(seconds=made.fit_seconds[at]),
                True,
                mlflow_run_id=key * 2,
            ),
        )
    return experiment
