"""Time single uncached requests, the arms interleaved; every timing is written as it comes."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.eval.store.result import Latency
from crossover.models.engine import KeepsStates, innermost, states_of
from crossover.models.errors import UserError
from crossover.models.first_token import timing_first_token
from crossover.models.jsonl import append_lines, read_lines
from crossover.models.load import LoadedModel
from crossover.programs.task import Fitted

REQUESTS = "CROSSOVER_LATENCY_REQUESTS"
"""Environment variable: how many requests time an arm, in place of 30; results show the number as `n`."""


def latency_requests() -> tuple[int, int]:
    """Return how many requests time an arm with prefixes cached, and how many, a third of these, with none.

    Raises:
        UserError: the environment variable is no positive whole number.
    """
    text = os.environ.get(REQUESTS, "30")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{REQUESTS}={text}: not a positive whole number; leave it out for 30")
    return int(text), max(1, int(text) // 3)


FIRST_REQUESTS = 3
"""An arm whose first requests all fail is not timed."""
FEWEST, FEWEST_COLD, LONG = 10, 3, 60.0
"""An arm is asked no further once so many answers, with prefixes cached or with none, took so many seconds together:
a model that reasons for a quarter of a minute would be timed for an hour."""


@dataclass(frozen=True)
class Timing:
    """One uncached request, in seconds."""

    seconds: float
    retrieval: float
    """Seconds of it that retrieval took."""
    first_token: float | None
    """Seconds until the last answer began; None for a model that does not stream."""


@dataclass
class Timings:
    """Timed requests, all with a warm cache of prefixes or all with a cold one."""

    asked: int = 0
    """Requests made, failed ones included."""
    answered: list[Timing] = field(default_factory=list)

    def count(self, timing: Timing | None) -> None:
        """Count a request; None for one that failed."""
        self.asked += 1
        if timing is not None:
            self.answered.append(timing)

    def complete(self, requests: int, fewest: int) -> bool:
        """Return whether all requests were made, or at least `fewest` answers that took `LONG` seconds."""
        slow = len(self.answered) >= fewest and sum(t.seconds for t in self.answered) >= LONG
        return self.asked >= requests or slow


@dataclass(eq=False)
class Probe:
    """One fitted arm, ready to answer single requests."""

    fitted: Fitted
    model: LoadedModel
    examples: Sequence[dspy.Example]
    retrieve: Callable[[dspy.Example], object] | None
    """Retrieves the passages of a question; timed with the answer, because a user waits for both."""
    rm: Callable[..., object] | None = None
    """Retriever of programs that write their own queries."""
    file: Path | None = None
    """File of the timings, so that a run that was killed pays for none of them twice."""
    warm: Timings = field(default_factory=Timings)
    cold: Timings = field(default_factory=Timings)
    """Timed with an empty prefix store."""

    def __post_init__(self) -> None:
        """Read earlier timings from the file, and stream the model's answers from now on."""
        for line in read_lines(self.file) if self.file else ():
            timings = self.cold if line.pop("cold") else self.warm
            timings.count(Timing(**line) if line else None)
        self._lm, self._timer = timing_first_token(self.fitted.lm)

    def keep(self, timing: Timing | None, *, cold: bool) -> None:
        """Count one request; None for one that failed."""
        (self.cold if cold else self.warm).count(timing)
        if self.file is not None:
            line = {"cold": cold} | ({} if timing is None else asdict(timing))
            append_lines(self.file, [line])

    def warm_up(self, example: dspy.Example) -> None:
        """Ask one request without timing it; what the model keeps of it is all that later requests find."""
        with states_of(self.fitted.lm, self):
            self._ask(example)

    def ask(self, example: dspy.Example, *, cold: bool = False) -> Timing | None:
        """Time one request, None when it fails; a cold one finds no states, another those of the warm-up alone."""
        with states_of(self.fitted.lm, object() if cold else self, briefly=True):
            return self._ask(example)

    def _ask(self, example: dspy.Example) -> Timing | None:
        with dspy.context(lm=self._lm, adapter=self.model.prompt_format, rm=self.rm):
            start = time.perf_counter()
            try:
                if self.retrieve is not None:
                    self.retrieve(example)
                retrieved = time.perf_counter()
                # An answer that cannot be parsed took its time all the same.
                with contextlib.suppress(AdapterParseError):
                    self.fitted.program(**example.inputs())
            except Exception:  # the accuracy pass counts failures
                return None
            began = self._timer.began
            return Timing(time.perf_counter() - start, retrieved - start, None if began is None else began - start)

    @property
    def hopeless(self) -> bool:
        """Return whether the first timed requests all failed, so that no further one is worth its wait."""
        return self.warm.asked >= FIRST_REQUESTS and not self.warm.answered

    @property
    def remarks(self) -> list[str]:
        """Return what a reader of the latency must know."""
        whole = "the server does not stream: latency is that of whole answers, with no time to the first token"
        return [] if self._timer.streams else [whole]

    def latency(self) -> Latency:
        """Return all timings as the latency of the arm."""
        warm, cold = self.warm.answered, self.cold.answered
        return Latency(
            tuple(t.seconds for t in warm),
            1,
            first_token=tuple(t.first_token for t in warm if t.first_token is not None),
            cold=tuple(t.seconds for t in cold),
            cold_first_token=tuple(t.first_token for t in cold if t.first_token is not None),
        )


def measure_latency(probes: Sequence[Probe], *, requests: int, cold_requests: int = 0, warm_up: int = 2) -> None:
    """Time single requests, one at a time, uncached, the arms interleaved so that a slow minute hurts all alike.

    The first `warm_up` requests of each arm are not timed; an arm that has all its timings is not asked at all, a slow
    one fewer times. Cold requests come last, to each model that keeps states of prompts here.
    """
    waiting = [p for p in probes if not p.warm.complete(requests, FEWEST)]
    for n in range(-warm_up, requests):
        for p in waiting:
            example = p.examples[(n + warm_up) % len(p.examples)]
            if n < 0:
                p.warm_up(example)
            elif n >= p.warm.asked and not p.warm.complete(requests, FEWEST):
                p.keep(None if p.hopeless else p.ask(example), cold=False)
    forgetful = [p for p in probes if isinstance(innermost(p.fitted.lm), KeepsStates)]
    for n in range(cold_requests):
        for p in forgetful:
            if n >= p.cold.asked and not p.cold.complete(cold_requests, FEWEST_COLD):
                p.keep(p.ask(p.examples[n % len(p.examples)], cold=True), cold=True)
