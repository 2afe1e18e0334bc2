"""The settings of one language model, which all of its arms share."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

FORMATS = ("plain", "json", "chat")
"""The prompt formats, shortest first."""
VLLM = "vllm:"
"""Begins the name of a model that a vLLM server answers for, and whose weights are at hand all the same."""
TIMEOUT = 120.0
"""Seconds that a call may take where a model states no other time."""


@dataclass(frozen=True)
class ModelSpec:
    """One model of an experiment; who pays for it and how long one waits for it make no other model."""

    name: str
    """`smollm2`, `local:<folder, .gguf file or hub id>`, `vllm:<smollm2, or one of these>`, or any LiteLLM name."""
    prompt_format: str = "auto"
    """`plain`, `chat` or `json`; `auto` tries them on val for a model that runs here, and is `chat` for any other."""
    decode: str = "auto"
    """`labels` holds a classification's answers to the labels of the task, `schema` every answer to its fields and
    their types, `auto` the same on models that run here alone; `free` holds none."""
    max_tokens: int = 64
    temperature: float = 0.0
    trust_remote_code: bool = False
    """Run code that comes with a hub model."""
    api_base: str = ""
    """Address of an OpenAI-compatible server, in place of the provider's; `${NAME}` in it stays a reference."""
    api_key: str = field(default="", compare=False)
    """`${NAME}` of the environment variable that holds the key; empty for the provider's usual one."""
    timeout: float = field(default=TIMEOUT, compare=False)
    """Seconds after which an API call has failed, all its attempts and the waits between them included."""

    @property
    def runs_here(self) -> bool:
        """Return whether the model's weights are at hand, so that they can be trained and are paid by machine time."""
        return self.name == "smollm2" or self.name.startswith(("local:", VLLM))

    @property
    def by_vllm(self) -> bool:
        """Return whether a vLLM server answers for the model: the one at `api_base`, or one that is started here."""
        return self.name.startswith(VLLM)

    @property
    def starts_vllm(self) -> bool:
        """Return whether a vLLM server is started here for the model."""
        return self.by_vllm and not self.api_base

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that can change an answer; the others are there with their defaults."""
        return asdict(replace(self, api_key="", timeout=TIMEOUT))

    @classmethod
    def stored(cls, data: Mapping[str, Any]) -> "ModelSpec":
        """Return the model that a store holds as JSON; `adapter` was the key of its prompt format until version 5."""
        values = dict(data)
        if "adapter" in values:
            values["prompt_format"] = values.pop("adapter") or "auto"
            values["decode"] = values.get("decode") or "free"
        return cls(**values)


def differing_settings(models: Iterable[ModelSpec]) -> dict[ModelSpec, list[str]]:
    """Return what tells each model from the others: its name, and the settings that differ among those of its name."""
    settings = {m: m.identity for m in models}
    several = len({m.name for m in settings}) > 1
    found = {}
    for model, own in settings.items():
        alike = [s for m, s in settings.items() if m.name == model.name]
        differ = [k for k in own if len({s[k] for s in alike}) > 1]
        found[model] = [model.name] * several + [f"{k}={own[k]}" for k in differ]
    return found
