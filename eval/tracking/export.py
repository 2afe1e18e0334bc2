"""Write a finished cell as what other tools load: PEFT adapter, merged weights, chat template, DSPy program, card."""

import json
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crossover.eval.analysis.arm import Arm, arms_of
from crossover.eval.experiment.spec import Prices
from crossover.eval.store.cells import cell_folder, check_fitted, inside, write_json
from crossover.eval.store.recorded import find_cell
from crossover.eval.store.result import Result
from crossover.models.errors import UserError
from crossover.models.load import source_of

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""


def export_cell(store: Path, name: str, folder: Path, *, dtype: str = "float32") -> list[str]:
    """Write the cell to an empty folder and return what was written, a line each.

    Raises:
        UserError: no cell or several have that name, the folder is not empty, or the weights are gone or changed.
    """
    result = find_cell(store, name)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; name a new folder")
    source = cell_folder(store, result.key)
    check_fitted(source)
    fit = json.loads((source / "fit.json").read_text(encoding="utf-8"))
    artifact = inside(source, str(fit["artifact"])) if fit.get("artifact") else None
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['program.json: the DSPy program; program.load("program.json")']
    state = json.loads((source / "program.json").read_text(encoding="utf-8"))
    write_json(folder / "program.json", state | {"metadata": {"dependency_versions": _versions()}})
    if (source / "fit" / "train.jsonl").exists():
        shutil.copy2(source / "fit" / "train.jsonl", folder / "train.jsonl")
        lines.append("train.jsonl: the training rows, as prompt and completion")
    facts: dict[str, Any] = {}
    if artifact is not None:
        lines += _weights(result, artifact, folder, dtype, facts)
    arm = arms_of([result], Prices())[0]
    serving = serving_lines(result, folder, facts)
    (folder / "README.md").write_text(card(result, arm, fit, serving, facts), encoding="utf-8")
    (folder / "serve.sh").write_text("\n".join(["#!/bin/sh", *serving, ""]), encoding="utf-8")
    return [*lines, "README.md: the model card", *(f"serve: {line}" for line in serving if not line.startswith("#"))]


def _weights(result: Result, artifact: Path, folder: Path, dtype: str, facts: dict[str, Any]) -> Iterator[str]:
    """Write adapter and merged weights, and tell of them."""
    from crossover.finetune.training.merge import copy_weights, merge, write_tokenizer

    base = base_of(result)
    if (artifact / "head.json").exists() and result.cell.method.name == "chain":
        raise UserError(f"{result.key} is a head on weights of an earlier step, which is not exported; use `sft` alone")
    if (artifact / "head.json").exists():
        copy_weights(artifact, folder / "head")
        yield "head/: the classification head (safetensors) and its labels; models/heads.py loads it"
        facts["head"] = True
        return
    if not (artifact / "adapter_config.json").exists():
        copy_weights(artifact, folder / "merged")
        write_tokenizer(base, [folder / "merged"])
        facts["merged"] = True
        yield "merged/: the trained weights"
        return
    copy_weights(artifact, folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter" / "adapter_config.json", config | {"base_model_name_or_path": str(base)})
    merged = merge(base, artifact, folder / "merged", dtype=dtype)
    if not merged.agree:
        raise UserError(
            f"merged and unmerged logits differ by up to {merged.difference:.2g}; export with --dtype float32"
        )
    write_tokenizer(base, [folder / "adapter", folder / "merged"])
    facts |= {"adapter": config, "merged": True, "difference": merged.difference, "base": str(base)}
    yield "adapter/: the PEFT adapter, with tokenizer and chat template"
    yield f"merged/: {dtype} weights; logits agree with the adapter's to {merged.difference:.1g}"


def base_of(result: Result) -> str | Path:
    """Return the folder or hub id of the base."""
    return source_of(result.cell.model)


def serving_lines(result: Result, folder: Path, facts: dict[str, Any]) -> list[str]:
    """Return the commands that serve what was written with vLLM."""
    if facts.get("head"):
        return ['# vLLM serves no such head; load it with models/heads.py: HeadEngine.load("head", engine)']
    if not result.local:
        return [f"# the model is served by its provider: {result.cell.model.name}"]
    place = folder.resolve()
    config = facts.get("adapter")
    if config is not None and not config.get("use_dora"):
        rank = next((r for r in RANKS if r >= int(config["r"])), int(config["r"]))
        return [
            f"vllm serve {facts['base']} --host 127.0.0.1 --enable-lora --max-lora-rank {rank} "
            f"--lora-modules tuned={place / 'adapter'} --chat-template {place / 'adapter' / 'chat_template.jinja'}"
        ]
    if facts.get("merged"):
        chat = place / "merged" / "chat_template.jinja"
        return [f"vllm serve {place / 'merged'} --host 127.0.0.1 --served-model-name tuned --chat-template {chat}"]
    return [f"vllm serve {base_of(result)} --host 127.0.0.1"]


def card(result: Result, arm: Arm, fit: dict[str, Any], serving: list[str], facts: dict[str, Any]) -> str:
    """Return the model card: what it is, what was measured, and how to serve it."""
    s, ms, notes = arm.score, arm.latency, fit["notes"]
    head = [
        "---",
        f"base_model: {base_of(result) if result.local else result.cell.model.name}",
        f"library_name: {'peft' if 'adapter' in facts else 'transformers'}",
        "---",
        "",
    ]
    rows = [
        ("task", result.cell.task),
        ("method", arm.method),
        ("score", f"{s.mean:.3f}, 95 % interval {s.low:.3f} to {s.high:.3f}, n {s.n}, failed {arm.failed}"),
        ("latency", f"p50 {ms.p50.mean:.0f} ms, p95 {ms.p95.mean:.0f} ms, one request at a time" if ms.n else "-"),
        ("train examples", notes.get("train_examples", "-")),
        ("seed", result.cell.seed),
        ("fitting", f"{result.fit.seconds:.0f} seconds, {result.fit.train_tokens:,} training tokens"),
        ("data", f"split {result.split_sha256[:12]}"),
        ("cell", result.key),
    ]
    rows += [
        (k.replace("_", " "), notes[k])
        for k in ("lr", "best_epoch", "trainable_parameters", "target_perplexity", "train_tokens_sha256")
        if k in notes
    ]
    if "difference" in facts:
        rows.append(("merged weights", f"logits within {facts['difference']:.1g} of the adapter's"))
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    doubts = [f"- {w}" for w in (*arm.integrity, *arm.warnings)]
    return "\n".join(
        [
            *head,
            f"# {result.cell.task}: {arm.method}",
            "",
            *table,
            "",
            *(["## Doubts", "", *doubts, ""] if doubts else []),
            "## Serve",
            "",
            "```sh",
            *serving,
            "```",
            "",
            "Prompts must be rendered by the same DSPy program and prompt format, and by its chat template.",
            "",
        ]
    )


def _versions() -> dict[str, str]:
    """Return what DSPy wants to know of whoever saved a program."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "dspy": version("dspy"), "cloudpickle": version("cloudpickle")}
