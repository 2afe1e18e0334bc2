"""Define the hyper-parameters that every trainer reads, and the checks that methods make before they train."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import dspy

from crossover.models.errors import UserError

ADAPTERS = ("lora", "dora", "qlora", "none")
SEARCHED_RANKS = (4, 8, 16, 32, 64)
"""Those that `search` tries."""
AUTO = "auto"
AUTO_ROWS = 8
"""Rows of a batch whose size is `auto`; memory decides in how many parts they go through the model."""


@dataclass(frozen=True)
class TrainingOptions:
    """The hyper-parameters of one training; the fields of `Sft` describe them."""

    adapter: str = "lora"
    rank: int = 16
    alpha: int = 32
    target_modules: str = "all-linear"
    epochs: int = 3
    patience: int = 0
    lr: float = 0.0
    batch_size: int | str = 8
    accumulate: int = 1
    dropout: float = 0.0
    warmup: float = 0.05
    bf16: bool = True
    packing: bool = False
    gradient_checkpointing: bool = False
    checkpoint_minutes: float = 1.0

    @property
    def rows_per_batch(self) -> int:
        """Return the rows of a batch, in whatever parts they go through the model."""
        return AUTO_ROWS if self.batch_size == AUTO else int(self.batch_size)

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> "TrainingOptions":
        """Pick the hyper-parameters out of a method's options; the rest have their defaults."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in known})


def learning_rate(options: TrainingOptions, parameters: int) -> float:
    """Return the option, or a rate that follows the model's size.

    2e-4 for LoRA and 5e-5 for full weights from a billion parameters up (TRL's and PEFT's customary values). Smaller
    models take larger steps, by the square root of the size: up to 8 times for LoRA, which diverges beyond that on the
    smallest model tried (4.7 M parameters), and up to 20 times for full weights.
    """
    if options.lr:
        return options.lr
    scale = max(1.0, math.sqrt(1e9 / parameters))
    return 5e-5 * min(20.0, scale) if options.adapter == "none" else 2e-4 * min(8.0, scale)


def check_adapter(adapter: str) -> None:
    """Refuse an adapter that does not exist or cannot be trained on this machine.

    Raises:
        UserError: it is not one of ADAPTERS, or it is qlora and CUDA or bitsandbytes is missing.
    """
    if adapter not in ADAPTERS:
        raise UserError(f"sft adapter {adapter!r} is not one of {', '.join(ADAPTERS)}; set `adapter: lora`")
    if adapter == "qlora" and (missing := four_bits_missing()):
        raise UserError(f"sft adapter 'qlora' needs CUDA and bitsandbytes, and {missing}; set `adapter: lora`")


def four_bits_missing() -> str:
    """Return why this machine cannot train on a base in four bits, or an empty string."""
    import torch

    if not torch.cuda.is_available():
        return "this machine has no CUDA device"
    return "" if find_spec("bitsandbytes") else "bitsandbytes is not installed"


def check_batch_size(method: str, size: int | str) -> None:
    """Refuse a batch size that is neither a positive number nor AUTO.

    Raises:
        UserError: it is another text, or below 1.
    """
    if size != AUTO and (isinstance(size, str) or size < 1):
        raise UserError(f"{method} batch_size {size!r} is neither a number of rows nor auto; set `batch_size: auto`")


def check_local(lm: dspy.LM, method: str) -> None:
    """Refuse a model whose weights cannot be trained in this process.

    Raises:
        UserError: the model is served elsewhere, by a server that loads no adapters, answers with labels alone, or is
            an adapter on its base.
    """
    from crossover.models.prompt import engine_of
    from crossover.models.token_engine import TokenEngine

    engine = engine_of(lm)
    if not isinstance(engine, TokenEngine):
        raise UserError(f"{method} needs a model that runs here, and {lm.model} does not; use `smollm2` or `local:`")
    engine.check_adapters()
    if "+" in lm.model:
        raise UserError(f"{method} starts from whole weights, and {lm.model} is an adapter; write both as one `chain`")


def without_demos(program: dspy.Module) -> dspy.Module:
    """Copy the program without its demonstrations: a trained model needs none in its prompt."""
    bare = program.deepcopy()
    for _, predictor in bare.named_predictors():
        predictor.demos = []
    return bare
