"""Call a model behind an API: through LiteLLM, retried, with an adaptive limit on concurrent requests."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dspy import lm15
from dspy.clients.engines.litellm_engine import LiteLLMEngine

from crossover.models.api_keys import redact
from crossover.models.concurrency import AdaptiveLimit
from crossover.models.price import table_entry

OVERLOADED = (lm15.RateLimitError, lm15.ServerError, lm15.TimeoutError)
"""The provider pushes back: try again, and with fewer requests at once."""
BROKEN = (lm15.TransportError,)
"""The connection broke, or the response could not be read: try again."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, also where the provider asks for more."""


@dataclass(frozen=True)
class Connection:
    """The connection to a provider; LiteLLM reads what is empty here from the environment."""

    api_base: str = ""
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    """Seconds without an answer after which a request has failed."""
    retries: int = 5
    first_wait: float = 0.5
    """Upper bound of the random wait before the first retry, in seconds; doubled for each further one."""

    def options(self) -> dict[str, Any]:
        """Return the settings under LiteLLM's names."""
        known = {"api_base": self.api_base, "api_key": self.api_key, "timeout": self.timeout}
        return {k: v for k, v in known.items() if v}


class RemoteEngine:
    """Answer DSPy requests by a provider's API."""

    local, inner = False, None

    def __init__(self, model: str, connection: Connection) -> None:
        """Open nothing yet; `model` is LiteLLM's name."""
        self.model, self.connection = model, connection
        self.limit = AdaptiveLimit()
        self.attempts = 0
        """Requests sent, the failed ones included."""
        self._engine = LiteLLMEngine(**connection.options())
        self._jitter = random.Random(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RemoteEngine":
        """Return itself: all copies of a model share one limit."""
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
        """Answer one request; 429, 5xx, timeouts and broken connections are tried again.

        Raises:
            lm15.LM15Error: the last failure, without any key in its text.
        """
        for attempt in range(self.connection.retries + 1):
            began = self.limit.enter()
            self.attempts += 1
            try:
                response = self._engine.complete(request)
            except BaseException as e:
                wait = self._wait_after(e, began, attempt)
                if wait is None or attempt == self.connection.retries:
                    raise self._clean(e) from None
                time.sleep(wait)
            else:
                self.limit.answered()
                return response
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Answer one request piece by piece; tried again as long as nothing has come.

        Raises:
            lm15.LM15Error: the last failure, without any key in its text.
        """
        for attempt in range(self.connection.retries + 1):
            began, emitted = self.limit.enter(), False
            self.attempts += 1
            try:
                for event in self._engine.stream(request):
                    emitted = emitted or event.type == "delta"
                    yield event
            except BaseException as e:
                wait = self._wait_after(e, began, attempt)
                if emitted or wait is None or attempt == self.connection.retries:
                    raise self._clean(e) from None
                time.sleep(wait)
            else:
                self.limit.answered()
                return

    def _wait_after(self, error: BaseException, began: float, attempt: int) -> float | None:
        """Free the slot and return the seconds to wait before the next attempt, None for an error to give up on."""
        if not isinstance(error, OVERLOADED + BROKEN):
            self.limit.left()
            return None
        asked = min(LONGEST_WAIT, retry_after(error))
        if isinstance(error, OVERLOADED):
            self.limit.refused(began, pause=asked)
        else:
            self.limit.left()
        # Full jitter: clients that were refused together must not all return at the same moment.
        backoff = min(LONGEST_WAIT, self.connection.first_wait * 2**attempt)
        return max(asked, self._jitter.uniform(0, backoff))

    def _clean(self, error: BaseException) -> BaseException:
        """Return the error without keys in its text: providers quote them in refusals."""
        if isinstance(error, Exception):
            error.args = tuple(redact(a, [self.connection.api_key]) if isinstance(a, str) else a for a in error.args)
            if isinstance(error, lm15.LM15Error):
                error.message = redact(str(error.message), [self.connection.api_key])
        return error


def retry_after(error: lm15.LM15Error) -> float:
    """Return the seconds that the provider asks to wait (RFC 9110: a number, or a date), 0.0 if it does not ask.

    DSPy looks for the header in one place and LiteLLM keeps it in another.
    """
    if seconds := getattr(error, "retry_after", None):
        return float(seconds)
    header = str((getattr(error.__cause__, "litellm_response_headers", None) or {}).get("retry-after", ""))
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
