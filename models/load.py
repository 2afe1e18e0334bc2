"""Load a model of an experiment, ready to be called by DSPy programs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from crossover.models.api_keys import expanded
from crossover.models.engine import Engine, OutermostEngine
from crossover.models.errors import UserError, one_line
from crossover.models.limits import limited_like
from crossover.models.price import TokenCounts, api_price
from crossover.models.prompt import engine_of
from crossover.models.prompt_formats import prompt_format
from crossover.models.remote import Connection, RemoteEngine
from crossover.models.retries import Retries
from crossover.models.source import to_stderr, weights_source
from crossover.models.spec import ModelSpec
from crossover.models.weights import weights_sha256

if TYPE_CHECKING:
    from crossover.models.token_engine import TokenEngine


@dataclass(frozen=True)
class LoadedModel:
    """A language model with its prompt format and its price."""

    spec: ModelSpec
    lm: dspy.LM
    prompt_format: dspy.Adapter
    sha256: str
    """Hash of the weights, or the API's model name."""
    local: bool
    """Whether its weights are at hand, so that it is priced by machine time."""
    context: int
    """Tokens that fit; 0 where unknown."""
    price: Callable[[TokenCounts], float | None]
    """Returns the dollars of usage, None for an unknown price."""

    def in_format(self, name: str) -> "LoadedModel":
        """Return the model with the prompt format of that name."""
        return replace(self, prompt_format=_format(name, self.spec, engine_of(self.lm)))


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load the model that `spec` names.

    Raises:
        UserError: the weights are not there, or cannot be loaded.
        ValueError: the prompt format is none of FORMATS.
    """
    if not spec.runs_here:
        return _remote_model(spec)
    from crossover.models.local import LocalEngine

    source = source_of(spec)
    try:
        engine = (
            _vllm(spec, source) if spec.by_vllm else LocalEngine.load(source, trust_remote_code=spec.trust_remote_code)
        )
    except UserError:
        raise
    # Transformers, tokenizers and the code of a model raise errors of every kind for files that do not fit each other.
    except Exception as e:
        raise UserError(f"{spec.name} cannot be loaded: {type(e).__name__}: {one_line(e, 200)}") from e
    kind = "vllm" if spec.by_vllm else "local"
    name = spec.name.removeprefix(f"{kind}:").rstrip("/").rpartition("/")[2].replace("+", "-")
    lm = local_lm(f"{kind}/{name}@{engine.sha256[:12]}", engine, spec.max_tokens, spec.temperature)
    chosen = _format(_first_format(spec), spec, engine)
    return LoadedModel(spec, lm, chosen, engine.sha256, True, engine.context, lambda usage: 0.0)


def _vllm(spec: ModelSpec, source: Path | str) -> "TokenEngine":
    """Return an engine that asks the vLLM server of a model."""
    from crossover.models.vllm import VllmEngine

    address, key = expanded(spec.api_base), expanded(spec.api_key)
    return VllmEngine.load(
        source,
        address=address,
        key=key,
        timeout=spec.timeout,
        trust_remote_code=spec.trust_remote_code,
        note=to_stderr,
    )


def _remote_model(spec: ModelSpec) -> LoadedModel:
    """Return a model behind an API; its hash is its name, the only identity that providers show."""
    key, address = expanded(spec.api_key), expanded(spec.api_base)
    if spec.api_base and not key:
        # Without one, LiteLLM would send the provider's key to this other address.
        key = "no-key"
    connection = Connection(address, key, spec.timeout)
    engine = RemoteEngine(spec.name, connection)
    # `Retries` tries again, within its limit; DSPy must not do so once more around it.
    lm = dspy.LM(
        spec.name,
        engine=OutermostEngine(engine, Retries(connection, spec.name)),
        cache=False,
        num_retries=0,
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
    )
    identity = f"{spec.name} at {spec.api_base}" if spec.api_base else spec.name
    return LoadedModel(spec, lm, _format(_first_format(spec), spec, None), identity, False, engine.context, api_price)


def _first_format(spec: ModelSpec) -> str:
    """Return the format that a model has until one is chosen on a task."""
    return spec.prompt_format if spec.prompt_format != "auto" else "plain" if spec.runs_here else "chat"


def _format(name: str, spec: ModelSpec, engine: Any) -> dspy.Adapter:
    """Return a prompt format for a model; a local one without a chat template follows no instructions."""
    if engine is None:
        # A provider holds answers to a schema by the request that DSPy's JSON format makes, and to no grammar of ours.
        return prompt_format(name, instruct=True)
    return prompt_format(name, decode=spec.decode, instruct=not engine.stop_at_line)


def local_lm(name: str, engine: Engine, max_tokens: int, temperature: float) -> dspy.LM:
    """Return a DSPy model on a local engine.

    DSPy's cache stays off: its keys leave out the engine, and a cached answer has no latency.
    """
    return dspy.LM(name, engine=engine, cache=False, max_tokens=max_tokens, temperature=temperature)


def tuned_lm(lm: dspy.LM, folder: Path) -> dspy.LM:
    """Return a local model with the trained weights of a folder, an adapter on its base or a whole model.

    Settings and limits are those of `lm`.
    """
    engine = engine_of(lm)
    if (folder / "adapter_config.json").exists():
        return _like(lm, f"{lm.model}+{engine.add_adapter(folder)}", engine)
    return whole_lm(lm, engine.with_weights(folder))


def whole_lm(lm: dspy.LM, engine: Any) -> dspy.LM:
    """Return a model on an engine of whole weights that were trained from `lm`, with its settings and limits."""
    return _like(lm, f"{lm.model}-{engine.sha256[:12]}", engine)


def _like(lm: dspy.LM, name: str, engine: Engine) -> dspy.LM:
    return limited_like(local_lm(name, engine, lm.kwargs["max_tokens"], lm.kwargs["temperature"]), lm)


def model_sha256(spec: ModelSpec) -> str:
    """Return the hash that identifies the model in cells; weights are hashed without being loaded."""
    return weights_sha256(source_of(spec)) if spec.runs_here else spec.name


def source_of(spec: ModelSpec, note: Callable[[str], None] = to_stderr) -> Path | str:
    """Return the folder or hub id of a model that runs here; `note` takes progress where it is fetched first."""
    return weights_source(spec.name, note)
