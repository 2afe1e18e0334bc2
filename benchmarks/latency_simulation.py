"""Simulate latencies and prices of serving for `simulation.py latency`, beside each figure as it was before."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from verdict_simulation import Line

from crossover.eval.analysis.break_even import BreakEven, break_even_interval
from crossover.eval.analysis.cost import Cost
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.run.latency import BLOCKS

SPEED = 0.07
"""Standard deviation of the machine's speed, from block to block and from run to run."""
PROMPT, FIT = 0.100, 400.0
"""Seconds of a request to the prompted arm, and of fitting the tuned one, of simulated break-evens."""
TAIL = float(np.exp(0.5 * 1.6448536))
"""True p95 of the simulated latencies."""


def p95(questions: int, seeds: int) -> Callable[[int], float]:
    """Return how often the interval holds p95 when every seed asks the same questions, which take it about as long."""

    def simulate(draws: int) -> float:
        rng, held = np.random.default_rng(11), 0
        for _ in range(draws):
            own = rng.normal(0, 0.49, questions)
            seconds = np.exp(own + rng.normal(0, 0.1, (seeds, questions))).ravel()
            e = quantile_interval(seconds.tolist(), 0.95, questions=questions)
            held += e.low <= TAIL <= e.high
        return held / draws

    return simulate


def fresh_run(rng: np.random.Generator, blocks: int = BLOCKS, *, tuned: float, requests: int = 300) -> BreakEven:
    """Return the break-even that a run finds of an arm that takes `tuned` seconds a request over one that takes 0.1.

    The speed of the machine varies from run to run, for fitting and serving alike, and from block to block for each
    arm by itself. One block is the accuracy pass of a version that did not know of blocks.
    """
    run, lengths = 1 + SPEED * rng.normal(), rng.lognormal(-0.02, 0.2, requests)
    sizes = [part.mean() for part in np.array_split(rng.permutation(lengths)[: requests // 2], blocks)]
    costs, each = {}, {}
    for name, seconds, start in (("prompt", PROMPT, 0.0), ("tuned", tuned, FIT * run)):
        served = [run * seconds * (1 + SPEED * rng.normal()) * size for size in sizes]
        per_1k = 1000 * float(np.mean(served))
        each[name] = {str(i): per_1k / 1000 * x for i, x in enumerate(lengths / lengths.mean())}
        costs[name] = Cost(start, per_1k, None)
        if blocks > 1:
            costs[name] = replace(costs[name], blocks=tuple(1000 * s for s in served))
    return break_even_interval(costs, each)


def break_even(blocks: int, requests: int = 300) -> Callable[[int], float]:
    """Return how often the interval holds the break-even of an arm that saves a third of each request."""
    tuned = 0.067

    def simulate(draws: int) -> float:
        rng, held = np.random.default_rng(12), 0
        for _ in range(draws):
            b = fresh_run(rng, blocks, tuned=tuned, requests=requests)
            low, high = b.low or 0.0, float("inf") if b.high is None else b.high
            held += low <= FIT / (PROMPT - tuned) <= high
        return held / draws

    return simulate


LINES: tuple[Line, ...] = (
    Line("p95 of 80 questions, 1 seed or shared among seeds", "99 % (open)", ">= 93 %", p95(80, 1)),
    Line("p95 of 80 questions, the same for 3 seeds", "78 %", ">= 93 %", p95(80, 3)),
    Line("p95 of 80 questions, the same for 5 seeds", "63 %", ">= 93 %", p95(80, 5)),
    Line("break-even, the speed varies by 7 %", "6-10 %", "93-97.5 %", break_even(BLOCKS)),
)
