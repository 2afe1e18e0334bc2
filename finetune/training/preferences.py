"""Pairs of a right and a wrong answer to the same prompt, and a training that prefers the right one."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from crossover.finetune.training.render import row_ids
from crossover.finetune.training.selection import Pace, Selector, TrainingRun, told
from crossover.finetune.training.settings import base_model, common_arguments, lora_config
from crossover.finetune.training.targets import WARM, Call, Tracer, gold_calls, spent_on_answers
from crossover.finetune.training.train import (
    Ground,
    checkpoints_of,
    identity_of,
    quiet,
    train,
    val_scorer,
    weight_saver,
)
from crossover.models.errors import UserError
from crossover.models.limits import limits_of
from crossover.models.prompt import engine_of, first_messages
from crossover.models.text import safe_messages
from crossover.models.usage import Usage
from crossover.programs.score import score_examples
from crossover.programs.task import Budget, Metric

if TYPE_CHECKING:
    from crossover.finetune.dpo import Dpo
    from crossover.finetune.sft import Sft


@dataclass
class Preferences:
    """Rows for TRL: `{"prompt", "chosen", "rejected"}`, each a list of messages."""

    rows: list[dict[str, list[dict[str, str]]]]
    lengths: list[int]
    """Tokens of both answers of each row, prompts included."""
    never_wrong: int
    """Examples that were never answered wrongly, and so teach nothing."""
    spent: Usage = field(default_factory=Usage)


def preferences(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    *,
    metric: Metric,
    lm: dspy.LM,
    budget: Budget,
    attempts: int,
) -> Preferences:
    """Return a pair for each example that was answered wrongly: its first right answer, else the data's, is preferred.

    Raises:
        UserError: nothing was answered wrongly, or no pair fits the model's context.
    """
    start, spent = time.perf_counter(), Usage()
    right, wrong = dict[str, Call](), dict[str, Call]()
    for attempt in range(attempts):
        tracer = Tracer(program)
        with dspy.context(lm=lm if attempt == 0 else lm.copy(temperature=WARM)):
            rows = {r.id: r for r in score_examples(tracer, examples, metric, threads=budget.threads)}
        spent += spent_on_answers(list(rows.values()))
        for e in examples:
            score = rows[str(e["id"])].score
            if score is not None and (score == 1.0 or score == 0.0):
                (right if score == 1.0 else wrong).setdefault(str(e["id"]), tracer.calls(e)[0])
        budget.progress(f"dpo: {len(wrong)} of {len(examples)} examples answered wrongly in {attempt + 1} attempts")
    gold = {c.example: c for c in gold_calls(program, examples)}
    found = Preferences([], [], len(examples) - len(wrong))
    for e in examples:
        if (bad := wrong.get(str(e["id"]))) is not None:
            _add(found, program, e, right.get(bad.example, gold[bad.example]), bad, lm)
    spent.seconds = time.perf_counter() - start
    found.spent = spent
    if not found.rows:
        raise UserError(f"dpo has no pairs: none of {len(examples)} train examples was answered wrongly; use sft")
    return found


def _add(found: Preferences, program: dspy.Module, example: dspy.Example, good: Call, bad: Call, lm: dspy.LM) -> None:
    """Add the pair, unless it is longer than the context."""
    predictor, tokenizer = program.named_predictors()[0][1], engine_of(lm).tokenizer
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    prompt = safe_messages(tokenizer, first_messages(program, example, predictor))
    chosen, rejected = (
        safe_messages(
            tokenizer,
            [
                {
                    "role": "assistant",
                    "content": adapter.format_assistant_message_content(predictor.signature, call.outputs),
                }
            ],
        )
        for call in (good, bad)
    )
    lengths = [len(row_ids(tokenizer, [*prompt, *answer])) for answer in (chosen, rejected)]
    if max(lengths) <= engine_of(lm).context and chosen != rejected:
        found.rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        found.lengths.append(sum(lengths))


def train_preferences(
    options: "Dpo", like: "Sft", pairs: Preferences, ground: Ground
) -> tuple[TrainingRun, dict[str, Any]]:
    """Train an adapter, and return the run with the margins by which right answers were preferred."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOTrainer

    from crossover.finetune.sft import learning_rate

    engine, folder = engine_of(ground.lm), checkpoints_of(ground.budget) / "dpo"
    run = TrainingRun(folder=folder / "best")
    selector = Selector(
        run,
        pace=Pace(options.epochs, minutes=options.checkpoint_minutes),
        score=val_scorer(ground),
        save=weight_saver(engine.tokenizer),
        folder=folder,
        budget=ground.budget,
        allowance=limits_of(ground.lm),
        identity=identity_of(ground, asdict(options), pairs.rows),
    )
    if run.done:
        return run, {}
    set_seed(ground.seed)
    model = base_model(like, engine.folder)
    lr = options.lr or learning_rate(like, model.num_parameters()) / 10
    with quiet():
        trainer = DPOTrainer(
            model=model,
            args=_arguments(options, pairs, folder, lr, ground.seed),
            train_dataset=Dataset.from_list(pairs.rows),
            processing_class=engine.tokenizer,
            peft_config=lora_config(like),
        )
        if len(trainer.train_dataset) != len(pairs.rows):
            raise RuntimeError(f"TRL kept {len(trainer.train_dataset)} of {len(pairs.rows)} pairs")
        train(trainer, selector)
    run.tokens = round(sum(pairs.lengths) * trainer.state.epoch)
    margins = told(trainer.state, trainer.args.logging_steps, "rewards/margins")
    selector.finish()
    return run, {"margins": margins}


def _arguments(options: "Dpo", pairs: Preferences, folder: Path, lr: float, seed: int) -> Any:
    from trl import DPOConfig

    steps = max(1, len(pairs.rows) * options.epochs // options.batch_size)
    return DPOConfig(
        **common_arguments(folder, seed, steps),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        beta=options.beta,
        learning_rate=lr,
        warmup_steps=int(options.warmup * steps),
        max_length=max(pairs.lengths),
        gradient_checkpointing=False,
        bf16=options.bf16,
    )
