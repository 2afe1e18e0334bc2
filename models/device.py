"""Choose device and precision for local models, and load their weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from crossover.models.errors import UserError
from crossover.models.model_folder import stored_bytes


def device_name() -> str:
    """Return torch's name of the device: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


LARGE = 10_000_000
"""Parameters from which a model is served in bfloat16 on a processor that supports it (benchmarks/precision.py);
smaller ones are fast anyhow, and in float32 an answer hardly ever depends on the rows beside it."""


def serving_dtype(parameters: int) -> torch.dtype:
    """Return the dtype in which a model of that size is served on this machine."""
    if device_name() == "cuda":
        return torch.bfloat16
    able = device_name() == "cpu" and processor_has_bfloat16()
    return torch.bfloat16 if able and parameters >= LARGE else torch.float32


def processor_has_bfloat16() -> bool:
    """Return whether the processor multiplies in bfloat16; torch emulates it on others, about 30 times as slowly."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def training_in_bfloat16() -> bool:
    """Return whether this machine trains faster in bfloat16; training runs on a CUDA device or on the processor."""
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else processor_has_bfloat16()


def parameters_of(folder: str | Path, *, trust_remote_code: bool) -> int:
    """Return the number of a model's parameters, from its configuration alone."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def load_configuration(folder: str | Path, *, trust_remote_code: bool) -> tuple[Any, Any, Any]:
    """Return tokenizer, configuration and the tokens that end an answer (a number, several, or None), without weights.

    `folder` may be a hub id.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return tokenizer, config, generation.eos_token_id


def load_weights(folder: str | Path, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return model, ready to serve on the device, and tokenizer.

    `folder` may be a hub id. Weights are read from safetensors only.

    Raises:
        UserError: configuration and weights are not of one model.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    device = device_name()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    parameters = parameters_of(folder, trust_remote_code=trust_remote_code)
    # Transformers would make room for all that the configuration says; no format stores a weight in less than a bit.
    if Path(folder).is_dir() and parameters > 8 * stored_bytes(Path(folder)):
        raise UserError(f"{folder}: config.json describes {parameters:.2g} weights, far more than the files hold")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=serving_dtype(parameters),
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # Transformers would make up what is not there.
    if wrong := {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}:
        what = f"{len(wrong)} weights are missing or of another shape, such as {min(wrong)}"
        raise UserError(f"{folder}: {what}; config.json and the weights are not of one model")
    return model.to(device).eval(), tokenizer


def accelerator() -> str:
    """Return the name of the device that local models run on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return "Apple GPU (mps)" if torch.backends.mps.is_available() else "none; models run on the processor"
