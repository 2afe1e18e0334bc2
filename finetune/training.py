"""Run TRL's SFTTrainer for the methods of this folder, with selection on val and checkpoints."""

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import torch

from finetune.render import TrainingText, row_ids
from finetune.selection import Pace, Score, Selector, TrainingRun, told
from models.allowance import allowance_of, held_like
from models.load import local_lm
from models.local import LocalEngine
from models.prompt import engine_of
from programs.score import Row, mean_score, score_examples
from programs.task import Budget, Metric, Spent

if TYPE_CHECKING:
    from finetune.sft import Sft

PACK = 1024
"""Tokens of a pack, where no row is longer."""
CHECKED = 32
"""Rows whose tokens are compared with the serving side's."""


@dataclass(frozen=True)
class Ground:
    """What a training stands on, whatever its hyper-parameters."""

    program: dspy.Module
    val: Sequence[dspy.Example]
    metric: Metric
    lm: dspy.LM
    seed: int
    budget: Budget


def train_model(options: "Sft", text: TrainingText, ground: Ground, *, folder: Path, pause: float = 0.0) -> TrainingRun:
    """Train a fresh copy of the base on the rows and keep the best epoch's weights in `folder`.

    A training that was killed, or paused after a share of its steps, goes on from its last checkpoint.
    """
    from datasets import Dataset
    from transformers import set_seed

    from finetune.loss import trainer_for
    from finetune.sft import learning_rate

    engine = engine_of(ground.lm)
    identity = sha256(json.dumps([asdict(options), text.sha256, len(text.rows), ground.seed]).encode()).hexdigest()
    run = TrainingRun(folder=folder / "best")
    pace = Pace(options.epochs, options.patience, options.checkpoint_minutes, last=not ground.val, pause=pause)
    selector = Selector(
        run, pace=pace, score=val_scorer(ground), save=weight_saver(engine.tokenizer), folder=folder,
        budget=ground.budget, allowance=allowance_of(ground.lm), identity=identity,
    )  # fmt: skip
    if run.done or (pause and run.early_score is not None):
        return run
    set_seed(ground.seed)
    model = base_model(options, engine.folder)
    run.lr = learning_rate(options, model.num_parameters())
    with quiet():
        trainer = trainer_for(model)(
            model=model,
            args=sft_config(options, text, folder, run.lr, ground.seed, engine.context),
            train_dataset=Dataset.from_list(text.rows),
            processing_class=engine.tokenizer,
            peft_config=None if options.adapter == "none" else lora_config(options),
        )
        check_tokens(trained_ids(trainer.train_dataset, len(text.rows), packed=options.packing), text, engine)
        run.trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        trainer.add_callback(selector)
        trainer.train(resume_from_checkpoint=None if selector.checkpoint is None else str(selector.checkpoint))
    run.tokens = round(sum(text.lengths) * trainer.state.epoch)
    run.losses = told(trainer.state, trainer.args.logging_steps)
    selector.finish()
    return run


def base_model(options: "Sft", folder: Path) -> Any:
    """Return a fresh copy of the base in float32, or in four bits for qlora."""
    from transformers import AutoModelForCausalLM

    if options.adapter != "qlora":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, device_map={"": 0}, use_safetensors=True
    )


def trained_ids(dataset: Any, rows: int, *, packed: bool) -> list[list[int]]:
    """Return the token ids of the first rows as they are trained; of packs, every row they hold.

    Raises:
        RuntimeError: a row was lost on the way.
    """
    if not packed:
        if len(dataset) != rows:
            raise RuntimeError(f"TRL kept {len(dataset)} of {rows} training rows")
        return [list(dataset[i]["input_ids"]) for i in range(min(CHECKED, rows))]
    found = []
    for pack in dataset:
        ends = [sum(pack["seq_lengths"][: n + 1]) for n in range(len(pack["seq_lengths"]))]
        found += [list(pack["input_ids"][end - n : end]) for n, end in zip(pack["seq_lengths"], ends, strict=True)]
    if len(found) != rows:
        raise RuntimeError(f"TRL packed {len(found)} of {rows} training rows")
    return found


def sft_config(options: "Sft", text: TrainingText, folder: Path, lr: float, seed: int, context: int = PACK) -> Any:
    """Return TRL's configuration: nothing truncated, nothing reported elsewhere, nothing saved but what we choose."""
    from trl import SFTConfig

    longest = max(text.lengths)
    length = min(context, max(PACK, longest)) if options.packing else longest
    batches = ceil(sum(text.lengths) / length) if options.packing else len(text.rows)
    steps = max(1, batches * options.epochs // (options.batch_size * options.accumulate))
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=int(options.warmup * steps),
        max_length=length,
        packing=options.packing,
        train_sampling_strategy="random" if options.packing else "group_by_length",
        completion_only_loss=True,
        gradient_checkpointing=options.gradient_checkpointing,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        save_total_limit=2,
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def lora_config(options: "Sft") -> Any:
    """Return PEFT's configuration; by default every linear layer of the blocks, as in QLoRA (arXiv 2305.14314)."""
    from peft import LoraConfig

    named = [name.strip() for name in options.target_modules.split(",")]
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=named if options.target_modules != "all-linear" else "all-linear",
        use_dora=options.adapter == "dora",
        task_type="CAUSAL_LM",
    )


def val_scorer(ground: Ground) -> Score:
    """Return what scores a model in training on val, by the task's own metric, as the serving side would."""
    tokenizer, context = engine_of(ground.lm).tokenizer, dspy.settings.copy()

    def score(model: Any) -> tuple[float, Spent]:
        with in_eval(model):
            engine = LocalEngine(model, tokenizer, in_training=True)
            served = local_lm(
                ground.lm.model + "-in-training",
                engine,
                ground.lm.kwargs["max_tokens"],
                ground.lm.kwargs["temperature"],
            )
            try:
                with dspy.context(lm=held_like(served, ground.lm), adapter=context["adapter"], rm=context["rm"]):
                    rows = list(
                        score_examples(ground.program, ground.val, ground.metric, threads=ground.budget.threads)
                    )
            finally:
                engine.close()
        return mean_score(rows), spent_on(rows)

    return score


@contextlib.contextmanager
def in_eval(model: Any) -> Any:
    """Turn dropout off for a while, and back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def weight_saver(tokenizer: Any) -> Callable[[Any, Path], None]:
    """Return what writes the weights with the tokenizer, so that the folder can be served."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def checkpoints_of(budget: Budget) -> Path:
    """Return where checkpoints are kept."""
    return budget.checkpoints or budget.workdir / "checkpoints"


def copy_best(run: TrainingRun, budget: Budget) -> TrainingRun:
    """Return the run with a copy of its best weights in the work folder, which outlives the checkpoints."""
    kept = budget.workdir / "best"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run.folder, kept)
    return replace(run, folder=kept)


def spent_on(rows: Sequence[Row]) -> Spent:
    """Return the calls and tokens of scored examples; their seconds overlap and are measured outside."""
    return Spent(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
    )


def check_tokens(trained: Sequence[Sequence[int]], text: TrainingText, engine: LocalEngine) -> None:
    """Raise unless the first rows were trained on exactly the token ids that serving sends.

    Raises:
        RuntimeError: TRL's rendering differs from the serving one, so that a comparison would be unfair.
    """
    known = {tuple(ids) for ids in trained}
    for row in text.rows[: min(CHECKED, len(trained))]:
        served = engine.encode(row["prompt"])
        whole = row_ids(engine.tokenizer, [*row["prompt"], *row["completion"]])
        if tuple(whole) not in known or whole[: len(served)] != served:
            raise RuntimeError("training and serving render the same example to different tokens")


@contextlib.contextmanager
def quiet() -> Any:
    """Keep the libraries' own tables and warnings off stdout and stderr while they train."""
    loggers = [logging.getLogger(n) for n in ("transformers", "trl", "peft", "accelerate", "datasets")]
    levels = [x.level for x in loggers]
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
