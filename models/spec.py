"""Which language model, spoken to how: the settings that every arm of a model shares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """One model of an experiment."""

    name: str
    """`embedded`, `local:<folder or hub id>`, or any LiteLLM name."""
    adapter: str = ""
    """Prompt frame: `plain`, `chat` or `json`; empty for the model's default."""
    max_tokens: int = 64
    temperature: float = 0.0
    trust_remote_code: bool = False
    """Run code that comes with a hub model."""
