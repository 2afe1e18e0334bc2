"""Supervised fine-tuning on the train examples, by TRL: LoRA, DoRA or QLoRA (PEFT), or full weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import Budget, Fitted, Metric

SOURCES = ("gold", "teacher", "self")
ADAPTERS = ("lora", "dora", "qlora", "none")


@dataclass(frozen=True)
class Sft:
    """Options of supervised fine-tuning; the defaults are TRL's unless a comment says why not."""

    adapter: str = "lora"
    """`lora`, `dora`, `qlora` (the base in four bits; needs CUDA and bitsandbytes), or `none` for full weights."""
    rank: int = 16
    alpha: int = 32
    """LoRA's scale is alpha / rank."""
    target_modules: str = "all-linear"
    """Names of the layers that get an adapter, with commas between them."""
    targets: str = "gold"
    """Whose answers are learnt: `gold` (the data's), `teacher`, or `self` (the model's own that score 1)."""
    attempts: int = 4
    """Times that an example is answered until a trace scores 1; the first at the model's own temperature."""
    mix: float = 0.0
    """Share of general rows among all rows, against forgetting."""
    mix_file: str = ""
    """JSON lines with prompt and completion: where the general rows come from."""
    epochs: int = 3
    patience: int = 0
    """Epochs without a better score on val that end the training; 0 trains them all."""
    lr: float = 0.0
    """Learning rate; 0 for one that follows the model's size."""
    batch_size: int = 8
    accumulate: int = 1
    """Batches to an optimizer step."""
    dropout: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    bf16: bool = True
    """Compute in bfloat16; weights and optimizer stay in float32."""
    packing: bool = False
    """Fill every row of a batch with several examples, which do not see each other."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    checkpoint_minutes: float = 1.0
    """Between checkpoints, from which a training that was killed goes on."""
    accelerate_file: str = ""
    """What `accelerate config` wrote: trains on several GPUs, each of which takes batches of `batch_size`."""
    search: Mapping[str, float] | None = None
    """`{trials: 16, early: 0.2, finish: 3}` searches learning rate, rank, batch size and dropout on val."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        if self.adapter not in ADAPTERS:
            raise UserError(f"sft adapter {self.adapter!r} is not one of {', '.join(ADAPTERS)}; set `adapter: lora`")
        if self.targets not in SOURCES:
            raise UserError(f"sft targets {self.targets!r} is not one of {', '.join(SOURCES)}; set `targets: gold`")
        if self.mix and not (self.mix < 1 and self.mix_file):
            raise UserError(f"sft mix {self.mix:g} is a share below 1 of the rows of `mix_file`; write both")
        if self.adapter == "qlora" and (missing := four_bits_missing()):
            raise UserError(f"sft adapter 'qlora' needs CUDA and bitsandbytes, and {missing}; set `adapter: lora`")
        if self.accelerate_file:
            from crossover.finetune.training.launch import processes_of

            if self.search is not None or self.patience:
                raise UserError("sft accelerate_file trains every epoch to its end; leave out `search` and `patience`")
            processes_of(Path(self.accelerate_file))
        if self.search is not None:
            from crossover.finetune.training.hyperparameters import plan_of

            plan_of(self.search)

    def fit(
        self,
        program: dspy.Module,
        *,
        train: Sequence[dspy.Example],
        val: Sequence[dspy.Example],
        metric: Metric,
        lm: dspy.LM,
        seed: int,
        budget: Budget,
    ) -> Fitted:
        """Train on all of `train`, keep the epoch that scores best on `val`, and serve it by the same engine."""
        from crossover.finetune.training.hyperparameters import search
        from crossover.finetune.training.mix import with_general
        from crossover.finetune.training.render import perplexity, render_training_text, write_jsonl
        from crossover.finetune.training.targets import targets_of
        from crossover.finetune.training.train import Ground, checkpoints_of, fitted_with, train_model

        check_local(lm, "sft")
        ground = Ground(without_demos(program), val, metric, lm, seed, budget)
        targets = targets_of(self.targets, program, train, metric=metric, lm=lm, budget=budget, attempts=self.attempts)
        own = render_training_text(ground.program, targets.calls, lm)
        text = with_general(own, Path(self.mix_file), self.mix, lm, seed) if self.mix else own
        write_jsonl(text, budget.workdir / "train.jsonl")
        notes: dict[str, Any] = {
            "rows": len(own.rows),
            "general_rows": len(text.rows) - len(own.rows),
            "target_perplexity": perplexity(own, lm),
            "solved": targets.solved,
            "longest_row_tokens": max(text.lengths),
            "truncated": 0,
            "dropped_too_long": text.dropped,
            "train_tokens_sha256": text.sha256,
        }
        spent, discarded, place = targets.spent, Usage(), checkpoints_of(budget) / "sft"
        if self.search is None:
            run = train_model(self, text, ground, folder=place)
        else:
            found = search(self, text, ground, place)
            run, discarded = found.run, found.discarded
            notes["search"] = found.report
        fitted = fitted_with(run, ground, probe=text.rows[0]["prompt"], spent=spent + discarded, notes=notes)
        fitted.facts = replace(fitted.facts, teacher_usd=targets.teacher_usd, discarded_seconds=discarded.seconds)
        if text.dropped:
            fitted.warnings.insert(0, f"{text.dropped} training rows exceed the context and were left out")
        if unsolved := len(train) - targets.solved:
            fitted.warnings.insert(0, f"{unsolved} of {len(train)} train examples have no right trace")
        return fitted


def four_bits_missing() -> str:
    """Return what keeps a base in four bits from being trained here, empty for nothing."""
    import torch

    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    return "" if find_spec("bitsandbytes") else "bitsandbytes is not installed"


def check_local(lm: dspy.LM, method: str) -> None:
    """Refuse a model whose weights are not here.

    Raises:
        UserError: the model is served elsewhere, answers with labels alone, or is an adapter on its base.
    """
    from crossover.models.local import LocalEngine
    from crossover.models.prompt import engine_of

    if not isinstance(engine_of(lm), LocalEngine):
        raise UserError(f"{method} needs a model that runs here, and {lm.model} does not; use `local:` or `embedded`")
    if "+" in lm.model:
        raise UserError(f"{method} starts from whole weights, and {lm.model} is an adapter; write both as one `chain`")


def without_demos(program: dspy.Module) -> dspy.Module:
    """Return a copy of the program that shows no demonstrations: what is trained need not be shown."""
    bare = program.deepcopy()
    for _, predictor in bare.named_predictors():
        predictor.demos = []
    return bare


def serve(folder: Path, lm: dspy.LM, *, probe: list[dict[str, str]]) -> tuple[dspy.LM, float]:
    """Return the model with the trained weights, and the largest change of a logit on the probe prompt."""
    from crossover.models.load import tuned_lm
    from crossover.models.prompt import engine_of

    engine = engine_of(lm)
    ids = engine.encode(probe)
    before, tuned = engine.logits(ids), tuned_lm(lm, folder)
    after = engine_of(tuned).logits(ids, tuned.model.partition("+")[2])
    return tuned, float((after - before).abs().max())


def learning_rate(options: Sft, parameters: int) -> float:
    """Return the option, or a rate that follows the model's size.

    2e-4 for LoRA and 5e-5 for full weights from a billion parameters up (TRL's and PEFT's customary values); smaller
    models take larger steps, by the square root of the size: up to eight times for LoRA, which breaks off at more on
    the embedded model, and up to twenty times for full weights.
    """
    if options.lr:
        return options.lr
    scale = max(1.0, math.sqrt(1e9 / parameters))
    return 5e-5 * min(20.0, scale) if options.adapter == "none" else 2e-4 * min(8.0, scale)
