"""Golden trajectories: short trainings must give the numbers in tests/golden, step by step.

After a change that is meant to move them, rewrite the files with

    RECORD_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import json
import os
import platform
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dspy
import pytest
import torch
from fakes import metric

from crossover.eval.run.methods import method_of
from crossover.models.load import LoadedModel
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Budget

GOLDEN = Path(__file__).parent / "golden"
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft_8x1": ("sft", {"rank": 4, "bf16": False, "epochs": 5, "batch_size": 8}),
    "sft_1x8": ("sft", {"rank": 4, "bf16": False, "epochs": 5, "batch_size": 1, "accumulate": 8}),
    "dpo": ("dpo", {"rank": 4, "bf16": False, "epochs": 3, "attempts": 1, "batch_size": 4}),
    "head_frozen": ("head", {}),
    "head_lora": ("head", {"base": "lora", "rank": 4, "bf16": False, "epochs": 3, "lr": 3e-4, "ridge": 100.0}),
}
OTHER_PROCESSOR = {"rel": 0.01, "abs": 0.002}
"""Another processor adds float32 in another order, about 1e-7 a sum; ten steps at a high learning rate amplify that."""
OTHER_BATCHES = {"rel": 1e-3, "abs": 2e-4}
"""A batch of eight pads its rows and adds their losses at once, eight of one do neither; losses have four decimals."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: the order of float sums, and so their last bit, depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trajectory(name: str, examples: list[dspy.Example], lm: dspy.LM, folder: Path) -> dict[str, Any]:
    """Fit on sixteen examples and return the numbers to compare."""
    method, options = TRAININGS[name]
    fitted = method_of(method, options).fit(
        Classify(["text"], "label", []),
        train=examples[:16],
        val=examples[16:],
        metric=metric,
        lm=lm,
        seed=0,
        budget=Budget(workdir=folder, threads=1),
    )
    assert fitted.artifact is not None
    weights = sorted(fitted.artifact.glob("*.safetensors"))
    return {
        "loss": fitted.notes.get("loss", []),
        "val_scores": fitted.notes["val_scores"],
        "best_epoch": fitted.notes.get("best_epoch"),
        "sha256": {file.name: sha256(file.read_bytes()).hexdigest() for file in weights},
    }


def machine() -> dict[str, Any]:
    """Return what the last bit of a float depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    facts = dict(re.findall(r"^(.+?)\s*: (.+)$", first, re.M))
    # Hypervisors give one name to several generations of a processor.
    known = [facts[k] for k in ("model name", "cpu family", "model", "stepping") if k in facts]
    return {
        "processor": " ".join(known) or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def read_golden(name: str) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return golden


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_short_training_repeats_its_golden_trajectory(
    name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    result = trajectory(name, intents, spoken.lm, tmp_path) | {"machine": machine()}
    if os.environ.get("RECORD_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    golden = read_golden(name)
    assert result["loss"] == pytest.approx(golden["loss"], **OTHER_PROCESSOR)
    if result["machine"] == golden["machine"]:
        assert result == golden


def test_eight_accumulated_rows_train_like_one_batch_of_eight() -> None:
    batch, accumulated = read_golden("sft_8x1"), read_golden("sft_1x8")
    assert len(batch["loss"]) == 10
    assert accumulated["loss"] == pytest.approx(batch["loss"], **OTHER_BATCHES)
    assert accumulated["val_scores"] == batch["val_scores"]
