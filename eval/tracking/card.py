"""The model card of an exported arm, and the command that serves it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossover.eval.analysis.arm import Arm
from crossover.eval.report.text import p95_words
from crossover.eval.store.result import Result
from crossover.models.load import source_of
from crossover.models.vllm_server import RANKS

ADAPTER, MERGED, HEAD = "adapter", "merged", "head"
"""Folders of the weights in a package."""
FITTING_NOTES = ("lr", "best_epoch", "trainable_parameters", "target_perplexity", "train_tokens_sha256")


def base_of(result: Result) -> str | Path:
    """Return the folder or hub id of the base model, or the name of a model that a provider serves."""
    model = result.cell.model
    return source_of(model) if model.runs_here else model.name


def serving_command(result: Result, folder: Path, place: Path) -> str:
    """Return the command that serves the package in `folder` with vLLM, as it would be called from beside `place`."""
    if (folder / HEAD).is_dir():
        return '# vLLM serves no such head; load it with models/heads.py: HeadEngine.load("head", engine)'
    if not result.cell.model.runs_here:
        return f"# the model is served by its provider: {shlex.quote(' '.join(result.cell.model.name.split()))}"
    if (folder / ADAPTER).is_dir():
        config = json.loads((folder / ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("use_dora") and not (folder / MERGED).is_dir():
            return "# vLLM serves no DoRA adapter; `crossover export` writes merged weights"
        if not config.get("use_dora"):
            rank = next((r for r in RANKS if r >= int(config["r"])), int(config["r"]))
            lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"tuned={place / ADAPTER}"]
            return _vllm(base_of(result), *lora, "--chat-template", str(place / ADAPTER / "chat_template.jinja"))
    if (folder / MERGED).is_dir():
        chat = place / MERGED / "chat_template.jinja"
        return _vllm(place / MERGED, "--served-model-name", "tuned", "--chat-template", str(chat))
    return _vllm(base_of(result))


def _vllm(model: str | Path, *flags: str) -> str:
    """Return the command that serves a model, quoted for a shell."""
    return shlex.join(["vllm", "serve", str(model), "--host", "127.0.0.1", *flags])


def card(result: Result, arm: Arm, notes: Mapping[str, Any], folder: Path, difference: float | None) -> str:
    """Return the model card of the package in `folder`: what was measured, on what data, and how to serve it.

    `difference` is the largest one between a logit of the merged weights and of the adapter's, None without both.
    """
    s, ms, counts = arm.score, arm.latency, f"unparsed {arm.unparsed}, failed {arm.failed}"
    rows = {
        "task": result.cell.task,
        "method": arm.method,
        "score": f"{s.mean:.3f}, 95 % interval {s.low:.3f} to {s.high:.3f}, n {s.n}, {counts}",
        "latency": f"p50 {ms.p50.mean:.0f} ms, p95 {p95_words(ms)} ms, one request at a time" if ms.n else "-",
        "train examples": notes.get("train_examples", "-"),
        "seed": result.cell.seed,
        "fitting": f"{result.fit.seconds:.0f} seconds, {result.fit.train_tokens:,} training tokens",
        "data": f"split {result.split_sha256[:12]}",
        "cell": result.key,
        **{name.replace("_", " "): notes[name] for name in FITTING_NOTES if name in notes},
        **({} if difference is None else {"merged weights": f"logits within {difference:.1g} of the adapter's"}),
    }
    doubts = [f"- {doubt}" for doubt in (*arm.integrity, *arm.warnings)]
    lines = [
        "---",
        f"base_model: {base_of(result)}",
        f"library_name: {'peft' if (folder / ADAPTER).is_dir() else 'transformers'}",
        "---",
        "",
        f"# {result.cell.task}: {arm.method}",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        *(["## Doubts", "", *doubts, ""] if doubts else []),
        "## Serve",
        "",
        "```sh",
        serving_command(result, folder, Path(".")),
        "```",
        "",
        "Prompts must be rendered by the same DSPy program and prompt format, and by its chat template.",
        "",
    ]
    return "\n".join(lines)
