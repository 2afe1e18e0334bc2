"""Direct preference optimization by TRL: right answers against the model's own wrong ones (arXiv 2305.18290)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from programs.task import Budget, Fitted, Metric, UserError


@dataclass(frozen=True)
class Dpo:
    """Options of DPO; the defaults are TRL's unless a comment says why not."""

    beta: float = 0.1
    """How hard the model is held to what it was."""
    attempts: int = 4
    """Times that each train example is answered, the first at the model's own temperature, the others at 1."""
    adapter: str = "lora"
    rank: int = 16
    alpha: int = 32
    epochs: int = 2
    lr: float = 0.0
    """Learning rate; 0 for a tenth of the one of sft, as customary for DPO."""
    batch_size: int = 8
    warmup: float = 0.05
    bf16: bool = True
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        if self.adapter not in ("lora", "dora"):
            raise UserError(f"dpo adapter {self.adapter!r} is not one of lora, dora; set `adapter: lora`")

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
        """Answer `train` several times, learn to prefer what is right, and keep the epoch that scores best on `val`."""
        from finetune.preferences import preferences, train_preferences
        from finetune.sft import Sft, check_local, serve, without_demos
        from finetune.training import Ground, copy_best

        check_local(lm, "dpo")
        if len(program.named_predictors()) != 1:
            raise UserError("dpo prefers one answer to another, and this program gives several; use sft")
        start = time.perf_counter()
        bare = without_demos(program)
        pairs = preferences(bare, train, metric=metric, lm=lm, budget=budget, attempts=self.attempts)
        like = Sft(adapter=self.adapter, rank=self.rank, alpha=self.alpha, lr=self.lr, epochs=self.epochs,
                   batch_size=self.batch_size, warmup=self.warmup, bf16=self.bf16,
                   checkpoint_minutes=self.checkpoint_minutes)  # fmt: skip
        run, told = train_preferences(self, like, pairs, Ground(bare, val, metric, lm, seed, budget))
        run = copy_best(run, budget)
        tuned, change = serve(run.folder, lm, probe=pairs.rows[0]["prompt"])
        spent = run.spent + pairs.spent
        spent.seconds = max(spent.seconds, time.perf_counter() - start)
        notes: dict[str, Any] = {
            "logit_change": change, "pairs": len(pairs.rows), "never_wrong": pairs.never_wrong, "loss": run.losses,
            "best_epoch": run.best_epoch, "val_scores": run.val_scores, "lr": run.lr,
            "trainable_parameters": run.trainable, "resumed_from_step": run.resumed_from, **told,
        }  # fmt: skip
        fitted = Fitted(program=bare, lm=tuned, spent=spent, artifact=run.folder, notes=notes)
        if run.best_epoch == 0:
            fitted.warnings.append("no epoch beat the untrained model on val")
        return fitted
