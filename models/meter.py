"""Count what language models are asked while a method fits, keep the answers, and stop at a bound.

The answers are kept in a file as they come: a fit that was killed asks the same questions in the same order again,
and gets the kept answers, for which nothing is paid a second time. They count as spent all the same.
"""

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.call_result import usage_dict

from crossover.models.allowance import Stopped
from crossover.models.jsonl import append_lines, read_lines
from crossover.models.price import api_price
from crossover.models.prompt import engine_of
from crossover.models.wrapping import WrappingEngine


class BudgetSpent(BaseException):
    """The budget of a fit is used up.

    No `Exception`: DSPy's optimizers turn those into scores of zero and go on.
    """


@dataclass
class Counts:
    """Tokens and dollars of a number of calls."""

    calls: int = 0
    replayed: int = 0
    """Of the calls, those that an earlier, killed fit had paid for."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    """None when a price is unknown."""

    def add(self, usage: dict[str, Any], usd: float | None, *, replayed: bool) -> None:
        """Add one answered call."""
        self.calls += 1
        self.replayed += replayed
        self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        self.cached_tokens += int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.completion_tokens += int(usage.get("completion_tokens") or 0)
        self.usd = None if self.usd is None or usd is None else self.usd + usd


@dataclass
class Meter:
    """The counts of one fit, by model."""

    usd: float | None = None
    """Dollars after which no further call is made; None for no bound."""
    file: Path | None = None
    """Keeps the answers, one a line; None to keep none."""
    by_model: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    seed: int = 0
    """Decides what a local model samples at a temperature."""
    stopped: str = ""
    """Why no further call is answered; empty while calls are."""

    def __post_init__(self) -> None:
        """Read the answers of an earlier, killed fit."""
        self._kept: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        self._seen: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._under_way = 0
        self._started, self._before = time.monotonic(), 0.0
        for line in read_lines(self.file) if self.file else ():
            self._kept[line["request"]].append(line)
            self._before = max(self._before, float(line["at"]))

    def metered(self, lm: dspy.LM) -> dspy.LM:
        """Return the same model, counted."""
        engine = lm.engine
        if isinstance(engine, str):
            raise TypeError(f"{lm.model} has no engine of its own; load it by load_model")
        if isinstance(engine, MeteredEngine):
            engine = engine.inner
        return lm.copy(engine=MeteredEngine(engine, self, local=engine_of(lm) is not None))

    @property
    def seconds(self) -> float:
        """Return the wall time of the fit, that of the killed one included."""
        return self._before + time.monotonic() - self._started

    @property
    def total(self) -> Counts:
        """Return the counts of all models together."""
        total = Counts()
        for c in self.by_model.values():
            total.calls += c.calls
            total.replayed += c.replayed
            total.prompt_tokens += c.prompt_tokens
            total.cached_tokens += c.cached_tokens
            total.completion_tokens += c.completion_tokens
            total.usd = None if total.usd is None or c.usd is None else total.usd + c.usd
        return total

    def stop(self, reason: str) -> None:
        """Answer no further call: DSPy's threads go on with what is queued after a search has ended."""
        with self._changed:
            self.stopped = self.stopped or reason

    def close(self) -> None:
        """Answer no further call, and wait for those under way, which are paid for."""
        self.stop("the search is over")
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0)

    def draw(self, key: str) -> int:
        """Return the seed of a request that samples: another one each time the same is asked."""
        with self._changed:
            self._seen[key] += 1
            digest = hashlib.sha256(f"{self.seed} {key} {self._seen[key]}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def begin(self, key: str) -> dict[str, Any] | None:
        """Return the kept answer of a request, or None and count it as under way.

        Raises:
            BudgetSpent: the dollars are spent, or the meter is closed.
        """
        with self._changed:
            if self._kept[key]:
                return self._kept[key].popleft()
            spent = self.total.usd
            if self.usd is not None and spent and spent >= self.usd:
                self.stopped = self.stopped or f"${self.usd:g}"
            if self.stopped:
                raise BudgetSpent(self.stopped)
            self._under_way += 1
            return None

    def end(self, model: str, line: dict[str, Any] | None, usd: float | None, *, replayed: bool) -> None:
        """Count an answer and keep it; None for a call that failed."""
        with self._changed:
            try:
                if line is not None:
                    self.by_model[model].add(line["usage"], usd, replayed=replayed)
                    if not replayed:
                        self._keep(line | {"at": round(self.seconds, 3)})
            finally:
                if not replayed:
                    self._under_way -= 1
                    self._changed.notify_all()

    def _keep(self, line: dict[str, Any]) -> None:
        """Write an answer down.

        Raises:
            Stopped: it cannot be written, so that further calls would be paid for and lost.
        """
        if self.file is None:
            return
        try:
            append_lines(self.file, [line])
        except OSError as e:
            self.stop(f"{self.file}: {e.strerror}")
            raise Stopped(self.stopped) from e


class MeteredEngine(WrappingEngine):
    """An engine that asks another one and tells the meter."""

    def __init__(self, inner: Any, meter: Meter, *, local: bool) -> None:
        """Count the calls to `inner`; those of a local model cost machine time alone."""
        super().__init__(inner, local=local)
        self.meter = meter

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer by the kept answer of a killed fit, else by the model."""
        key = _key(request)
        if self.local and request.config.temperature and request.config.seed is None:
            request = replace(request, config=replace(request.config, seed=self.meter.draw(key)))
        kept = self.meter.begin(key)
        if kept is None:
            line = None
            try:
                response: lm15.Response = self.inner.complete(request)
                line = {
                    "request": key,
                    "text": response.message.text or "",
                    "finish": response.finish_reason,
                    "usage": usage_dict(response),
                }
            finally:
                self.meter.end(request.model, line, self._usd(request, line), replayed=False)
            return response
        self.meter.end(request.model, kept, self._usd(request, kept), replayed=True)
        return _response(request, kept)

    def _usd(self, request: lm15.Request, line: dict[str, Any] | None) -> float | None:
        return 0.0 if self.local or line is None else api_price({request.model: line["usage"]})


def _key(request: lm15.Request) -> str:
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
    )
