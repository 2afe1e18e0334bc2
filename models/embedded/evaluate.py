"""Evaluate a base model as the methods use it: `python -m models.embedded.evaluate [MODEL] [--data FOLDER]`.

MODEL is `embedded` or `local:FOLDER`; FOLDER holds banking77 and squad_rag as the examples describe them, and what is
not there is left out, with a word. Every number comes from `crossover run` on files written here, in a process of its
own: classification with invented labels by number of demonstrations, shuffled and sorted by label; Banking77 with
retrieved demonstrations beside a vote of the same neighbours; reading of gold passages; LoRA at growing train sizes.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import yaml

from crossover.models.embedded.corpus import Corpus

Row = dict[str, Any]
SHOTS = (0, 1, 2, 4, 8, 16, 32, 64)
NEAREST = (1, 5, 10, 20)
TRAIN_SIZES = (64, 256, 1024)
CLASSES = 6


def read(file: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, rows: Sequence[Row]) -> str:
    """Write rows as JSON lines and return the path."""
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(file)


def split(rows: Sequence[Row], rng: random.Random, test: int) -> dict[str, list[Row]]:
    """Return splits that share no text."""
    distinct = list({"".join(filter(str.isalnum, r["text"].casefold())): r for r in rows}.values())
    mixed = rng.sample(distinct, len(distinct))
    return {"test": mixed[:test], "val": mixed[test : test + 40], "train": mixed[test + 40 :]}


def wordnet_fields(corpus: Corpus, rng: random.Random) -> list[Row]:
    """Return definitions of a few fields, under their fields' names."""
    chosen = rng.sample([f for f in corpus.by_field if f.startswith("noun.")], CLASSES)
    entries = [(i, f) for f in chosen for i in rng.sample(corpus.by_field[f], 60)]
    return [{"id": f"w{i}", "text": corpus.synsets[i].definition, "label": f} for i, f in entries]


def renamed(rows: Sequence[Row], corpus: Corpus, rng: random.Random) -> list[Row]:
    """Return a few classes of the rows, at most 60 of each, under invented labels."""
    by_label: dict[str, list[Row]] = {}
    for r in rows:
        by_label.setdefault(r["label"], []).append(r)
    chosen = rng.sample(sorted(by_label), CLASSES)
    names = corpus.labels(rng, CLASSES, 2)
    return [
        r | {"label": name}
        for label, name in zip(chosen, names, strict=True)
        for r in rng.sample(by_label[label], min(60, len(by_label[label])))
    ]


def classification(name: str, splits: dict[str, list[Row]], folder: Path) -> Row:
    """Return the task of an experiment file."""
    data = {s: write(folder / f"{name}.{s}.jsonl", rows) for s, rows in splits.items()}
    fields = {"id": "id", "text": "input", "label": "output"}
    return {"name": name, "program": "classify", "data": data, "fields": fields, "metric": "label_accuracy"}


def run(model: Row, folder: Path, name: str, settings: Row, *flags: str) -> list[Row]:
    """Run an experiment and return its arms."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "name": name, "models": [model], **settings}), encoding="utf-8")
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "crossover.eval.cli.main",
        "run",
        str(file),
        "--json",
        "--store",
        str(folder / "store"),
        *flags,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    arms: list[Row] = json.loads(done.stdout)["arms"]
    return arms


def cell(arms: Sequence[Row], task: str, method: str, size: int | None = None) -> str:
    """Return the score of an arm, or a dash."""
    for a in arms:
        if a["task"] == task and a["method"] == method and a["train_size"] == size:
            return f"{a['score']['mean']:.3f}"
    return "-"


def show(title: str, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    for row in (header, *rows):
        print(f"{row[0]!s:34}" + "".join(f"{c!s:>9}" for c in row[1:]), flush=True)


def by_demonstrations(model: Row, tasks: Sequence[Row], folder: Path, seeds: str) -> None:
    """Print accuracy by number of demonstrations, the mean over seeds of them."""
    shown = [n for n in SHOTS if n]
    methods: list[Any] = ["zero_shot", *({"many_shot": {"demos": n}} for n in shown)]
    methods += [{"many_shot": {"demos": n, "order": "label_sorted"}} for n in shown if n >= 16]
    arms = run(model, folder, "demonstrations", {"tasks": list(tasks), "methods": methods}, "--seeds", seeds)
    rows = []
    for t in (t["name"] for t in tasks):
        rows.append([t, *(cell(arms, t, f"many_shot demos={n}" if n else "zero_shot") for n in SHOTS)])
        rows.append(
            [f"{t}, sorted by label", *(cell(arms, t, f"many_shot demos={n} order=label_sorted") for n in SHOTS)]
        )
    show(f"{CLASSES} classes under invented labels, accuracy by demonstrations", ["", *SHOTS], rows)


def vote(train: Sequence[Row], test: Sequence[Row], k: int) -> float:
    """Return the accuracy of the commonest label among the k nearest by BM25; the nearest wins a tie."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize([r["text"] for r in train], show_progress=False), show_progress=False)
    asked = bm25s.tokenize([r["text"] for r in test], show_progress=False)
    found, _ = index.retrieve(asked, k=k, show_progress=False)
    said = [Counter(train[i]["label"] for i in row).most_common(1)[0][0] for row in found]
    return sum(bool(s == r["label"]) for s, r in zip(said, test, strict=True)) / len(test)


def banking(model: Row, folder: Path, data: dict[str, list[Row]], test: int) -> None:
    """Print Banking77, all labels: retrieved demonstrations, and LoRA by train size."""
    splits = data | {"test": random.Random(0).sample(data["test"], test)}
    task = classification("banking77", splits, folder)
    nearest: list[Any] = [{"retrieved_demos": {"demos": k}} for k in NEAREST]
    arms = run(model, folder, "retrieved", {"tasks": [task], "methods": nearest})
    rows = [
        ["retrieved demonstrations", *(cell(arms, "banking77", f"retrieved_demos demos={k}") for k in NEAREST)],
        ["vote of the same, no model", *(f"{vote(splits['train'], splits['test'], k):.3f}" for k in NEAREST)],
    ]
    show(f"Banking77, 77 labels, {test} questions", ["k", *NEAREST], rows)
    tuned(model, folder, "banking77", {"tasks": [task]}, {"epochs": 5, "batch_size": 16})


def tuned(model: Row, folder: Path, task: str, settings: Row, options: Row) -> None:
    """Print LoRA by train size."""
    method = {"sft": {"adapter": "lora", "rank": 32, "alpha": 64, **options}}
    sized = run(model, folder, f"{task}_sizes", settings | {"methods": [method], "train_sizes": list(TRAIN_SIZES)})
    whole = run(model, folder, f"{task}_all", settings | {"methods": [method]})
    name = whole[0]["method"]
    values = [*(cell(sized, task, name, n) for n in TRAIN_SIZES), cell(whole, task, name)]
    show(f"{task}, LoRA by train size", ["", *TRAIN_SIZES, "all"], [["accuracy", *values]])


def reading(model: Row, folder: Path, squad: Path | None, test: int) -> None:
    """Print how gold passages are read, untrained and after LoRA."""
    tasks: list[Any] = ["stdlib_rag"]
    if squad:
        data = {s: str(squad / f"{f}.jsonl") for s, f in (("train", "train"), ("val", "dev"), ("test", "test"))}
        fields = {"id": "id", "question": "input", "answers": "output", "gold_passage_ids": "gold", "title": "ignored"}
        common = {"program": "rag", "data": data, "fields": fields, "corpus": str(squad / "corpus.jsonl")}
        tasks += [{"name": m, "metric": m, **common} for m in ("exact_match", "token_f1")]
    settings = {"tasks": tasks, "methods": ["zero_shot"], "knowledge": ["gold"]}
    arms = run(model, folder, "reading", settings, "--limit", str(test))
    names = {"stdlib_rag": "stdlib_rag", "exact_match": "squad_rag, exact match", "token_f1": "squad_rag, token F1"}
    rows = [[names[a["task"]], f"{a['score']['mean']:.3f}"] for a in arms]
    show(f"Reading of the gold passage, zero-shot, {test} questions", ["", "score"], rows)
    rag = {"tasks": ["stdlib_rag"], "knowledge": ["gold"]}
    tuned(model, folder, "stdlib_rag", rag, {"epochs": 2})


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and print the tables."""
    p = argparse.ArgumentParser(prog="python -m models.embedded.evaluate", description=__doc__)
    p.add_argument("model", nargs="?", default="embedded")
    p.add_argument("--data", type=Path, help="folder that holds banking77 and squad_rag")
    p.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    p.add_argument("--questions", type=int, default=300)
    p.add_argument("--decode", choices=["", "labels"], default="")
    p.add_argument("--store", type=Path, help="keep the runs here, and go on from what is there")
    p.add_argument("--seeds", default="0,1,2", help="of the demonstrations")
    p.add_argument("--only", choices=["demonstrations", "banking77", "reading"])
    a = p.parse_args(argv)
    corpus, rng = Corpus(a.wordnet), random.Random(5)
    model = {"name": a.model, "adapter": "plain", "max_tokens": 24, "decode": a.decode}
    have = {n: a.data / n for n in ("banking77", "squad_rag") if a.data and (a.data / n).is_dir()}
    for name in {"banking77", "squad_rag"} - set(have):
        print(f"{name} is not there and left out; name its folder by --data", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        folder = a.store or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        splits = {}
        tasks = [classification("wordnet", split(renamed(wordnet_fields(corpus, rng), corpus, rng), rng, 100), folder)]
        if "banking77" in have:
            files = (("train", "train"), ("val", "dev"), ("test", "test"))
            splits = {s: read(have["banking77"] / f"{f}.jsonl") for s, f in files}
            some = renamed(splits["train"], corpus, rng)
            tasks.append(classification("banking77_6", split(some, rng, 100), folder))
        if a.only in (None, "demonstrations"):
            by_demonstrations(model, tasks, folder, a.seeds)
        if splits and a.only in (None, "banking77"):
            banking(model, folder, splits, min(a.questions, len(splits["test"])))
        if a.only in (None, "reading"):
            reading(model, folder, have.get("squad_rag"), a.questions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
