"""Merge a PEFT adapter into its base, and check that the merged weights answer as the adapter did."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crossover.models.text import FALLBACK_TEMPLATE, mend_tokenizer
from crossover.models.weights import folder_sha256

EXACT, ROUNDED = 1e-3, 0.02
"""Largest difference of a logit in float32; and mean difference in bfloat16, as a share of the logits' deviation."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Merged(NamedTuple):
    """How far merged weights are from the adapter on its base."""

    difference: float
    """Largest difference of a logit over the probes."""
    agree: bool
    sha256: str


def write_tokenizer(source: str | Path, folders: Sequence[Path]) -> None:
    """Write the tokenizer with the chat template of training and serving, which also goes into a file of its own."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = tokenizer.chat_template or FALLBACK_TEMPLATE
    mend_tokenizer(tokenizer)
    for folder in folders:
        tokenizer.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def copy_weights(source: Path, target: Path) -> None:
    """Copy the weights of a folder and their configuration."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".safetensors", ".json") or file.name == "tokenizer.model":
            shutil.copy2(file, target)


def merge(base: str | Path, adapter: Path, target: Path, *, dtype: str = "float32") -> Merged:
    """Write the merged weights and compare them, read back from the disk, with the adapter on its base."""
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(_load(base), str(adapter)).eval()
    probes = _probes(base)
    before = _logits(model, probes)
    model.merge_and_unload().to(DTYPES[dtype]).save_pretrained(target)
    after = _logits(_load(target), probes)
    largest = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    spread = torch.cat(before).std()
    mean = torch.cat([(a - b).abs().mean()[None] for a, b in zip(after, before, strict=True)]).mean()
    agree = largest <= EXACT if dtype == "float32" else bool(mean <= ROUNDED * spread)
    return Merged(largest, agree, folder_sha256(target))


def merge_in_place(base: Path, adapter: Path) -> None:
    """Replace the files of an adapter by the whole weights of `base` with that adapter, and the adapter's tokenizer.

    Raises:
        RuntimeError: the merged weights answer differently.
    """
    draft = adapter.with_name(f"{adapter.name}.merged")
    shutil.rmtree(draft, ignore_errors=True)
    if not (merged := merge(base, adapter, draft)).agree:
        raise RuntimeError(f"merged and unmerged logits differ by up to {merged.difference:.2g}")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(draft)
    shutil.rmtree(adapter)
    draft.replace(adapter)


def _load(folder: str | Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def _probes(base: str | Path) -> list[torch.Tensor]:
    """Return token ids of a few texts of several lengths."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = ("text: a card was lost", "question: what is returned when the file does not exist?", "a b c " * 40)
    return [torch.tensor([tokenizer(t)["input_ids"]]) for t in texts]


def _logits(model: Any, probes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(p).logits[0].float() for p in probes]
