"""Supervised fine-tuning on the train examples, by TRL: LoRA (PEFT) or full weights."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dspy

from programs.task import Budget, Fitted, Metric, Spent, UserError


@dataclass(frozen=True)
class Sft:
    """Options of supervised fine-tuning; the defaults are TRL's unless a comment says why not."""

    adapter: str = "lora"
    """`lora`, or `none` for full weights."""
    rank: int = 16
    alpha: int = 32
    """LoRA's scale is alpha / rank."""
    epochs: int = 3
    lr: float = 0.0
    """Learning rate; 0 for one that follows the model's size."""
    batch_size: int = 8
    dropout: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    bf16: bool = True
    """Compute in bfloat16; weights and optimizer stay in float32."""

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
        from finetune.render import render_training_text
        from finetune.training import check_tokens, train_model
        from models.prompt import engine_of

        if engine_of(lm) is None:
            raise UserError(f"sft needs a model that runs here, and {lm.model} does not; use `local:` or `embedded`")
        if self.adapter not in ("lora", "none"):
            raise UserError(f"sft adapter {self.adapter!r} is not one of lora, none; set `adapter: lora`")
        start = time.perf_counter()
        bare = program.deepcopy()
        for _, predictor in bare.named_predictors():
            predictor.demos = []
        text = render_training_text(bare, train, lm)
        run = train_model(self, text, program=bare, val=val, metric=metric, lm=lm, seed=seed, budget=budget)
        check_tokens(run.trained_ids, text, engine_of(lm))
        tuned, change = serve(run.folder, lm, probe=text.rows[0]["prompt"])
        spent = Spent(train_tokens=run.tokens, seconds=time.perf_counter() - start) + run.selection
        fitted = Fitted(program=bare, lm=tuned, spent=spent, artifact=run.folder)
        fitted.notes = {
            "logit_change": change,
            "best_epoch": run.best_epoch,
            "val_scores": run.val_scores,
            "loss": run.losses,
            "rows": len(text.rows),
            "longest_row_tokens": max(text.lengths),
            "truncated": 0,
            "dropped_too_long": text.dropped,
            "train_tokens_sha256": text.sha256,
            "trainable_parameters": run.trainable,
            "lr": run.lr,
        }
        if text.dropped:
            fitted.warnings.append(f"{text.dropped} training rows exceed the context and were left out")
        if run.best_epoch == 0:
            fitted.warnings.append("no epoch beat the untrained model on val")
        return fitted


def serve(folder: Path, lm: dspy.LM, *, probe: list[dict[str, str]]) -> tuple[dspy.LM, float]:
    """Return the model with the trained weights, and the largest change of a logit on the probe prompt."""
    from models.load import tuned_lm
    from models.prompt import engine_of

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
    return 2e-4 * min(8.0, scale) if options.adapter == "lora" else 5e-5 * min(20.0, scale)
