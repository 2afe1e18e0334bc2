"""Simulate what a verdict chooses and what a learning curve claims, for `simulation.py verdicts`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from verdict_simulation import Line

from crossover.eval.analysis.arm import arms_of, best_first
from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.families import representatives
from crossover.eval.analysis.learning import learning_of
from crossover.eval.analysis.racing import block_size, replay
from crossover.eval.analysis.stats import Estimate, score_interval
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Compare, Knowledge, Needs, Prices
from crossover.eval.store.result import Latency, Result
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.score import Row

Bools = NDArray[np.bool_]


def arm(method: str, right: Bools, seconds: float = 10.0, *, size: int | None = None) -> Result:
    """Return the result of one arm that ran here, by which examples it got right and the time that all of them took."""
    rows = [Row(f"e{i}", float(r), "", 100, 0, 5, 1, 0.1, 0.0, {}) for i, r in enumerate(right)]
    cell = Cell("invented", ModelSpec("invented"), MethodSpec(method), size, Knowledge("none"), 0)
    return Result(f"{method}-{size}", cell, "ab" * 32, rows, seconds, Latency((), 1), Usage(), local=True)


def verdict(*results: Result) -> Verdict:
    """Return the verdict over the arms, without any needs."""
    return compare(results, needs=Needs(), prices=Prices(), experiment="invented").verdicts[0]


def chosen_for_a_cent(n: int = 100) -> Callable[[int], float]:
    """Return how often an arm 8 points lower and 1 % cheaper is chosen, beside a third arm that is always wrong."""

    def simulate(draws: int) -> float:
        rng, found = np.random.default_rng(11), 0
        for _ in range(draws):
            best, cheap = arm("few_shot", rng.random(n) < 0.58), arm("zero_shot", rng.random(n) < 0.50, 9.9)
            found += verdict(best, cheap, arm("many_shot", np.zeros(n, dtype=bool))).choose == "zero_shot"
        return found / draws

    return simulate


def cheap_of_equals(n: int = 400, *, raced: bool = False) -> Callable[[int], float]:
    """Return how often the arm of two equally good ones is chosen that is 50 times cheaper, in a race if `raced`."""

    def simulate(draws: int) -> float:
        rng, found = np.random.default_rng(12), 0
        for _ in range(draws):
            both = rng.random(n) < 0.7
            dear, cheap = (both ^ (rng.random(n) < 0.1) for _ in range(2))
            results = [arm("few_shot", dear, 50.0), arm("zero_shot", cheap, 1.0)]
            race = replay(np.array([dear, cheap], dtype=float), block=block_size(n, threads=32))
            for place in {0, 1} - {*race.alive} if raced else ():
                results[place].dropped = {"after": race.scored[place], "of": n, "by": []}
            found += verdict(*results).choose == "zero_shot"
        return found / draws

    return simulate


def crossing(n: int = 200) -> Callable[[int], float]:
    """Return how often the interval of a crossover holds the true one, of an S-shaped curve over four sizes."""
    sizes, truth = (16, 64, 256, 1024), 150.0

    def simulate(draws: int) -> float:
        rng, held = np.random.default_rng(13), 0
        for _ in range(draws):
            results = [arm("zero_shot", rng.random(n) < 0.6)]
            for size in sizes:
                chance = 0.3 + 0.6 / (1 + (truth / size) ** 3)
                results.append(arm("sft", rng.random(n) < chance, size=size))
            learning = learning_of(arms_of(results, Prices()), samples=200)
            found = learning.crossovers[0].size if learning else None
            held += found is not None and (found.low or np.inf) <= truth <= (found.high or np.inf)
        return held / draws

    return simulate


def leaders(methods: int, variants: int, unit: Compare, draws: int) -> Iterator[Estimate]:
    """Yield the score of the best arm on 200 questions where all variants of all methods are right on two of three.

    Val holds 100 other questions.
    """
    (one,) = arms_of([arm("zero_shot", np.zeros(1, dtype=bool))], Prices())
    rng = np.random.default_rng(14)
    for _ in range(draws):
        hard, known = rng.beta(2, 1, 200), rng.beta(2, 1, 100)
        arms = []
        for m, v in product(range(methods), range(variants)):
            test, val = rng.random(200) < hard, float(np.mean(rng.random(100) < known))
            family = f"method {m}" if unit == "methods" else f"{m} {v}"
            score = score_interval(test.astype(float).tolist())
            arms.append(replace(one, name=f"{m} {v}", family=family, val=val, score=score))
        yield best_first(representatives(arms, Needs()))[0].score


def flattery(methods: int, variants: int, unit: Compare = "methods") -> Callable[[int], float]:
    """Return by how much the score of the best arm is too high."""
    return lambda draws: float(np.mean([e.mean for e in leaders(methods, variants, unit, draws)])) - 2 / 3


def leader_coverage(methods: int, variants: int, unit: Compare = "methods") -> Callable[[int], float]:
    """Return how often the interval of that score holds the truth."""
    return lambda draws: float(np.mean([e.low <= 2 / 3 <= e.high for e in leaders(methods, variants, unit, draws)]))


LINES: tuple[Line, ...] = (
    Line("8 points lower and 1 % cheaper, beside an arm of zeros: chosen", "83.8 %", "<= 5 %", chosen_for_a_cent()),
    Line("equally good and 50 times cheaper: chosen", "98.5 %", ">= 97 %", cheap_of_equals()),
    Line("the same in a race: chosen", "53 %", ">= 97 %", cheap_of_equals(raced=True)),
    Line("interval of a crossover, S-shaped curve over four sizes", "70.0 %", ">= 93 %", crossing()),
)
FAMILIES: tuple[Line, ...] = (
    Line("best score too high: 1 method, 18 variants", "5.1 points", "<= 0.5 points", flattery(1, 18), "points"),
    Line("best score too high: 2 methods, 9 variants each", "5.1 points", "<= 2 points", flattery(2, 9), "points"),
    Line("best score too high: 6 methods, 3 variants each", "5.1 points", "<= 4 points", flattery(6, 3), "points"),
    Line("interval of the best score: 1 method, 18 variants", "75 %", "93-97.5 %", leader_coverage(1, 18)),
    Line("interval of the best score: 2 methods, 9 variants each", "75 %", "93-97.5 %", leader_coverage(2, 9)),
    Line("interval of the best score: 6 methods, 3 variants each", "75 %", ">= 90 %", leader_coverage(6, 3)),
)
"""The figures before are those of `compare: all`, which reads every variant on test."""
