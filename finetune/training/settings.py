"""What the libraries are told: the base to train, the trainer's arguments, PEFT's configuration."""

import os
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossover.finetune.training.render import TrainingText

if TYPE_CHECKING:
    from crossover.finetune.sft import Sft

PACK = 1024
"""Tokens of a pack, where no row is longer."""


def base_model(options: "Sft", folder: Path) -> Any:
    """Return a fresh copy of the base in float32, or in four bits for qlora."""
    from transformers import AutoModelForCausalLM

    if options.adapter != "qlora":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four, device_map={"": int(os.environ.get("LOCAL_RANK", "0"))}, use_safetensors=True
    )


def sft_config(
    options: "Sft", text: TrainingText, folder: Path, lr: float, seed: int, context: int = PACK, **more: Any
) -> Any:
    """Return TRL's configuration: nothing truncated, nothing reported elsewhere, nothing saved but what we choose."""
    from trl import SFTConfig

    longest = max(text.lengths)
    length = min(context, max(PACK, longest)) if options.packing else longest
    batches = ceil(sum(text.lengths) / length) if options.packing else len(text.rows)
    steps = max(1, batches * options.epochs // (options.batch_size * options.accumulate))
    config = SFTConfig(
        **common_arguments(folder, seed, steps) | more,
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
    )
    if config.n_gpu > 1:
        # One process: TRL refuses torch's DataParallel, and several GPUs take `accelerate_file`.
        config._n_gpu = 1
    return config


def common_arguments(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Return the settings that trainings of every kind share; losses are told about twenty times."""
    return {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "logging_steps": max(1, steps // 20),
        "save_strategy": "no",
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


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
