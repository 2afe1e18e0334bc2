"""Training: the options of sft, and a training that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from safetensors.torch import load_file

from eval.run import method_of
from models.load import LoadedModel, load_model
from models.spec import ModelSpec
from programs.modules.classify import Classify
from programs.task import Budget, Fitted, UserError

ROOT = Path(__file__).parent.parent


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return float(gold.label == pred.label)


def fit(examples: list[dspy.Example], model: LoadedModel, folder: Path, **options: Any) -> Fitted:
    return method_of("sft", {"rank": 4, "bf16": False, **options}).fit(
        Classify(["text"], "label", []), train=examples[:20], val=examples[20:], metric=metric, lm=model.lm, seed=0,
        budget=Budget(workdir=folder, threads=4),
    )  # fmt: skip


OPTIONS = {
    "dora": {"adapter": "dora"},
    "target_modules": {"target_modules": "q_proj, v_proj"},
    "packing": {"packing": True, "batch_size": 1},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "accumulate": {"batch_size": 2, "accumulate": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    fitted = fit(intents, spoken, tmp_path, epochs=4, **OPTIONS[name])
    assert fitted.notes["loss"][-1] < fitted.notes["loss"][0]
    assert fitted.notes["logit_change"] > 1e-3
    wanted = json.loads((tmp_path / "best" / "adapter_config.json").read_text())
    assert wanted["use_dora"] == (name == "dora")
    assert (set(wanted["target_modules"]) == {"q_proj", "v_proj"}) == (name == "target_modules")


def test_packed_examples_do_not_see_each_other(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    """One pack in one step has the loss of the same rows in one padded batch."""
    packed = fit(intents, spoken, tmp_path / "a", epochs=1, packing=True, batch_size=1, lr=1e-9)
    padded = fit(intents, spoken, tmp_path / "b", epochs=1, batch_size=20, lr=1e-9)
    assert packed.notes["loss"] == pytest.approx(padded.notes["loss"], rel=1e-3)


def test_early_stopping_reads_the_tasks_own_metric(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    fitted = fit(intents, spoken, tmp_path, epochs=6, patience=2, lr=1e-9)
    assert len(fitted.notes["val_scores"]) == 3
    whole = fit(intents, spoken, tmp_path, epochs=6, lr=1e-9)
    assert fitted.spent.train_tokens * 3 == whole.spent.train_tokens


def test_four_bits_are_refused_before_anything_is_spent() -> None:
    with pytest.raises(UserError, match=r"'qlora' needs CUDA and bitsandbytes, and .*; set `adapter: lora`"):
        method_of("sft", {"adapter": "qlora"})


def fit_for_long(folder: Path, progress: Any = print) -> Fitted:
    """Train forty steps on the rows of the folder, with a checkpoint at each; what the test kills runs this too."""
    rows = json.loads((folder.parent / "rows.json").read_text())
    examples = [dspy.Example(**r).with_inputs("text") for r in rows]
    model = load_model(ModelSpec("embedded", max_tokens=8))
    options = {"rank": 4, "epochs": 4, "batch_size": 2, "dropout": 0.1, "bf16": False, "checkpoint_minutes": 0.0}
    with dspy.context(lm=model.lm, adapter=model.adapter):
        return method_of("sft", options).fit(
            Classify(["text"], "label", []), train=examples[:20], val=examples[20:], metric=metric, lm=model.lm, seed=0,
            budget=Budget(workdir=folder, checkpoints=folder / "checkpoints", threads=4, progress=progress),
        )  # fmt: skip


def tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def test_a_killed_training_ends_like_one_that_was_left_alone(tmp_path: Path, intents: list[dspy.Example]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([e.toDict() for e in intents]))
    killed = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(tmp_path / "killed")], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert killed.stderr is not None
    steps = (int(line.split()[2].partition("/")[0]) for line in killed.stderr if line.startswith("training step"))
    # In the middle of the second epoch of four, ten steps each.
    assert next(n for n in steps if n >= 15) < 20
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=10)
    killed.stderr.close()
    one, two = fit_for_long(tmp_path / "whole"), fit_for_long(tmp_path / "killed")
    assert two.notes["resumed_from_step"] >= 14
    assert [one.notes[n] for n in ("loss", "val_scores", "best_epoch")] == [
        two.notes[n] for n in ("loss", "val_scores", "best_epoch")
    ]
    first, second = (load_file(tmp_path / n / "best" / "adapter_model.safetensors") for n in ("whole", "killed"))
    assert all(first[k].equal(second[k]) for k in first)
    assert one.spent.train_tokens == two.spent.train_tokens
    again = fit_for_long(tmp_path / "killed")
    assert again.notes == two.notes


if __name__ == "__main__":
    fit_for_long(Path(sys.argv[1]), tell)
