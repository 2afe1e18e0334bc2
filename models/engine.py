"""The interface of the engines that answer DSPy's requests, and the wrapper that counts, limits or times calls."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import dspy
from dspy import lm15
from dspy.clients.call_result import usage_dict

H = TypeVar("H")
NOTHING = lm15.Message.assistant(" ")


class AttemptFailedError(Exception):
    """Report that one request to a provider brought no answer; the call may be tried again."""

    def __init__(self, error: Exception, *, paid: lm15.Usage | None = None, changed: bool = False) -> None:
        """Hold the provider's error, the tokens that it may charge all the same, and whether the request has changed.

        A changed request goes out at once in another form, which the provider may accept.
        """
        super().__init__(str(error))
        self.error, self.changed = error, changed
        self.tokens = {} if paid is None else usage_dict(lm15.Response(None, "none", NOTHING, "error", paid))
        """Under DSPy's names; empty where nothing was charged."""


class Engine(Protocol):
    """Answer the requests of a `dspy.LM`; all copies of a model share one engine."""

    @property
    def local(self) -> bool:
        """Whether the model's weights are at hand, so that a call costs machine time and no dollars."""

    @property
    def inner(self) -> "Engine | None":
        """The engine that this one wraps, or None."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together; 0 when unknown."""

    @property
    def supported_params(self) -> frozenset[str]:
        """Request options that a remote model takes; read by DSPy."""

    @property
    def supports_response_schema(self) -> bool:
        """Whether a remote model can be bound to a JSON schema; read by DSPy."""

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        """Return the length of the prompt: exact for a local model, an estimate for any other."""
        ...

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request."""
        ...


@runtime_checkable
class Streams(Protocol):
    """An engine that can also answer piece by piece."""

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Yield the events of one answer as they come."""
        ...


class States(Protocol):
    """States that an engine keeps of the beginnings of prompts."""

    def belonging_to(self, owner: object, *, briefly: bool = False) -> AbstractContextManager[None]:
        """Find only the states of `owner` inside the context, and keep new ones for it, or only until its end."""
        ...


@runtime_checkable
class KeepsStates(Protocol):
    """An engine that reads the common beginning of prompts once."""

    @property
    def prefixes(self) -> States:
        """The states that it keeps."""


class Hook(Protocol):
    """See every call of a model: ask `inner` for the answer, or refuse."""

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request by `inner`."""
        ...


class WrappedEngine:
    """An engine whose calls go through a hook."""

    def __init__(self, inner: Engine, hook: Hook) -> None:
        """Pass every call to `inner` through `hook`."""
        self.inner, self.hook = inner, hook
        self.local, self.context = inner.local, inner.context

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: DSPy copies programs, and the copies are counted and limited together."""
        return self

    @property
    def supported_params(self) -> frozenset[str]:
        """Return the request options of the wrapped engine."""
        return self.inner.supported_params

    @property
    def supports_response_schema(self) -> bool:
        """Return whether the wrapped engine can be bound to a JSON schema."""
        return self.inner.supports_response_schema

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        """Return the length of the prompt as the wrapped engine counts it."""
        return self.inner.count_tokens(messages)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request through the hook."""
        return self.hook.complete(request, self.inner)


class OutermostEngine(WrappedEngine):
    """A wrapped engine whose hook stays outside all that are added later."""


def wrapped(lm: dspy.LM, hook: Hook) -> dspy.LM:
    """Return the same model with `hook` as the first to see its calls, save for an outermost one."""
    engine = lm.engine
    if isinstance(engine, OutermostEngine):
        return lm.copy(engine=OutermostEngine(WrappedEngine(engine.inner, hook), engine.hook))
    return lm.copy(engine=WrappedEngine(engine, hook))


def wrapped_innermost(lm: dspy.LM, hook: Hook) -> dspy.LM:
    """Return the same model with `hook` as the last to see its calls, below those that count and limit."""

    def rebuilt(engine: Engine) -> Engine:
        if isinstance(engine, WrappedEngine):
            return type(engine)(rebuilt(engine.inner), engine.hook)
        return WrappedEngine(engine, hook)

    return lm.copy(engine=rebuilt(lm.engine))


def without_hook(lm: dspy.LM, kind: type[Hook]) -> dspy.LM:
    """Return the same model without its hooks of class `kind`."""

    def rebuilt(engine: Engine) -> Engine:
        if not isinstance(engine, WrappedEngine):
            return engine
        inner = rebuilt(engine.inner)
        return inner if isinstance(engine.hook, kind) else type(engine)(inner, engine.hook)

    return lm.copy(engine=rebuilt(lm.engine))


def hook_of(lm: dspy.LM, kind: type[H]) -> H | None:
    """Return the hook of class `kind` through which the calls of `lm` go, or None."""
    return hook_in(lm.engine, kind)


def hook_in(engine: Engine, kind: type[H]) -> H | None:
    """Return the hook of class `kind` through which the calls of an engine go, or None."""
    while isinstance(engine, WrappedEngine):
        if isinstance(engine.hook, kind):
            return engine.hook
        engine = engine.inner
    return None


def innermost(lm: dspy.LM) -> Any:
    """Return the engine that answers, below all wrappers; a string for a model that DSPy calls by itself."""
    engine = lm.engine
    while isinstance(engine, WrappedEngine):
        engine = engine.inner
    return engine


def states_of(lm: dspy.LM, owner: object, *, briefly: bool = False) -> AbstractContextManager[None]:
    """Keep apart what the model keeps of prompts: inside, it finds only states of `owner`; see `States`."""
    engine = innermost(lm)
    if isinstance(engine, KeepsStates):
        return engine.prefixes.belonging_to(owner, briefly=briefly)
    return contextlib.nullcontext()
