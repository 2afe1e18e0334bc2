"""What a run may still ask of its models: each call is weighed at its worst before it is made.

The worst case of a call is its prompt, counted, and as many answer tokens as it may have. A call that would go beyond
a limit together with those under way waits until they have come in for less than their worst; when none is under way
and it still does not fit, the run is over.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.call_result import usage_dict

from crossover.models.price import api_price
from crossover.models.prompt import engine_of, messages_of
from crossover.models.wrapping import WrappingEngine


class Stopped(BaseException):
    """No further call is made: a limit of the run, or the person at the keyboard.

    No `Exception`: DSPy's optimizers turn those into scores of zero and go on.
    """


@dataclass
class Weight:
    """What a call takes of the limits, or all calls together."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    """An unknown price weighs nothing: no limit can hold it."""

    def add(self, other: "Weight", sign: int = 1) -> None:
        """Add another weight, or take it away."""
        self.calls += sign * other.calls
        self.tokens += sign * other.tokens
        self.usd += sign * other.usd


class Allowance:
    """The limits of one run, shared by all its models and threads; None for no bound."""

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
        self.used, self._reserved = Weight(), Weight()
        self._started = time.monotonic()
        self._changed = threading.Condition()

    @property
    def weighs_tokens(self) -> bool:
        """Return whether prompts have to be counted before they are sent."""
        return self.tokens is not None or self.usd is not None

    def stop(self, reason: str) -> None:
        """Let no further call begin; those under way are answered."""
        with self._changed:
            self.stopped = self.stopped or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise when no further call is allowed, whatever it is.

        Raises:
            Stopped: the run is over.
        """
        if self.minutes is not None and time.monotonic() - self._started >= 60 * self.minutes:
            self.stop(f"{self.minutes:g} minutes")
        if self.stopped:
            raise Stopped(self.stopped)

    def enter(self, worst: Weight) -> None:
        """Reserve the worst case of a call.

        Raises:
            Stopped: it would go beyond a limit, or the run is over.
        """
        with self._changed:
            while limit := self._beyond(worst):
                if not self._reserved.calls:
                    self.stop(limit)
                self.check()
                self._changed.wait()
            self.check()
            self._reserved.add(worst)

    def leave(self, worst: Weight, actual: Weight) -> None:
        """Give back what was reserved, and count what the call took."""
        with self._changed:
            self._reserved.add(worst, -1)
            self.used.add(actual)
            self._changed.notify_all()

    def _beyond(self, worst: Weight) -> str:
        """Return the limit that a call could break, empty when none."""
        for name, limit in (("calls", self.calls), ("tokens", self.tokens), ("usd", self.usd)):
            together = sum(float(vars(w)[name]) for w in (self.used, self._reserved, worst))
            # A model without a price does not wait for one that has spent the dollars.
            if limit is not None and vars(worst)[name] and together > limit:
                return f"${limit:g}" if name == "usd" else f"{limit} {name}"
        return ""

    def limited(self, lm: dspy.LM) -> dspy.LM:
        """Return the same model, held to the limits; one that is already comes back as it is."""
        if isinstance(lm.engine, str) or allowance_of(lm) is not None:
            return lm
        return lm.copy(engine=LimitedEngine(lm.engine, self, local=engine_of(lm) is not None))


def allowance_of(lm: dspy.LM) -> Allowance | None:
    """Return what a model is held to, None where it is free."""
    engine = lm.engine
    while not isinstance(engine, str | LimitedEngine):
        if "inner" not in vars(engine):
            return None
        engine = vars(engine)["inner"]
    return engine.allowance if isinstance(engine, LimitedEngine) else None


def held_like(lm: dspy.LM, other: dspy.LM) -> dspy.LM:
    """Return a model that was made of another one, held to what that one is held to."""
    allowance = allowance_of(other)
    return lm if allowance is None else allowance.limited(lm)


class LimitedEngine(WrappingEngine):
    """An engine that asks another one while the allowance lasts."""

    def __init__(self, inner: Any, allowance: Allowance, *, local: bool) -> None:
        """Hold the calls to `inner` to the limits; those of a local model cost no dollars."""
        super().__init__(inner, local=local)
        self.allowance = allowance

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer a request that the limits allow.

        Raises:
            Stopped: they do not.
        """
        self.allowance.check()
        worst = self.worst(request)
        self.allowance.enter(worst)
        actual = worst
        try:
            response: lm15.Response = self.inner.complete(request)
            actual = self._weight(request, usage_dict(response))
            return response
        except Exception:
            # A refused call is no answer and not charged; it was sent all the same.
            actual = Weight(calls=1)
            raise
        finally:
            self.allowance.leave(worst, actual)

    def worst(self, request: lm15.Request) -> Weight:
        """Return the most that a request can take."""
        if not self.allowance.weighs_tokens or (self.local and self.allowance.tokens is None):
            return Weight(calls=1)
        messages, answer = messages_of(request), int(request.config.max_tokens or 0)
        count = len(self.inner.encode(messages)) if self.local else self.inner.count_tokens(messages)
        return self._weight(request, {"prompt_tokens": count, "completion_tokens": answer})

    def _weight(self, request: lm15.Request, usage: dict[str, Any]) -> Weight:
        tokens = int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
        return Weight(1, tokens, 0.0 if self.local else api_price({request.model: usage}) or 0.0)
