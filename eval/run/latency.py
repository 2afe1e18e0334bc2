"""Time uncached requests, alone and in batches, in blocks in which all arms take turns; each timing is kept at once."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.store.result import Latency
from crossover.models.engine import KeepsStates, innermost, states_of
from crossover.models.errors import UserError
from crossover.models.first_token import timing_first_token
from crossover.models.jsonl import append_lines, read_lines
from crossover.models.load import LoadedModel
from crossover.programs.score import score_examples
from crossover.programs.splits import fraction
from crossover.programs.task import Fitted

REQUESTS = "CROSSOVER_LATENCY_REQUESTS"
"""Environment variable: how many requests time an arm at most, in place of 80; results show the number as `n`."""
DEFAULT_REQUESTS = 80
"""The 95 % interval of a p95 has an upper end from 72 on; some may fail."""
COLD_REQUESTS = 6
"""The fewest whose range is a 95 % interval of the median."""
BLOCKS = 5
"""Blocks in which all arms take turns; how the machine's speed differs between them is part of every price."""
FEWEST_AT_ONCE = 8
"""A smaller batch says little of what a request costs in a full one."""
FEWEST_SETTLED, MEDIAN_WITHIN, SLOWEST_WITHIN = 16, 0.05, 0.25
"""An arm is asked no further once so many requests know its median to within 5 %, and none took over 25 % longer."""
WARM_UP = 2
"""Requests to each arm that are not timed; all states that later ones find are theirs."""


def latency_requests() -> tuple[int, int]:
    """Return how many requests time an arm with prefixes cached, and how many, at most `COLD_REQUESTS`, with none.

    Raises:
        UserError: the environment variable is no positive whole number.
    """
    text = os.environ.get(REQUESTS, str(DEFAULT_REQUESTS))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{REQUESTS}={text}: not a positive whole number; leave it out for {DEFAULT_REQUESTS}")
    return int(text), max(1, min(COLD_REQUESTS, int(text) // 3))


def requests_for(questions: int, requests: int, *, bounded: bool) -> int:
    """Return how many requests time an arm on so many test questions.

    At most a quarter of the questions, so that a small run stays small, but not below `FEWEST_SETTLED`. All `requests`
    where the needs bound p95, whose interval may have no upper end otherwise.
    """
    return requests if bounded else min(requests, max(FEWEST_SETTLED, questions // 4))


def timed_questions(
    test: Sequence[dspy.Example], requests: int, *, seed: int, seeds: Sequence[int]
) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Return the questions that time one seed of an arm, and those that warm it up, in an order that a hash decides.

    The seeds share the requests: the same questions asked again would tell little more of how long others take. No
    seed asks a question twice.
    """
    ordered, share = sorted(test, key=lambda e: fraction(str(e["id"]))), math.ceil(requests / len(seeds))
    start = seeds.index(seed) * share % len(ordered)
    turned = ordered[start:] + ordered[:start]
    return turned[: max(1, min(share, len(turned) - WARM_UP))], turned[-WARM_UP:]


def batches_of(test: Sequence[dspy.Example], requests: int, *, threads: int) -> list[list[dspy.Example]]:
    """Return a batch of different questions for each block, at most `threads`, and together at most `requests`.

    None where a batch would have fewer than `FEWEST_AT_ONCE`: a hurried run takes its price from the accuracy pass.
    """
    ordered = sorted(test, key=lambda e: fraction(str(e["id"])))
    size = min(threads, requests // BLOCKS, len(ordered) // BLOCKS)
    return [ordered[n * size : (n + 1) * size] for n in range(BLOCKS)] if size >= FEWEST_AT_ONCE else []


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
    id: str = ""
    """Id of the example; empty in files of earlier versions."""


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

    def slow(self, fewest: int) -> bool:
        """Return whether at least `fewest` answers took `LONG` seconds together, which is enough of them."""
        return len(self.answered) >= fewest and sum(t.seconds for t in self.answered) >= LONG


@dataclass(eq=False)
class Probe:
    """One fitted arm, ready to answer single requests."""

    fitted: Fitted
    model: LoadedModel
    examples: Sequence[dspy.Example]
    """Questions to time, in the order asked."""
    warm_up: Sequence[dspy.Example]
    """Questions asked before, untimed."""
    retrieve: Callable[[dspy.Example], object] | None
    """Retrieves the passages of a question; timed with the answer, because a user waits for both."""
    rm: Callable[..., object] | None = None
    """Retriever of programs that write their own queries."""
    batches: Sequence[Sequence[dspy.Example]] = ()
    """Questions asked all at once, one batch a block; none for an API, whose price no speed decides."""
    bounded: bool = False
    """The needs bound p95, so that every question is asked: fewer would leave its interval without an upper end."""
    file: Path | None = None
    """File of the timings, so that a run that was killed pays for none of them twice."""
    warm: Timings = field(default_factory=Timings)
    cold: Timings = field(default_factory=Timings)
    """Timed with an empty prefix store."""
    batched: list[float | None] = field(default_factory=list)
    """Seconds a request of each batch; None for a batch with failures."""

    def __post_init__(self) -> None:
        """Read earlier timings from the file, and stream the model's answers from now on."""
        for line in read_lines(self.file) if self.file else ():
            if "batched" in line:
                # A batch of another size has another price; files of earlier versions name none.
                if self.batches and line.get("batch", len(self.batches[0])) == len(self.batches[0]):
                    self.batched.append(line["batched"])
                continue
            timings = self.cold if line.pop("cold") else self.warm
            timings.count(Timing(**line) if line else None)
        self._lm, self._timer = timing_first_token(self.fitted.lm)

    def keep(self, timing: Timing | None, *, cold: bool) -> None:
        """Count one request; None for one that failed."""
        (self.cold if cold else self.warm).count(timing)
        self._write({"cold": cold} | ({} if timing is None else asdict(timing)))

    def _write(self, line: dict[str, object]) -> None:
        if self.file is not None:
            append_lines(self.file, [line])

    def prepare(self) -> None:
        """Ask the questions of the warm-up; what the model keeps of them is all that later requests find."""
        with states_of(self.fitted.lm, self):
            for example in self.warm_up:
                self._ask(example)

    def ask(self, example: dspy.Example, *, cold: bool = False) -> Timing | None:
        """Time one request, None when it fails; a cold one finds no states, another those of the warm-up alone."""
        try:
            with states_of(self.fitted.lm, object() if cold else self, briefly=True):
                return self._ask(example)
        except UserError:  # a server failed before it was asked
            return None

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
            first = None if began is None else began - start
            return Timing(time.perf_counter() - start, retrieved - start, first, str(example["id"]))

    def serve(self, batch: Sequence[dspy.Example]) -> None:
        """Time a batch of requests, all at once, without retrieval."""
        lm = self.fitted.lm
        context = dspy.context(lm=lm, adapter=self.model.prompt_format, rm=self.rm, disable_history=True, trace=None)
        try:
            with context, states_of(lm, self, briefly=True):
                start = time.perf_counter()
                rows = list(score_examples(self.fitted.program, batch, lambda *_: 1.0, threads=len(batch)))
                seconds = time.perf_counter() - start
            self.batched.append(None if any(r.failure for r in rows) else seconds / len(batch))
        except UserError:  # a server failed before it was asked
            self.batched.append(None)
        self._write({"batched": self.batched[-1], "batch": len(batch)})

    @property
    def done(self) -> bool:
        """Return whether nothing is left to ask, cold requests aside."""
        return self.timed and self.served

    @property
    def served(self) -> bool:
        """Return whether no batch is left to time: a slow arm takes its price from the accuracy pass."""
        return self.hopeless or self.warm.slow(FEWEST) or len(self.batched) >= len(self.batches)

    @property
    def timed(self) -> bool:
        """Return whether all single requests were made, or those made say enough."""
        asked = self.warm.asked >= len(self.examples) or self.warm.slow(FEWEST)
        return asked or (not self.bounded and self._settled)

    @property
    def _settled(self) -> bool:
        seconds = [t.seconds for t in self.warm.answered]
        if len(seconds) < FEWEST_SETTLED:
            return False
        median = quantile_interval(seconds, 0.5)
        near = max(median.high - median.mean, median.mean - median.low) <= MEDIAN_WITHIN * median.mean
        return near and max(seconds) <= (1 + SLOWEST_WITHIN) * median.mean

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
            ids=tuple(t.id for t in warm if t.id),
            first_token=tuple(t.first_token for t in warm if t.first_token is not None),
            cold=tuple(t.seconds for t in cold),
            cold_first_token=tuple(t.first_token for t in cold if t.first_token is not None),
            batched=tuple(s for s in self.batched if s is not None),
            batch=len(self.batches[0]) if self.batches else 0,
        )


def measure_latency(probes: Sequence[Probe], *, cold_requests: int = 0) -> None:
    """Time requests, uncached, in blocks: each arm in turn is asked one request at a time, then a whole batch.

    So a slow minute hurts all arms alike. An arm that has all its timings is not asked at all, and after a block that
    settles it no single request more. Cold requests come last, to each model that keeps states of prompts here.
    """
    waiting = [p for p in probes if not p.done]
    for p in waiting:
        p.prepare()
    for block in range(BLOCKS):
        ends = [0 if p.timed else math.ceil(len(p.examples) * (block + 1) / BLOCKS) for p in waiting]
        for n in range(max(ends, default=0)):
            for p, end in zip(waiting, ends, strict=True):
                if p.warm.asked <= n < end and not p.warm.slow(FEWEST):
                    p.keep(None if p.hopeless else p.ask(p.examples[n]), cold=False)
        for p in waiting:
            if len(p.batched) <= block < len(p.batches) and not p.served:
                p.serve(p.batches[block])
    forgetful = [p for p in probes if isinstance(innermost(p.fitted.lm), KeepsStates)]
    for n in range(cold_requests):
        for p in forgetful:
            if n >= p.cold.asked and not p.cold.slow(FEWEST_COLD):
                p.keep(p.ask(p.examples[n % len(p.examples)], cold=True), cold=True)
