"""A task that its first word decides, for tests that need a run with a clear winner: nearest demonstrations find it."""

import json
import random
from pathlib import Path

import tiny

OPENINGS = {"refund": "money", "password": "account", "parcel": "delivery", "invoice": "billing"}
FILLER = ("please", "kindly", "today", "since", "really", "matters", "much", "again", "later", "soon", "here", "there")


def write_openings(folder: Path, methods: str, *, test: int = 60, more: str = "") -> Path:
    """Write the data and the experiment file, and return the file."""
    draw = random.Random(5)
    for name, count in (("train", 48), ("val", 12), ("test", test)):
        rows = [
            {"id": f"{name}-{i}", "text": f"{word} {name} {i} {' '.join(draw.sample(FILLER, 3))}", "label": label}
            for i in range(count)
            for word, label in [list(OPENINGS.items())[i % 4]]
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    file = folder / "openings.yaml"
    file.write_text(
        "version: 1\nname: openings\ntasks:\n  - name: openings\n    program: classify\n"
        "    data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}\n"
        "    fields: {text: input, label: output}\n"
        f"models: [{tiny.model(max_tokens=8)}]\nmethods: {methods}\n{more}",
        encoding="utf-8",
    )
    return file
