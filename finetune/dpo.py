"""Direct preference optimization by TRL: right answers against the model's own wrong ones (arXiv 2305.18290)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import dspy

from crossover.finetune.training.options import TrainingOptions, check_batch_size, check_local, without_demos
from crossover.models.errors import UserError
from crossover.programs.task import Budget, Fitted, Metric, Workload


@dataclass(frozen=True)
class Dpo:
    """Options of DPO; the defaults are TRL's unless a comment says why not."""

    beta: float = 0.1
    """Strength of the penalty on leaving the untrained model."""
    attempts: int = 4
    """Answers to each train example, the first at the model's own temperature, the others at 1."""
    adapter: str = "lora"
    """`lora` or `dora`."""
    rank: int = 16
    alpha: int = 32
    epochs: int = 2
    """The one that scores best on val is kept."""
    lr: float = 0.0
    """Learning rate; 0 for a tenth of that of sft, as customary for DPO."""
    batch_size: int | str = 8
    """Pairs, which go through the model in parts where memory does not hold them at once; `auto` for 8."""
    warmup: float = 0.05
    bf16: bool = True
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        if self.adapter not in ("lora", "dora"):
            raise UserError(f"dpo adapter {self.adapter!r} is not one of lora, dora; set `adapter: lora`")
        check_batch_size("dpo", self.batch_size)

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        # A pair is two rows, each with the whole prompt.
        return Workload(epochs=2 * self.epochs, readings=1 + self.epochs, attempts=self.attempts)

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
        """Answer `train` several times, learn to prefer right answers, and keep the epoch that scores best on `val`."""
        from crossover.finetune.training.context import FitContext
        from crossover.finetune.training.preferences import preferences, train_preferences
        from crossover.finetune.training.train import fitted_with

        check_local(lm, "dpo")
        if len(program.named_predictors()) != 1:
            raise UserError("dpo prefers one answer to another, and this program gives several; use sft")
        context = FitContext(without_demos(program), val, metric, lm, seed, budget)
        pairs = preferences(train, context, self.attempts)
        run = train_preferences(TrainingOptions.among(asdict(self)), self.beta, pairs, context)
        notes = {"pairs": len(pairs.rows), "never_wrong": pairs.never_wrong}
        return fitted_with(run, context, probe=pairs.rows[0]["prompt"], spent=pairs.spent, notes=notes)
