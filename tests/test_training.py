"""Training: the options of sft, and a training that is killed and goes on."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dspy
import optuna
import pytest
import tiny
import torch
from fakes import fit_intents, metric
from processes import FORKS
from safetensors.torch import load_file

from crossover.eval.run.methods import method_of
from crossover.finetune.sft import Sft
from crossover.finetune.training.hyperparameters import early_agreement
from crossover.finetune.training.options import TrainingOptions
from crossover.models.errors import UserError
from crossover.models.limits import Stopped, UsageLimits, limits_of
from crossover.models.load import LoadedModel, load_model
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Budget, Fitted


def fit(examples: list[dspy.Example], model: LoadedModel, folder: Path, progress: Any = len, **options: Any) -> Fitted:
    budget = Budget(workdir=folder, threads=4, progress=progress)
    return fit_intents("sft", {"rank": 4, "bf16": False, **options}, examples, model.lm, budget)


OPTIONS = {
    "dora": {"adapter": "dora"},
    "target_modules": {"target_modules": "q_proj, v_proj"},
    "packing": {"packing": True, "batch_size": 1},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "accumulate": {"batch_size": 2, "accumulate": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    fitted = fit(intents, spoken, tmp_path, epochs=2, **OPTIONS[name])
    assert fitted.notes["loss"][-1] < fitted.notes["loss"][0]
    assert fitted.facts.logit_change > 1e-3
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


def test_the_options_of_sft_have_the_defaults_of_the_trainers() -> None:
    assert {f.name for f in fields(TrainingOptions)} <= {f.name for f in fields(Sft)}
    assert TrainingOptions.among(asdict(Sft())) == TrainingOptions()


@pytest.mark.slow
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


LONG: dict[str, dict[str, Any]] = {
    "train": {"epochs": 3, "batch_size": 2, "dropout": 0.1},
    "unsaved": {"epochs": 3, "batch_size": 2, "dropout": 0.1, "checkpoint_minutes": 1000.0},
    "once": {"epochs": 1},
    "search": {"epochs": 1, "search": {"trials": 4, "early": 0.25, "finish": 2}},
    "dpo": {"epochs": 4, "batch_size": 2, "attempts": 1},
}


def fit_for_long(what: str, folder: Path, progress: Any = len, allowance: UsageLimits | None = None) -> Fitted:
    """Fit on the rows of the folder, with a checkpoint at each step; the process that the test kills runs this too."""
    rows = json.loads((folder.parent / "rows.json").read_text())
    examples = [dspy.Example(**r).with_inputs("text") for r in rows]
    model = load_model(ModelSpec(tiny.NAME, prompt_format="plain", decode="free", max_tokens=8))
    lm = model.lm if allowance is None else allowance.limited(model.lm)
    options = {"rank": 4, "bf16": False, "checkpoint_minutes": 0.0} | LONG[what]
    with dspy.context(lm=lm, adapter=model.prompt_format):
        return method_of("dpo" if what == "dpo" else "sft", options).fit(
            Classify(["text"], "label", []),
            train=examples[:20],
            val=examples[20:],
            metric=metric,
            lm=lm,
            seed=0,
            budget=Budget(workdir=folder, checkpoints=folder / "checkpoints", threads=4, progress=progress),
        )


def fit_and_tell(what: str, folder: str, lines: Connection) -> None:
    fit_for_long(what, Path(folder), lines.send)


def kill_at(what: str, folder: Path, examples: list[dspy.Example], wanted: Callable[[str], bool]) -> None:
    """Start the same fit in a process of its own, and kill it at the first line of progress that is wanted."""
    write_rows(folder.parent, examples)
    lines, theirs = FORKS.Pipe(duplex=False)
    process: Any = FORKS.Process(target=fit_and_tell, args=(what, str(folder), theirs))
    process.start()
    theirs.close()
    while not wanted(lines.recv()):
        pass
    process.kill()
    process.join()


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(folder / "best" / "adapter_model.safetensors")
    return found


def write_rows(folder: Path, examples: list[dspy.Example]) -> None:
    (folder / "rows.json").write_text(json.dumps([e.toDict() for e in examples]))


@dataclass
class Trained:
    """What came of a training, and its weights."""

    fitted: Fitted
    folder: Path

    def like(self, other: "Trained") -> bool:
        """Return whether another training came to the same, bit for bit."""
        first, second = weights(self.folder), weights(other.folder)
        return self.numbers() == other.numbers() and all(first[k].equal(second[k]) for k in first)

    def numbers(self) -> list[Any]:
        notes = self.fitted.notes
        return [notes["loss"], notes["val_scores"], notes["best_epoch"], self.fitted.spent.train_tokens]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, intents: list[dspy.Example]) -> Trained:
    """Return a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder, intents)
    return Trained(fit_for_long("train", folder / "fit"), folder / "fit")


@pytest.mark.slow
def test_a_killed_training_ends_like_one_that_was_left_alone(
    tmp_path: Path, intents: list[dspy.Example], whole: Trained
) -> None:
    # In the middle of the second epoch of three, ten steps each.
    kill_at("train", tmp_path / "killed", intents, lambda line: "training step 16/30" in line)
    again = Trained(fit_for_long("train", tmp_path / "killed"), tmp_path / "killed")
    assert 14 <= again.fitted.notes["resumed_from_step"] < 20
    assert again.like(whole)
    assert fit_for_long("train", tmp_path / "killed").notes == again.fitted.notes


@pytest.mark.slow
def test_a_killed_dpo_ends_like_one_that_was_left_alone(tmp_path: Path, intents: list[dspy.Example]) -> None:
    write_rows(tmp_path, intents)
    kill_at("dpo", tmp_path / "killed", intents, lambda line: line.startswith("training step 16/"))
    again = Trained(fit_for_long("dpo", tmp_path / "killed"), tmp_path / "killed")
    whole = Trained(fit_for_long("dpo", tmp_path / "whole"), tmp_path / "whole")
    assert again.fitted.notes["resumed_from_step"] >= 14
    assert again.fitted.notes["margins"] == whole.fitted.notes["margins"]
    assert again.like(whole)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.slow
def test_damaged_checkpoints_and_weights_are_named_and_not_used(
    tmp_path: Path, intents: list[dspy.Example], whole: Trained
) -> None:
    write_rows(tmp_path, intents)
    allowance, lines, place = UsageLimits(), list[str](), tmp_path / "fit" / "checkpoints" / "sft"

    def end(line: str) -> None:
        if "training step 16/30" in line:
            allowance.stop("a test")

    with pytest.raises(Stopped):
        fit_for_long("train", tmp_path / "fit", end, allowance)
    assert sorted(f.name for f in place.glob("checkpoint-*")) == ["checkpoint-16", "checkpoint-17"]
    flip_a_byte(place / "checkpoint-17" / "optimizer.pt")
    again = Trained(fit_for_long("train", tmp_path / "fit", lines.append), tmp_path / "fit")
    assert f"warning: {place}/checkpoint-17: damaged; the training goes on from what was kept before" in lines
    assert again.fitted.notes["resumed_from_step"] == 16
    assert again.like(whole)
    [best] = place.glob("best-*")
    flip_a_byte(best / "adapter_model.safetensors")
    with pytest.raises(UserError, match=f"{best}: not the weights that were trained; move {place} away and run again"):
        fit_for_long("train", tmp_path / "fit")


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["Ctrl-C", "0 minutes"])
def test_a_limit_ends_a_training_at_the_next_step_which_is_kept(
    limit: str, tmp_path: Path, intents: list[dspy.Example], whole: Trained
) -> None:
    write_rows(tmp_path, intents)
    allowance = UsageLimits()

    def end(line: str) -> None:
        if "training step 16/30" in line:
            vars(allowance).update({"stopped": limit} if limit == "Ctrl-C" else {"minutes": 0})

    with pytest.raises(Stopped, match=limit):
        fit_for_long("unsaved", tmp_path / "ended", end, allowance)
    free = UsageLimits()
    again = Trained(fit_for_long("unsaved", tmp_path / "ended", allowance=free), tmp_path / "ended")
    # What was trained is held to the same: a chain asks it next.
    assert limits_of(again.fitted.lm) is free
    # No checkpoint was due, and no loss is told in odd steps.
    assert again.fitted.notes["resumed_from_step"] == 17
    assert again.like(whole)


def test_what_a_training_reads_of_val_counts(tmp_path: Path, intents: list[dspy.Example]) -> None:
    write_rows(tmp_path, intents)
    allowance = UsageLimits(calls=6)
    with pytest.raises(Stopped, match="6 calls"):
        fit_for_long("unsaved", tmp_path / "ended", allowance=allowance)
    assert allowance.used.calls == 6


@pytest.mark.slow
@pytest.mark.parametrize("after", ["trial 2/4", "trial 4/4"])
def test_a_killed_search_ends_like_one_that_was_left_alone(
    after: str, tmp_path: Path, intents: list[dspy.Example]
) -> None:
    """Killed in the middle of a trial, or of finishing the best ones."""
    judged = list[str]()

    def in_training(line: str) -> bool:
        judged.extend([line] * line.startswith(after))
        return bool(judged) and line.startswith("training step")

    kill_at("search", tmp_path / "killed", intents, in_training)
    lines = list[str]()
    one, two = fit_for_long("search", tmp_path / "whole", lines.append), fit_for_long("search", tmp_path / "killed")
    assert one.notes["search"] == two.notes["search"]
    assert [t["final"] is not None for t in one.notes["search"]["trials"]].count(True) == 2
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(first[k].equal(second[k]) for k in first)
    assert (one.spent.train_tokens, one.spent.calls) == (two.spent.train_tokens, two.spent.calls)
    assert "2 of 4 trials finished; Spearman's correlation of their early and final score is" in lines[-1]
    study = optuna.load_study(
        study_name=None, storage=f"sqlite:///{tmp_path / 'killed' / 'checkpoints' / 'sft' / 'optuna.db'}"
    )
    judged_at = [t.user_attrs["spent"] for t in study.trials if t.state.name == "COMPLETE"]
    tokens = [spent["train_tokens"] for spent in judged_at]
    finals = [t["final"] for t in one.notes["search"]["trials"]]
    dropped = [n for n, final in zip(tokens, finals, strict=True) if final is None]
    # The trials that were dropped, and the finished one that lost.
    unfinished = sum(spent["seconds"] for spent, final in zip(judged_at, finals, strict=True) if final is None)
    assert 0 < unfinished < two.facts.discarded_seconds < two.spent.seconds
    # Two trials went on to their end; every one stopped after a quarter of its steps, rounded up to whole ones.
    whole = fit_for_long("once", tmp_path / "once").spent.train_tokens
    assert one.spent.train_tokens == 2 * whole + sum(dropped)
    assert all(0.2 * whole < n < 0.6 * whole for n in tokens)
    states = [t.state.name for t in study.trials]
    assert states.count("COMPLETE") == 4
    assert set(states) <= {"COMPLETE", "FAIL"}


def accelerate_file(folder: Path, **more: Any) -> Path:
    """Write what `accelerate config` would write for two processes on processors."""
    file = folder / "accelerate.yaml"
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "num_processes": 2} | more
    file.write_text(json.dumps(config))
    return file


@pytest.mark.slow
def test_two_processes_train_one_model(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    """Two processes with half a batch each take the steps of one process with a whole one."""
    same = {"epochs": 2, "lr": 0.003, "warmup": 0.0}
    alone = fit(intents[:20], spoken, tmp_path / "one", batch_size=20, **same)
    options = {"accelerate_file": str(accelerate_file(tmp_path)), "batch_size": 10, **same}
    both = fit(intents[:20], spoken, tmp_path / "two", **options)
    assert len(both.notes["val_scores"]) == 3
    assert both.notes["loss"] == pytest.approx(alone.notes["loss"], rel=2e-2)
    assert both.facts.logit_change == pytest.approx(alone.facts.logit_change, rel=0.1)
    assert both.spent.train_tokens == alone.spent.train_tokens
    lines = list[str]()
    again = fit(intents[:20], spoken, tmp_path / "two", progress=lines.append, **options)
    assert not [line for line in lines if line.startswith("training")]
    assert again.notes["val_scores"] == both.notes["val_scores"]


def test_a_configuration_of_accelerate_that_does_not_apply_is_one_line(tmp_path: Path) -> None:
    def refused(message: str, **more: Any) -> None:
        with pytest.raises(UserError, match=message):
            method_of("sft", {"accelerate_file": str(accelerate_file(tmp_path, **more))})

    refused("num_processes is 1; leave it out", num_processes=1)
    refused("no configuration of accelerate .*; let `accelerate config", num_processes=None)
    if torch.cuda.device_count() < 2:
        refused(
            "MULTI_GPU needs several GPUs, and this machine has . CUDA devices; leave it out",
            distributed_type="MULTI_GPU",
        )
    with pytest.raises(UserError, match="trains every epoch to its end; leave out `search` and `patience`"):
        method_of("sft", {"accelerate_file": str(accelerate_file(tmp_path)), "patience": 1})


def test_agreement_of_rankings() -> None:
    early, final = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.1, 0.3, 0.6, 0.4, 0.5]
    agreement = early_agreement(early, final)
    assert agreement["spearman"] == pytest.approx(1 - 6 * (1 + 1 + 0 + 4 + 1 + 1) / (6 * 35))
    assert (agreement["top"], agreement["top_shared"]) == (3, 3)
    assert early_agreement([1.0, 1.0], [0.5, 0.6])["spearman"] is None


def test_a_plan_that_cannot_be_followed_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"`earlier: 0.2` is unknown; use trials, early, finish with numbers"):
        method_of("sft", {"search": {"trials": 4, "earlier": 0.2}})
    with pytest.raises(UserError, match="write 1 <= finish <= trials"):
        method_of("sft", {"search": {"trials": 2}})
