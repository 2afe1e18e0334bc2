"""Supervised fine-tuning on the train examples, by TRL: LoRA, DoRA or QLoRA (PEFT), or full weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from crossover.finetune.training.options import (
    AUTO,
    TrainingOptions,
    check_adapter,
    check_batch_size,
    check_local,
    without_demos,
)
from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import Budget, Fitted, Metric, Workload

if TYPE_CHECKING:
    from crossover.finetune.training.checkpoints import TrainingRun
    from crossover.finetune.training.context import FitContext
    from crossover.finetune.training.render import TrainingText

SOURCES = ("gold", "teacher", "self")


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
    """Answers to learn: `gold` (the data's), `teacher`, or `self` (the model's own that score 1)."""
    attempts: int = 4
    """Answers to an example, at most, until a trace scores 1; the first at the model's own temperature."""
    mix: float = 0.0
    """Share of general rows among all rows, against forgetting."""
    mix_file: str = ""
    """JSON lines with prompt and completion: the source of the general rows."""
    epochs: int = 3
    """The one that scores best on val is kept."""
    patience: int = 0
    """Epochs without a better score on val that end the training; 0 trains them all."""
    lr: float = 0.0
    """Learning rate; 0 for one that follows the model's size."""
    batch_size: int | str = 8
    """Rows, which go through the model in parts where memory does not hold them at once; `auto` for 8."""
    accumulate: int = 1
    """Batches to an optimizer step."""
    dropout: float = 0.0
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    bf16: bool = True
    """Compute in bfloat16 where the hardware has it; weights and optimizer stay in float32."""
    packing: bool = False
    """Fill every row of a batch with several examples, which do not see each other."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, more time."""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints, from which a training that was killed goes on."""
    accelerate_file: str = ""
    """File of `accelerate config`: trains on several GPUs, each of which takes batches of `batch_size`."""
    search: Mapping[str, float] | None = None
    """`{trials: 16, early: 0.2, finish: 3}` searches learning rate, rank, batch size and dropout on val."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is spent."""
        check_adapter(self.adapter)
        check_batch_size("sft", self.batch_size)
        if self.batch_size == AUTO and (self.accelerate_file or self.search is not None):
            raise UserError(
                "sft batch_size auto is for one training in one process; leave out `search` or `accelerate_file`"
            )
        if self.targets not in SOURCES:
            raise UserError(f"sft targets {self.targets!r} is not one of {', '.join(SOURCES)}; set `targets: gold`")
        if self.mix and not (self.mix < 1 and self.mix_file):
            raise UserError(f"sft mix {self.mix:g} is a share below 1 of the rows of `mix_file`; write both")
        if self.accelerate_file:
            from crossover.finetune.training.launch import processes_of

            if self.search is not None or self.patience:
                raise UserError("sft accelerate_file trains every epoch to its end; leave out `search` and `patience`")
            processes_of(Path(self.accelerate_file))
        if self.search is not None:
            from crossover.finetune.training.hyperparameters import plan_of

            plan_of(self.search)

    def workload(self, train: int) -> Workload:
        """Return what `train` examples make of these options."""
        trainings, readings, gold = 1.0, 1 + self.epochs, self.targets == "gold"
        if self.search is not None:
            from crossover.finetune.training.hyperparameters import plan_of

            plan = plan_of(self.search)
            trainings, readings = plan.whole_trainings, plan.readings_of_val(self.epochs)
        return Workload(
            epochs=trainings * self.epochs / (1 - self.mix),
            readings=readings,
            batch=TrainingOptions.among(asdict(self)).rows_per_batch,
            attempts=0 if gold else self.attempts,
            traced=self.attempts if gold else 0,
        )

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
        from crossover.finetune.training.context import FitContext
        from crossover.finetune.training.mix import read_general, with_general
        from crossover.finetune.training.render import perplexity, render_training_text, write_jsonl
        from crossover.finetune.training.targets import targets_of, unlearned_fields
        from crossover.finetune.training.train import fitted_with

        check_local(lm, "sft")
        context = FitContext(without_demos(program), val, metric, lm, seed, budget)
        # Before anything is paid for.
        general = read_general(Path(self.mix_file)) if self.mix else []
        # Whoever answers for targets may see the program's demonstrations; the trained model does without.
        targets = targets_of(self.targets, train, replace(context, program=program), self.attempts)
        own = render_training_text(context.program, targets.calls, lm)
        fields = dict.fromkeys(name for call in targets.calls for name in call.outputs)
        learnt = ", ".join(budget.columns.get(name, name) for name in fields)
        unlearned = ", ".join(unlearned_fields(context.program, targets.calls))
        lacking = f", without {unlearned}" if unlearned else ""
        budget.progress(f"sft learns {learnt} from {len(own.rows)} rows{lacking}")
        text = with_general(own, general, self.mix, lm, seed) if general else own
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
        run, discarded, report = self._train(text, context)
        if self.search is not None:
            notes["search"] = report
        spent = targets.spent + discarded
        fitted = fitted_with(run, context, probe=text.rows[0]["prompt"], spent=spent, notes=notes)
        fitted.facts = replace(fitted.facts, teacher_usd=targets.teacher_usd, discarded_seconds=discarded.seconds)
        if text.dropped:
            fitted.warnings.insert(0, f"{text.dropped} training rows exceed the context and were left out")
        if unlearned:
            fitted.warnings.insert(0, f"learnt without {unlearned}, which the data lacks; use `targets: self`")
        if unsolved := len(train) - targets.solved:
            fitted.warnings.insert(0, f"{unsolved} of {len(train)} train examples have no right trace")
        return fitted

    def _train(self, text: "TrainingText", context: "FitContext") -> tuple["TrainingRun", Usage, dict[str, Any]]:
        """Return the training that is kept, the cost of those that are not, and the report of a search."""
        options, folder = TrainingOptions.among(asdict(self)), context.checkpoints / "sft"
        if self.search is not None:
            from crossover.finetune.training.hyperparameters import plan_of, search

            result = search(options, plan_of(self.search), text, context, folder)
            return result.run, result.discarded, result.report
        if self.accelerate_file:
            from crossover.finetune.training.launch import train_launched

            return train_launched(Path(self.accelerate_file), options, text, context, folder), Usage(), {}
        from crossover.finetune.training.sft_training import train_sft

        return train_sft(options, text, context, folder), Usage(), {}
