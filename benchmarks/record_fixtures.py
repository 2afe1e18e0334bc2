"""Record the two experiments of tests/fixtures: `python benchmarks/record_fixtures.py [NAME…]`.

Both are real runs of a small model on invented data, a minute or two each. In `openings` the first word tells the
label, and a demonstration with that word is always near, so that showing it is best. In `wanted` the answer is the noun
after `want`: trained weights learn to read it off, while answers are copied from demonstrations of another question.
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from crossover.eval.cli.main import main as crossover

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
NOUNS = [
    "card",
    "order",
    "ticket",
    "box",
    "lamp",
    "chair",
    "phone",
    "table",
    "shirt",
    "watch",
    "radio",
    "clock",
    "paper",
    "bottle",
    "engine",
    "mirror",
    "garden",
    "window",
    "bridge",
    "carpet",
    "piano",
    "guitar",
    "camera",
    "basket",
    "blanket",
    "candle",
    "hammer",
    "ladder",
    "needle",
    "pillow",
]
OPENINGS = {"repay": "refund", "stop": "cancel", "find": "track", "edit": "change"}
SIZES = {"train": 400, "val": 40, "test": 150}
FILE = """version: 1
name: {name}
tasks:
  - name: {name}
    program: classify
    data: {{train: train.jsonl, val: val.jsonl, test: test.jsonl}}
    fields: {{text: input, label: output}}
    metric: accuracy
models: [{{name: smollm2, max_tokens: 8}}]
methods:
  - few_shot: {{demos: 4}}
  - retrieved_demos: {{demos: 4}}
  - sft: {{rank: 32, alpha: 64, epochs: 2, lr: 0.01}}
"""


def opening(rng: random.Random) -> tuple[str, str]:
    """Return a text whose first word tells the label."""
    verb = rng.choice(list(OPENINGS))
    return " ".join([verb, *rng.sample(NOUNS, 8)]), OPENINGS[verb]


def wanted(rng: random.Random) -> tuple[str, str]:
    """Return a text whose label is the noun after `want`, among others that mean nothing."""
    before, label, after = rng.sample(NOUNS, 2), rng.choice(NOUNS), rng.sample(NOUNS, 2)
    return " ".join([*before, "want", label, *after]), label


DRAWS: dict[str, Callable[[random.Random], tuple[str, str]]] = {"openings": opening, "wanted": wanted}


def record(name: str) -> None:
    """Run one experiment and keep its cells and its record."""
    rng, seen = random.Random(0), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        place, store = Path(folder), Path(folder) / "store"
        for split, size in SIZES.items():
            lines = []
            while len(lines) < size:
                text, label = DRAWS[name](rng)
                if text not in seen:
                    seen.add(text)
                    lines.append(json.dumps({"text": text, "label": label}))
            (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (place / "experiment.yaml").write_text(FILE.format(name=name), encoding="utf-8")
        if crossover(["run", str(place / "experiment.yaml"), "--store", str(store)]):
            raise SystemExit(f"{name} did not run")
        keep(store, FIXTURES / name)


def keep(store: Path, target: Path) -> None:
    """Copy what judging needs: rows with rounded seconds, results without what training logged, and the record."""
    for file in sorted(store.glob("cells/*/result.json")):
        copy = target / file.relative_to(store)
        copy.parent.mkdir(parents=True, exist_ok=True)
        result = json.loads(file.read_text(encoding="utf-8"))
        wanted = ("demos", "pool", "train_examples", "val_examples", "secondary", "logit_change", "best_epoch")
        result["notes"] = {k: result["notes"][k] for k in wanted if k in result["notes"]}
        result["mlflow_run_id"] = ""
        copy.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        rows = [json.loads(line) for line in file.with_name("rows.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(r | {"seconds": round(r["seconds"], 4)}) for r in rows]
        copy.with_name("rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for file in (store / "comparisons").glob("*.json"):
        (target / "comparisons").mkdir(exist_ok=True)
        (target / "comparisons" / file.name).write_bytes(file.read_bytes())


def main() -> int:
    """Record the experiments that are asked for, all by default."""
    for name in sys.argv[1:] or DRAWS:
        record(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
