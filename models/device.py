"""Where models of this process run, and how they get there."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging


def device_name() -> str:
    """Return torch's name of the device: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def load_weights(folder: str | Path, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return model, ready to serve on the device, and tokenizer: float32 on the CPU, bfloat16 on a GPU.

    `folder` may be a hub id. Weights are read from safetensors only.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    device = device_name()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    return model.to(device).eval(), tokenizer


def accelerator() -> str:
    """Return the name of the device that local models run on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else "none; models run on the processor"
