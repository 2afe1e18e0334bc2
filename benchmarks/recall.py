"""Measure what each retrieval backend finds: `python benchmarks/recall.py FOLDER [--backends bm25,dense,hybrid]`.

FOLDER holds train.jsonl, dev.jsonl, test.jsonl (id, question, answers, gold_passage_ids) and corpus.jsonl. No language
model is called. Vectors are kept in the store, so that a second run encodes questions alone.
"""

import argparse
import json
import sys
from pathlib import Path

from crossover.eval.analysis.stats import score_interval
from crossover.eval.experiment.spec import Retrieval
from crossover.eval.run.passages import Indexes, Passages
from crossover.programs.data import load_task
from crossover.programs.spec import TaskSpec

DEPTHS = (1, 3, 5)
FIELDS = {"id": "id", "question": "input", "answers": "output", "gold_passage_ids": "gold"}


def main() -> int:
    """Print one line for each backend and depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backends", default="bm25,dense,hybrid")
    parser.add_argument("--store", type=Path, default=Path("mlruns"))
    flags = parser.parse_args()
    files = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}
    folder = flags.folder.resolve()
    data = {split: str(folder / name) for split, name in files.items()}
    with (folder / "test.jsonl").open(encoding="utf-8") as lines:
        cluster = "title" if "title" in json.loads(next(lines)) else ""
    corpus = str(folder / "corpus.jsonl")
    task = load_task(TaskSpec(folder.name, "rag", data, FIELDS, metric="token_f1", corpus=corpus, cluster=cluster))
    clusters = [str(e["cluster"]) for e in task.test] if cluster else None
    print(
        f"{task.name}: {len(task.test)} test questions, {len(task.corpus)} passages, split {task.split_sha256()[:12]}"
    )
    print(f"{'backend':<10}{'k':>3}  {'recall':>6}  {'MRR':>6}  {'nDCG':>6}  all gold passages found, 95 % interval")
    indexes = Indexes(flags.store, lambda line: print(line, file=sys.stderr))
    for backend in flags.backends.split(","):
        for k in DEPTHS:
            passages = Passages(task, Retrieval(backend, k), indexes)
            r = passages.ranking(task.test, "retrieved")
            hits = score_interval([float(h) for h in passages.hits(task.test, "retrieved").values()], clusters=clusters)
            if r is None:
                print(f"{task.name} names no gold passages", file=sys.stderr)
                return 2
            found = f"{hits.mean:.3f} [{hits.low:.3f}, {hits.high:.3f}]"
            print(f"{backend:<10}{k:>3}  {r.recall:>6.3f}  {r.mrr:>6.3f}  {r.ndcg:>6.3f}  {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
