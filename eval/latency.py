"""Time single uncached requests, the arms side by side; every timing is kept as it comes."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dspy

from eval.rows import whole_lines
from models.load import LoadedModel
from programs.task import Fitted


@dataclass
class Probe:
    """One fitted arm, ready to answer single requests."""

    fitted: Fitted
    model: LoadedModel
    examples: Sequence[dspy.Example]
    retrieve: Callable[[dspy.Example], object] | None
    """Finds the passages of a question; timed with the answer, because a user waits for both."""
    rm: Callable[..., object] | None = None
    """What a program that writes queries of its own searches with."""
    file: Path | None = None
    """Keeps the timings, so that a run that was killed pays for none of them twice."""
    asked: int = 0
    """Timed requests made, the failed ones included."""
    seconds: list[float] = field(default_factory=list)
    retrieval_seconds: list[float] = field(default_factory=list)
    """The part of `seconds` that finding the passages of the question took."""

    def __post_init__(self) -> None:
        """Read what was timed before."""
        for line in whole_lines(self.file):
            self._count(line["seconds"], line["retrieval"])

    def _count(self, seconds: float | None, retrieval: float) -> None:
        self.asked += 1
        if seconds is not None:
            self.seconds.append(seconds)
            self.retrieval_seconds.append(retrieval)

    def keep(self, seconds: float | None, retrieval: float) -> None:
        """Count one timing; None for a request that failed."""
        self._count(seconds, retrieval)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as f:
                f.write(json.dumps({"seconds": seconds, "retrieval": retrieval}) + "\n")

    def ask(self, example: dspy.Example) -> tuple[float | None, float]:
        """Return the seconds of one request, None when it failed, and how many of them went into retrieval."""
        retrieved = 0.0
        with dspy.context(lm=self.fitted.lm, adapter=self.model.adapter, rm=self.rm):
            start = time.perf_counter()
            try:
                if self.retrieve is not None:
                    self.retrieve(example)
                retrieved = time.perf_counter() - start
                self.fitted.program(**example.inputs())
            except Exception:  # the accuracy pass counts failures
                return None, retrieved
            return time.perf_counter() - start, retrieved


def measure_latency(probes: Sequence[Probe], *, requests: int, warm_up: int = 2) -> None:
    """Time single requests, one at a time, uncached, the arms interleaved so that a slow minute hurts all alike.

    The first `warm_up` requests of each arm are not timed; an arm that has all its timings is not asked at all.
    """
    waiting = [p for p in probes if p.asked < requests]
    for n in range(-warm_up, requests):
        for p in waiting:
            if n < 0:
                p.ask(p.examples[(n + warm_up) % len(p.examples)])
            elif n >= p.asked:
                p.keep(*p.ask(p.examples[(n + warm_up) % len(p.examples)]))
