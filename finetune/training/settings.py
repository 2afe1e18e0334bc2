"""Load the base to train, and turn `TrainingOptions` into the libraries' own configurations."""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from crossover.finetune.training.options import TrainingOptions
from crossover.finetune.training.render import TrainingText
from crossover.models.device import training_in_bfloat16
from crossover.models.local import LocalEngine

PACK = 1024
"""Tokens of a pack, unless a row is longer."""


class Base(NamedTuple):
    """The weights that a training starts from."""

    source: str
    """A folder or a hub id."""
    trust_remote_code: bool = False


def base_of(engine: LocalEngine) -> Base:
    """Return the weights that an engine was loaded from, by a path that holds in other processes too."""
    folder = engine.folder
    return Base(str(folder.resolve() if folder.is_dir() else folder), engine.trust_remote_code)


def base_model(options: TrainingOptions, base: Base) -> Any:
    """Return a fresh copy of the base in float32, or in four bits for qlora."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if options.adapter != "qlora":
        return AutoModelForCausalLM.from_pretrained(
            base.source, dtype=torch.float32, use_safetensors=True, trust_remote_code=base.trust_remote_code
        )
    # The four settings of QLoRA (arXiv 2305.14314).
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = int(os.environ.get("LOCAL_RANK", "0"))
    return AutoModelForCausalLM.from_pretrained(
        base.source,
        quantization_config=four_bits,
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=base.trust_remote_code,
    )


def trainer_arguments(
    options: TrainingOptions, folder: Path, seed: int, *, rows: int, save_epochs: bool = False
) -> dict[str, Any]:
    """Return the arguments that the trainers of all kinds share; the loss is logged about twenty times.

    The library saves every epoch with `save_epochs`; else only when a callback asks.
    """
    steps = max(1, rows * options.epochs // (options.rows_per_batch * options.accumulate))
    return {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.rows_per_batch,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(options.warmup * steps),
        "gradient_checkpointing": options.gradient_checkpointing,
        "bf16": options.bf16 and training_in_bfloat16(),
        "logging_steps": max(1, steps // 20),
        "save_strategy": "epoch" if save_epochs else "no",
        "save_total_limit": None if save_epochs else 2,
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def tokens_of_row(options: TrainingOptions, lengths: Sequence[int], context: int) -> int:
    """Return the tokens of the longest row, or of a pack of rows."""
    return min(context, max(PACK, max(lengths))) if options.packing else max(lengths)


def sft_config(
    options: TrainingOptions,
    text: TrainingText,
    folder: Path,
    seed: int,
    *,
    context: int = PACK,
    save_epochs: bool = False,
) -> Any:
    """Return TRL's configuration: no row is truncated, and the loss falls on the completion alone."""
    from trl import SFTConfig

    length = tokens_of_row(options, text.lengths, context)
    rows = ceil(sum(text.lengths) / length) if options.packing else len(text.rows)
    config = SFTConfig(
        **trainer_arguments(options, folder, seed, rows=rows, save_epochs=save_epochs),
        max_length=length,
        packing=options.packing,
        train_sampling_strategy="random" if options.packing else "group_by_length",
        completion_only_loss=True,
    )
    if config.n_gpu > 1:
        # One process: TRL refuses torch's DataParallel, and several GPUs take `accelerate_file`.
        config._n_gpu = 1
    return config


def lora_config(options: TrainingOptions) -> Any:
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
