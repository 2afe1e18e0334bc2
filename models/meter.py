"""Count the calls of a fit, record their answers, and stop the fit at its budget in dollars.

Answers are recorded in a file as they come: a fit that was killed asks the same questions in the same order again,
and gets the recorded answers, for which nothing is paid a second time. They count as used all the same.
"""

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.call_result import usage_dict

from crossover.models.engine import AttemptFailedError, Engine, without_hook, wrapped
from crossover.models.jsonl import append_lines, read_lines
from crossover.models.limits import Stopped
from crossover.models.price import api_price
from crossover.models.usage import Usage

FATAL = (lm15.AuthError, lm15.BillingError, lm15.UnsupportedModelError, lm15.NotConfiguredError)
"""Failures that no later call escapes: a wrong key, a used-up quota, an unknown model."""


class BudgetSpent(BaseException):
    """The budget of a fit is used up.

    No `Exception`: DSPy's optimizers turn those into scores of zero and go on.
    """


class Meter:
    """The usage of one fit, by model."""

    def __init__(
        self, *, usd: float | None = None, file: Path | None = None, seed: int = 0, ends_when_refused: bool = False
    ) -> None:
        """Read the answers that an earlier, killed fit recorded in `file`; None records none.

        No further call is made after `usd` dollars; `seed` decides what a local model samples at a temperature.
        Where it `ends_when_refused`, none is made either after a first one failed by one of FATAL.
        """
        self.usd, self.file, self.seed, self.ends_when_refused = usd, file, seed, ends_when_refused
        self.stopped = ""
        """Why no further call is answered; empty while calls are."""
        self.by_model: dict[str, Usage] = defaultdict(Usage)
        self.last_failure = ""
        """Reason of the last call that brought no answer."""
        self.replayed = 0
        """Calls that were answered from the file, which an earlier, killed fit had paid for."""
        self._recorded: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._sampled: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._under_way = 0
        self._started, self._seconds_before = time.monotonic(), 0.0
        for line in read_lines(file) if file is not None else ():
            self._recorded[line["request"]].append(line)
            self._seconds_before = max(self._seconds_before, float(line["at"]))

    def metered(self, lm: dspy.LM) -> dspy.LM:
        """Return the same model with its calls counted here, and by no other meter."""
        if isinstance(lm.engine, str):
            raise TypeError(f"{lm.model} has no engine of its own; load it by load_model")
        return wrapped(without_hook(lm, Meter), self)

    @property
    def seconds(self) -> float:
        """Return the wall time of the fit, that of the killed one included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def total(self) -> Usage:
        """Return the usage of all models together."""
        return sum(self.by_model.values(), Usage())

    def stop(self, reason: str) -> None:
        """Answer no further call: DSPy's threads go on with what is queued after a search has ended."""
        with self._changed:
            self.stopped = self.stopped or reason

    def close(self) -> None:
        """Answer no further call, and wait for those under way, which are paid for."""
        self.stop("the search is over")
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Answer by the recorded answer of a killed fit, else by the model.

        Raises:
            BudgetSpent: the dollars are spent, or the meter is closed.
            Stopped: the answer cannot be recorded, so that further calls would be paid for and lost.
        """
        key = _request_key(request)
        if inner.local and request.config.temperature and request.config.seed is None:
            request = replace(request, config=replace(request.config, seed=self._draw_seed(key)))
        if (line := self._begin(key)) is not None:
            self._count(request, inner, line["usage"], replayed=True)
            return _response(request, line)
        try:
            response = inner.complete(request)
            usage = usage_dict(response)
            self._count(request, inner, usage)
            text, finish = response.message.text or "", response.finish_reason
            data = {"data": response.provider_data} if response.provider_data else {}
            self._record({"request": key, "text": text, "finish": finish, "usage": usage} | data)
            return response
        except AttemptFailedError as e:
            self.last_failure = str(e)
            if e.tokens:
                self._count(request, inner, e.tokens)
            elif self.ends_when_refused and isinstance(e.error, FATAL) and not self.total.calls:
                self.stop(f"all calls failed: {e}")
            raise
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _draw_seed(self, key: str) -> int:
        """Return the seed of a request that samples: another one each time the same is asked."""
        with self._changed:
            self._sampled[key] += 1
            digest = hashlib.sha256(f"{self.seed} {key} {self._sampled[key]}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def _begin(self, key: str) -> dict[str, Any] | None:
        """Return the recorded answer of a request, or None after counting it as under way."""
        with self._changed:
            if queue := self._recorded.get(key):
                return queue.popleft()
            spent = self.total.usd
            if self.usd is not None and spent and spent >= self.usd:
                self.stopped = self.stopped or f"${self.usd:g}"
            if self.stopped:
                raise BudgetSpent(self.stopped)
            self._under_way += 1
            return None

    def _count(self, request: lm15.Request, inner: Engine, tokens: dict[str, Any], *, replayed: bool = False) -> None:
        usd = 0.0 if inner.local else api_price({request.model: tokens})
        with self._changed:
            self.by_model[request.model] += Usage.of_call(tokens, usd=usd)
            self.replayed += replayed

    def _record(self, line: dict[str, Any]) -> None:
        if self.file is None:
            return
        try:
            # The lock keeps the lines of two threads apart.
            with self._changed:
                append_lines(self.file, [line | {"at": round(self.seconds, 3)}])
        except OSError as e:
            self.stop(f"{self.file}: {e.strerror}")
            raise Stopped(self.stopped) from e


def _request_key(request: lm15.Request) -> str:
    """Return the hash of everything that decides an answer."""
    from dspy._vendor.lm15.serde import request_to_dict

    return hashlib.sha256(json.dumps(request_to_dict(request), sort_keys=True, default=str).encode()).hexdigest()[:24]


def _response(request: lm15.Request, line: dict[str, Any]) -> lm15.Response:
    usage, details = line["usage"], line["usage"].get("prompt_tokens_details") or {}
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message.assistant(line["text"] or " "),
        finish_reason=line["finish"],
        usage=lm15.Usage(
            input_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            cache_read_tokens=details.get("cached_tokens"),
            cache_write_tokens=details.get("cache_creation_tokens"),
        ),
        provider_data=line.get("data"),
    )
