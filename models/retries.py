"""Try the calls of a provider's model again, within one bound of time a call, and limit those under way at once."""

import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import dspy
from dspy import lm15

from crossover.models.concurrency import AdaptiveLimit
from crossover.models.engine import AttemptFailedError, Engine, hook_in
from crossover.models.last_answer import note_estimated
from crossover.models.limits import UsageLimits
from crossover.models.remote import Connection, Deadline, running_deadline

OVERLOADED = (lm15.RateLimitError, lm15.ServerError, lm15.TimeoutError)
"""The provider pushes back: try again, and with fewer requests at once."""
BROKEN = (lm15.TransportError,)
"""The connection broke: try again."""
LONGEST_BACKOFF = 60.0
"""Seconds between two attempts where the provider asks for none."""
UNREADABLE = 2
"""Further attempts after answers that cannot be read, each of which the provider may charge."""
PATIENCE = 0.5
"""Seconds between two looks at whether the run has ended, while a call waits for its turn."""


class Retries:
    """The outermost hook of a provider's model: what counts and limits calls sees each attempt as one."""

    def __init__(self, connection: Connection, seed: str) -> None:
        """Keep to the connection's `timeout` and `retries`; `seed` decides the random part of the waits."""
        self.connection, self.limit = connection, AdaptiveLimit()
        self._jitter = random.Random(seed)

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer one request; 429, 5xx, timeouts and broken connections are tried again.

        All attempts and the waits between them take `timeout` seconds at most from the first attempt on.

        Raises:
            lm15.LM15Error: the last failure.
            Stopped: the run ended while the call waited.
        """
        limits, deadline = hook_in(inner, UsageLimits), Deadline(self.connection.timeout)
        tries = unreadable = 0
        while True:
            began, shift = self._enter(limits), running_deadline.set(deadline)
            try:
                response = inner.complete(request)
            except AttemptFailedError as e:
                tries, unreadable = tries + (not e.changed), unreadable + bool(e.tokens)
                _charge(request, e)
                wait = self._wait_after(e, tries)
                last = tries > self.connection.retries or unreadable > UNREADABLE
                hopeless = wait is None or last or wait > deadline.left
                self._leave(e, began, pause=0.0 if hopeless else retry_after(e.error))
                if hopeless or wait is None:
                    raise _explained(e.error, tries, wait, self.connection.timeout) from None
                if limits is not None:
                    limits.wait(wait)
                else:
                    time.sleep(wait)
            except BaseException:
                self.limit.left()
                raise
            else:
                self.limit.answered()
                return response
            finally:
                running_deadline.reset(shift)

    def _enter(self, limits: UsageLimits | None) -> float:
        """Return the time at which a request may begin, once it is its turn."""
        while (began := self.limit.enter(PATIENCE)) is None:
            if limits is not None:
                limits.check()
        return began

    def _leave(self, failed: AttemptFailedError, began: float, *, pause: float) -> None:
        """Free the slot; after a refusal for its load the provider gets fewer requests, and none during `pause`."""
        if isinstance(failed.error, OVERLOADED) and not failed.changed:
            self.limit.refused(began, pause=pause)
        else:
            self.limit.left()

    def _wait_after(self, failed: AttemptFailedError, tries: int) -> float | None:
        """Return the seconds to wait before the next attempt, None after an error that would come again."""
        if failed.changed:
            return 0.0
        unreadable = failed.tokens and not isinstance(failed.error, lm15.InvalidRequestError)
        if not unreadable and not isinstance(failed.error, OVERLOADED + BROKEN):
            return None
        # Full jitter: clients that were refused together must not all return at the same moment.
        backoff = min(LONGEST_BACKOFF, self.connection.first_wait * 2 ** (tries - 1))
        return max(retry_after(failed.error), self._jitter.uniform(0, backoff))


def _charge(request: lm15.Request, failed: AttemptFailedError) -> None:
    """Add the tokens of an attempt without a readable answer to those of the running example."""
    if failed.tokens:
        note_estimated()
        if dspy.settings.usage_tracker:
            dspy.settings.usage_tracker.add_usage(request.model, failed.tokens)


def _explained(error: Exception, tries: int, wait: float | None, timeout: float) -> Exception:
    """Return the error with how often the call was tried, and with the wait that would be too long."""
    asked = retry_after(error)
    why = f"given up after {tries} tries: " if tries > 1 else ""
    if wait is not None and asked > timeout:
        why = f"the provider asks to wait {asked:g} s, longer than `timeout`, {timeout:g} s: "
    if why and isinstance(error, lm15.LM15Error):
        error.message = f"{why}{error.message}"
        error.args = (error.message,)
    return error


def retry_after(error: BaseException) -> float:
    """Return the seconds that the provider asks to wait (RFC 9110: a number, or a date), 0.0 if it does not ask.

    DSPy looks for the header in one place and LiteLLM keeps it in another.
    """
    if isinstance(error, lm15.LM15Error) and error.retry_after:
        return float(error.retry_after)
    header = str((getattr(error.__cause__, "litellm_response_headers", None) or {}).get("retry-after", ""))
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
