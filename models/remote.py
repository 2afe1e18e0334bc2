"""Call a model behind an API through LiteLLM: one attempt at a time, bounded in time, with tokens that can be."""

import contextvars
import queue
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import unquote

from dspy import lm15
from dspy.clients.engines.litellm_engine import LiteLLMEngine
from dspy.clients.legacy_outputs import plain

from crossover.models.api_keys import redact
from crossover.models.engine import AttemptFailedError
from crossover.models.price import table_entry
from crossover.models.prompt import messages_of
from crossover.models.wire import counts_that_can_be, ending, merge_system, text_of

UNPAID = (
    lm15.AuthError,
    lm15.BillingError,
    lm15.RateLimitError,
    lm15.InvalidRequestError,
    lm15.CapabilityError,
    lm15.ConfigurationError,
)
"""Refusals, for which no provider charges."""
REFUSED = ("HTTPStatusError", "ConnectError", "ConnectTimeout")
"""Names of httpx errors in the cause of a failure that came before any answer."""
SYSTEM_REFUSED = re.compile(r"system (role|message|prompt)|system.{0,40}not supported|role.{0,20}system", re.I)

SECONDS_TO_IMPORT = 30.0
"""Added to the time of a process's first answer: LiteLLM imports most of itself on first use."""


@dataclass(frozen=True)
class Connection:
    """The connection to a provider; LiteLLM reads what is empty here from the environment."""

    api_base: str = ""
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    """Seconds after which a call has failed, all its attempts and the waits between them included."""
    retries: int = 5
    first_wait: float = 0.5
    """Upper bound of the random wait before the first retry, in seconds; doubled for each further one."""

    def options(self) -> dict[str, Any]:
        """Return the settings under LiteLLM's names."""
        known = {"api_base": self.api_base, "api_key": self.api_key, "timeout": self.timeout}
        return {k: v for k, v in known.items() if v}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return what a refusal may quote: the key, or the name and password of the address as a header has them."""
        user, at, _ = self.api_base.partition("://")[2].rpartition("@")
        return (self.api_key, b64encode(unquote(user).encode()).decode()) if at else (self.api_key,)


class Deadline:
    """The end of a call's time; the clock starts at its first attempt."""

    def __init__(self, seconds: float) -> None:
        """Allow so many seconds."""
        self.seconds = seconds
        self._ends: float | None = None

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        if self._ends is None:
            self._ends = time.monotonic() + self.seconds
        return max(0.0, self._ends - time.monotonic())


running_deadline: ContextVar[Deadline | None] = ContextVar("running_deadline", default=None)
"""The deadline of the call that the calling thread makes; None for one attempt of `Connection.timeout` seconds."""


class _Wire(LiteLLMEngine):  # type: ignore[misc]  # dspy is untyped
    """Write requests as the server takes them, and read answers whose numbers cannot be."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(**connection.options())
        self.own_address, self.merges_system = bool(connection.api_base), False

    def _arguments(self, request: lm15.Request, *, streaming: bool = False) -> dict[str, Any]:
        data: dict[str, Any] = super()._arguments(request, streaming=streaming)
        if self.own_address and "max_completion_tokens" in data:
            # The older name, which every server knows; LiteLLM renames it for the models that refuse it.
            data["max_tokens"] = data.pop("max_completion_tokens")
        if self.merges_system:
            data["messages"] = merge_system(data["messages"])
        return data

    def _response(self, raw: Any, request: lm15.Request) -> lm15.Response:
        body = plain(raw)
        body["usage"] = counts_that_can_be(body.get("usage"))
        if not body.get("choices"):
            raise lm15.ProviderError("the answer holds no choices")
        response: lm15.Response = super()._response(body, request)
        text = text_of(body, response)
        message = lm15.Message.assistant(text)
        return replace(response, message=message, provider_data={"ending": ending(body, text)})


class RemoteEngine:
    """Answer DSPy requests by a provider's API; every failure of an attempt is an `AttemptFailedError`."""

    local, inner = False, None
    _imported: ClassVar[bool] = False

    def __init__(self, model: str, connection: Connection) -> None:
        """Open nothing yet; `model` is LiteLLM's name."""
        self.model, self.connection = model, connection
        self.remarks: list[str] = []
        """What a reader of the results must know of how the model was asked."""
        self._wire = _Wire(connection)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RemoteEngine":
        """Return itself: all copies of a model share what was learned of its server."""
        return self

    @property
    def context(self) -> int:
        """Return the tokens that fit, 0 when LiteLLM's table has no number."""
        return int(table_entry(self.model).get("max_input_tokens") or 0)

    @property
    def supported_params(self) -> frozenset[str]:
        """Return the request options that the provider takes."""
        import litellm

        try:
            return frozenset(litellm.get_supported_openai_params(self.model) or ())
        except Exception:  # a name that LiteLLM cannot place
            return frozenset()

    @property
    def supports_response_schema(self) -> bool:
        """Return whether answers can be bound to a JSON schema."""
        return bool(table_entry(self.model).get("supports_response_schema"))

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        """Return an estimate of the prompt's length, by the tokenizer that LiteLLM has for the model."""
        import litellm

        return int(litellm.token_counter(model=self.model, messages=messages))

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request.

        Raises:
            AttemptFailedError: it was not answered, or its answer cannot be read.
        """
        merged = self._wire.merges_system
        try:
            (response,) = self._in_time(lambda: iter([self._wire.complete(request)]))
        except Exception as e:
            raise self._failed(e, request, merged) from e
        usage, estimated = self._counted(request, response.message.text or "", response.usage)
        if response.finish_reason == "content_filter" and not response.message.text:
            withheld = lm15.InvalidRequestError("content_filter: the provider's filter withheld the answer")
            raise AttemptFailedError(withheld, paid=usage)
        data = (response.provider_data or {}) | ({"tokens_estimated": True} if estimated else {})
        return replace(response, usage=usage, provider_data={k: v for k, v in data.items() if v})

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Answer one request piece by piece.

        Raises:
            AttemptFailedError: it was not answered whole.
        """
        text, merged = "", self._wire.merges_system
        try:
            for event in self._in_time(lambda: self._wire.stream(request)):
                if event.type == "delta" and event.delta.type == "text":
                    text += event.delta.text
                if event.type == "end":
                    event = replace(event, usage=self._counted(request, text, event.usage or lm15.Usage())[0])
                yield event
        except Exception as e:
            raise self._failed(e, request, merged) from e

    def _in_time(self, work: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Yield what `work` yields, in a thread of its own, until the deadline of the running call.

        A provider that sends a byte a second never meets LiteLLM's own timeout.
        """
        deadline = running_deadline.get() or Deadline(self.connection.timeout)
        results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        over = threading.Event()

        def run() -> None:
            try:
                for item in work():
                    results.put((item, None))
                    if over.is_set():
                        return
                results.put((None, StopIteration()))
            except BaseException as e:
                results.put((None, e))

        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        try:
            while True:
                item, error = results.get(timeout=deadline.left + (0.0 if self._imported else SECONDS_TO_IMPORT))
                RemoteEngine._imported = True
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield item
        except queue.Empty:
            raise lm15.TimeoutError(f"no whole answer within {deadline.seconds:g} s") from None
        finally:
            over.set()

    def _counted(self, request: lm15.Request, text: str, usage: lm15.Usage) -> tuple[lm15.Usage, bool]:
        """Return the usage with what the provider left out counted here, and whether anything was."""
        prompt, answer = usage.input_tokens or 0, usage.output_tokens or 0
        estimated = prompt <= 0 or (answer <= 0 and bool(text))
        if not estimated:
            return usage, False
        import litellm

        counted = replace(
            usage,
            input_tokens=prompt if prompt > 0 else self.count_tokens(messages_of(request)),
            output_tokens=answer if answer > 0 else int(litellm.token_counter(model=self.model, text=text)),
            total_tokens=None,
        )
        return counted, True

    def _failed(self, error: Exception, request: lm15.Request, merged: bool) -> AttemptFailedError:
        """Return the failure of an attempt, without keys in its text; `merged` tells that it had no system turn.

        Attempts that were under way together are all refused for their system turn, and all change.
        """
        secrets = self.connection.secrets
        error.args = tuple(redact(a, secrets) if isinstance(a, str) else a for a in error.args)
        if isinstance(error, lm15.LM15Error):
            error.message = redact(str(error.message), secrets)
        may_change = isinstance(error, lm15.InvalidRequestError) and request.system and not merged
        if may_change and SYSTEM_REFUSED.search(str(error)):
            self._wire.merges_system = True
            remark = "the server refuses a system turn: the instructions stand in the user's turn"
            self.remarks += [remark] if remark not in self.remarks else []
            return AttemptFailedError(error, changed=True)
        if not _maybe_paid(error):
            return AttemptFailedError(error)
        prompt, most = self.count_tokens(messages_of(request)), int(request.config.max_tokens or 0)
        return AttemptFailedError(error, paid=lm15.Usage(input_tokens=prompt, output_tokens=most))


def _maybe_paid(error: Exception) -> bool:
    """Return whether the provider may charge for an attempt that failed: whether anything was answered."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UNPAID) or type(cause).__name__ in REFUSED:
            return False
        cause = cause.__cause__ or cause.__context__
    return True
