"""The limits of one run: each call is checked at its worst case before it is made.

The worst case of a call is its counted prompt and as many answer tokens as it may have. A call that would break a
limit together with those under way waits until they have come in for less than their worst case; when none is under
way and it still does not fit, the run ends.
"""

import threading
import time
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.call_result import usage_dict

from crossover.models.engine import AttemptFailedError, Engine, hook_of, wrapped
from crossover.models.price import api_price
from crossover.models.prompt import messages_of
from crossover.models.usage import Usage


class Stopped(BaseException):
    """No further call is made: a limit of the run is reached, or the user pressed Ctrl-C.

    No `Exception`: DSPy's optimizers turn those into scores of zero and go on.
    """


class UsageLimits:
    """Enforce the limits of one run on all its models and threads; None for no bound."""

    def __init__(
        self,
        *,
        usd: float | None = None,
        minutes: float | None = None,
        calls: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Start the clock."""
        self.usd, self.minutes, self.calls, self.tokens = usd, minutes, calls, tokens
        self.stopped = ""
        """Why no further call is made; empty while calls are."""
        self.used = Usage()
        """Of all calls that have come in; an unknown price adds no dollars here, because no limit can hold it."""
        self._under_way: list[Usage] = []
        """The worst case of each call that is under way."""
        self._started = time.monotonic()
        self._changed = threading.Condition()

    def stop(self, reason: str) -> None:
        """Let no further call begin; those under way are answered."""
        with self._changed:
            self.stopped = self.stopped or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise when no further call of any kind is allowed.

        Raises:
            Stopped: the run is over.
        """
        if self.minutes is not None and time.monotonic() - self._started >= 60 * self.minutes:
            self.stop(f"{self.minutes:g} minutes")
        if self.stopped:
            raise Stopped(self.stopped)

    def wait(self, seconds: float) -> None:
        """Wait before another attempt at a call, no longer than calls are allowed.

        Raises:
            Stopped: the run ended meanwhile.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self.check()
            while (left := until - time.monotonic()) > 0:
                over = left if self.minutes is None else self._started + 60 * self.minutes - time.monotonic()
                self._changed.wait(min(left, over))
                self.check()

    def enter(self, worst: Usage) -> None:
        """Reserve the worst case of a call, waiting for calls under way where they may leave room.

        Raises:
            Stopped: the call would break a limit, or the run is over.
        """
        with self._changed:
            while limit := self._broken_by(worst):
                if not self._under_way:
                    self.stop(limit)
                self.check()
                self._changed.wait()
            self.check()
            self._under_way.append(worst)

    def leave(self, worst: Usage, actual: Usage) -> None:
        """Replace the reservation of a call by its actual usage."""
        with self._changed:
            self._under_way.remove(worst)
            self.used += actual
            self._changed.notify_all()

    def _broken_by(self, worst: Usage) -> str:
        """Return the limit that a call could break, empty for none."""
        together = sum(self._under_way, self.used + worst)
        # A call without tokens or dollars of its own does not wait for those that have used theirs up.
        if self.calls is not None and together.calls > self.calls:
            return f"{self.calls} calls"
        if self.tokens is not None and worst.tokens and together.tokens > self.tokens:
            return f"{self.tokens} tokens"
        if self.usd is not None and worst.usd and (together.usd or 0.0) > self.usd:
            return f"${self.usd:g}"
        return ""

    def limited(self, lm: dspy.LM) -> dspy.LM:
        """Return the same model under these limits; a model that is limited already comes back as it is."""
        return lm if isinstance(lm.engine, str) or limits_of(lm) is not None else wrapped(lm, self)

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer a request that the limits allow.

        Raises:
            Stopped: the call would break a limit, or the run is over.
        """
        self.check()
        worst = self._worst_case(request, inner)
        self.enter(worst)
        actual = worst
        try:
            response = inner.complete(request)
            actual = _usage(request, inner, usage_dict(response))
            return response
        except AttemptFailedError as e:
            # A refused call is not charged; it was sent all the same.
            actual = _usage(request, inner, e.tokens)
            raise
        except Exception:
            actual = Usage(calls=1)
            raise
        finally:
            self.leave(worst, actual)

    def _worst_case(self, request: lm15.Request, inner: Engine) -> Usage:
        """Return the most that a request can use; its prompt is counted only where a limit asks for tokens."""
        if self.tokens is None and (inner.local or self.usd is None):
            return Usage(calls=1)
        prompt, answer = inner.count_tokens(messages_of(request)), int(request.config.max_tokens or 0)
        return _usage(request, inner, {"prompt_tokens": prompt, "completion_tokens": answer})


def _usage(request: lm15.Request, inner: Engine, tokens: dict[str, Any]) -> Usage:
    return Usage.of_call(tokens, usd=0.0 if inner.local else api_price({request.model: tokens}) or 0.0)


def limits_of(lm: dspy.LM) -> UsageLimits | None:
    """Return the limits that `lm` is under, or None."""
    return hook_of(lm, UsageLimits)


def limited_like(lm: dspy.LM, other: dspy.LM) -> dspy.LM:
    """Return `lm`, which was made of `other`, under the same limits as `other`."""
    limits = limits_of(other)
    return lm if limits is None else limits.limited(lm)
