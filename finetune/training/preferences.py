"""Build pairs of a right and a wrong answer to the same prompt, and train to prefer the right one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from crossover.finetune.training.batch_size import by_rows
from crossover.finetune.training.checkpoints import TrainingRun
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.options import TrainingOptions, learning_rate
from crossover.finetune.training.render import render_call, row_ids
from crossover.finetune.training.settings import base_model, base_of, lora_config, trainer_arguments
from crossover.finetune.training.targets import WARM, Call, Tracer, gold_calls
from crossover.finetune.training.train import Training, run_training, val_scorer, weight_saver
from crossover.models.errors import UserError
from crossover.models.meter import Meter
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage
from crossover.programs.score import score_examples, usage_of


@dataclass
class Preferences:
    """Rows for TRL: `{"prompt", "chosen", "rejected"}`, each a list of messages."""

    never_wrong: int
    """Examples that were never answered wrongly, and so teach nothing."""
    rows: list[dict[str, list[dict[str, str]]]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of both answers of each row, prompts included."""
    spent: Usage = field(default_factory=Usage)


def preferences(examples: Sequence[dspy.Example], context: FitContext, attempts: int) -> Preferences:
    """Pair the first wrong answer to each example with its first right one, or with the data's.

    Raises:
        UserError: nothing was answered wrongly, or no pair fits the model's context.
    """
    start, program, engine = time.perf_counter(), context.program, engine_of(context.lm)
    right, wrong, spent = _answered(examples, context, attempts)
    pairs = Preferences(len(examples) - len(wrong), spent=spent)
    for gold in gold_calls(program, examples):
        if (bad := wrong.get(gold.example)) is None:
            continue
        good = right.get(gold.example, gold)
        # The data's answer without its reasoning would teach not to reason.
        if len(good.outputs) < len(bad.outputs):
            continue
        (prompt, chosen), (_, rejected) = (render_call(program, call, engine.tokenizer) for call in (good, bad))
        lengths = [len(row_ids(engine.tokenizer, [*prompt, *answer])) for answer in (chosen, rejected)]
        if max(lengths) <= engine.context and chosen != rejected:
            pairs.rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            pairs.lengths.append(sum(lengths))
    pairs.spent.seconds = time.perf_counter() - start
    if not pairs.rows:
        raise UserError(f"dpo has no pairs of a right and a wrong answer to {len(examples)} train examples; use sft")
    return pairs


def _answered(
    examples: Sequence[dspy.Example], context: FitContext, attempts: int
) -> tuple[dict[str, Call], dict[str, Call], Usage]:
    """Answer every example so many times; return the first right and the first wrong answers by id, and the usage."""
    right, wrong, spent = dict[str, Call](), dict[str, Call](), Usage()
    budget = context.budget
    lm = Meter(file=budget.answers, seed=context.seed).metered(context.lm)
    for attempt in range(attempts):
        tracer = Tracer(context.program)
        with dspy.context(lm=lm if attempt == 0 else lm.copy(temperature=WARM)):
            rows = {r.id: r for r in score_examples(tracer, examples, context.metric, threads=budget.threads)}
        spent += usage_of(list(rows.values())) + Usage(metric_calls=len(rows))
        for e in examples:
            score, output = rows[str(e["id"])].score, rows[str(e["id"])].output
            # An answer that is partly right, or could not be parsed, is neither to be preferred nor to be avoided.
            if score in (0.0, 1.0) and output:
                (right if score else wrong).setdefault(str(e["id"]), tracer.calls(e, output)[0])
        budget.progress(f"dpo: {len(wrong)} of {len(examples)} examples answered wrongly in {attempt + 1} attempts")
    return right, wrong, spent


def train_preferences(options: TrainingOptions, beta: float, pairs: Preferences, context: FitContext) -> TrainingRun:
    """Train an adapter on the pairs, and keep the best epoch."""
    engine, folder = engine_of(context.lm), context.checkpoints / "dpo"

    def build(options: TrainingOptions) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        model = base_model(options, base_of(engine))
        # A tenth of the rate of sft, as customary for DPO.
        rate = options.lr or learning_rate(options, model.num_parameters()) / 10
        arguments = trainer_arguments(replace(options, lr=rate), folder, context.seed, rows=len(pairs.rows))
        trainer = by_rows(DPOTrainer)(
            model=model,
            args=DPOConfig(**arguments, beta=beta, max_length=max(pairs.lengths)),
            train_dataset=Dataset.from_list(pairs.rows),
            processing_class=engine.tokenizer,
            peft_config=lora_config(options),
        )
        if len(trainer.train_dataset) != len(pairs.rows):
            raise RuntimeError(f"TRL kept {len(trainer.train_dataset)} of {len(pairs.rows)} pairs")
        return trainer

    training = Training(
        data=[beta, pairs.rows],
        lengths=pairs.lengths,
        build=build,
        score=val_scorer(context),
        save=weight_saver(engine.tokenizer),
    )
    return run_training(training, context, options, folder)
