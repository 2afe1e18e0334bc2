"""Make a model of an experiment ready to be called by DSPy programs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from models.spec import ModelSpec

EMBEDDED = Path(__file__).parent / "embedded" / "weights"
"""Folder of the model that ships with the project."""

Usage = dict[str, dict[str, Any]]
"""Model name to its token counts, as DSPy tracks them."""


@dataclass(frozen=True)
class LoadedModel:
    """A language model with the frame it is spoken to in."""

    spec: ModelSpec
    lm: dspy.LM
    adapter: dspy.Adapter
    sha256: str
    """Hash of the weights, or the API's model name."""
    local: bool
    """It runs in this process, and is priced by machine time."""
    context: int
    """Tokens that fit, prompt and answer together; 0 where unknown."""
    price: Callable[[Usage], float | None]
    """Turns usage into dollars; None where the price is unknown."""


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load the model that `spec` names.

    Raises:
        FileNotFoundError: the folder of a local model does not exist.
        ValueError: the adapter is not one of `plain`, `chat`, `json`.
    """
    if spec.name != "embedded" and not spec.name.startswith("local:"):
        lm = dspy.LM(spec.name, max_tokens=spec.max_tokens, temperature=spec.temperature, cache=False)
        return LoadedModel(spec, lm, prompt_frame(spec.adapter or "chat"), spec.name, False, 0, api_price)
    from models.local import LocalEngine

    folder = EMBEDDED if spec.name == "embedded" else spec.name.removeprefix("local:")
    engine = LocalEngine.load(folder, trust_remote_code=spec.trust_remote_code)
    frame = spec.adapter or ("plain" if spec.name == "embedded" or engine.stop_at_line else "chat")
    name = spec.name.removeprefix("local:").rstrip("/").rpartition("/")[2].replace("+", "-")
    lm = local_lm(f"local/{name}@{engine.sha256[:12]}", engine, spec.max_tokens, spec.temperature)
    return LoadedModel(spec, lm, prompt_frame(frame), engine.sha256, True, engine.context, lambda usage: 0.0)


def local_lm(name: str, engine: Any, max_tokens: int, temperature: float) -> dspy.LM:
    """Return a DSPy model on a local engine.

    DSPy's cache does not know the engine, and a cached answer has no latency: it stays off.
    """
    return dspy.LM(name, engine=engine, cache=False, max_tokens=max_tokens, temperature=temperature)


def prompt_frame(name: str) -> dspy.Adapter:
    """Return the DSPy adapter of that name; no adapter here makes a second call when parsing fails."""
    if name == "plain":
        from models.plain import PlainAdapter

        return PlainAdapter()
    if name == "chat":
        return dspy.ChatAdapter(use_json_adapter_fallback=False)
    if name == "json":
        return dspy.JSONAdapter()
    raise ValueError(f"adapter {name!r} is not one of plain, chat, json")


def api_price(usage: Usage) -> float | None:
    """Return the dollars of the usage by LiteLLM's price table, None when a model is not in it."""
    import litellm

    total = 0.0
    for name, counts in usage.items():
        details = counts.get("prompt_tokens_details") or {}
        try:
            prompt, completion = litellm.cost_per_token(
                model=name,
                prompt_tokens=int(counts.get("prompt_tokens") or 0),
                completion_tokens=int(counts.get("completion_tokens") or 0),
                cache_read_input_tokens=int(details.get("cached_tokens") or 0),
            )
        except Exception:
            return None
        if not prompt and not completion:
            return None
        total += prompt + completion
    return total
