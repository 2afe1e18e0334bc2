"""Turn a GGUF file into the safetensors folder that training and serving read."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from crossover.models.errors import UserError, one_line

CARD = """# {name}

{origin}

Made by crossover from the GGUF file `{file}` (sha256 {sha256}): every weight was dequantized and stored as bfloat16.
What quantization lost stays lost, so scores may differ a little from those of the original weights.
"""


def convert(gguf: Path, folder: Path, *, digits_apart: bool = False) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, dequantized, as bfloat16 safetensors.

    `digits_apart` makes every digit a token of its own, as SmolLM's tokenizer does; transformers does not read this
    from the file.

    Raises:
        UserError: transformers cannot read the file.
    """
    transformers_logging.set_verbosity_error()
    # Reading and writing draw bars of their own, even where stderr is no terminal.
    with contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = _read(gguf)
        if digits_apart:
            digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
            tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
        tokenizer.model_max_length = model.config.max_position_embeddings
        # A chat model ends its turn with the token that its template writes there.
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        # How the file was looked for is no part of the tokenizer: the folder's hash must be the same, offline or not.
        tokenizer.init_kwargs.pop("local_files_only", None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(gguf: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        plain = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=plain
        )
        return model, tokenizer
    # Its readers raise errors of every kind for a file that is cut off or of an unknown kind.
    except Exception as e:
        reason = f"{type(e).__name__}: {one_line(e, 200)}"
        raise UserError(f"{gguf}: transformers cannot read this GGUF file: {reason}; give safetensors instead") from e


def write_card(folder: Path, *, name: str, origin: str, file: str, sha256: str) -> None:
    """Write a README.md that says where the converted weights come from, and under which licence."""
    (folder / "README.md").write_text(CARD.format(name=name, origin=origin, file=file, sha256=sha256), encoding="utf-8")
