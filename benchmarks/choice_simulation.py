"""Simulate what a verdict chooses and what a learning curve claims, for `simulation.py verdicts`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from verdict_simulation import Line

from crossover.eval.analysis.arm import arms_of
from crossover.eval.analysis.compare import compare, contrasts_of
from crossover.eval.analysis.families import representatives
from crossover.eval.analysis.learning import learning_of
from crossover.eval.analysis.racing import block_size, replay
from crossover.eval.analysis.rules import MARGIN, task_comparison
from crossover.eval.analysis.seeds import mean_score
from crossover.eval.analysis.stats import ALPHA, Estimate
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Compare, Knowledge, Needs, Prices
from crossover.eval.store.result import Latency, Result
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage
from crossover.programs.score import Row

Bools = NDArray[np.bool_]


class Winner(NamedTuple):
    """The chosen arm of one draw."""

    plain: Estimate
    """Its score, as in the table of arms."""
    corrected: Estimate
    """Its score as in the verdict, with the interval that allows for the choice."""
    truth: float


def arm(
    method: str,
    scores: Bools | Sequence[float | None],
    seconds: float = 10.0,
    *,
    size: int | None = None,
    seed: int = 0,
) -> Result:
    """Return the result of one arm that ran here, by its scores, None for a failed row, and the seconds of all rows."""
    rows = [
        Row(f"e{i}", None if s is None else float(s), "" if s is not None else "lm: busy", 100, 0, 5, 1, 0.1, 0.0, {})
        for i, s in enumerate(scores)
    ]
    cell = Cell("invented", ModelSpec("invented"), MethodSpec(method), size, Knowledge("none"), seed)
    return Result(f"{method}-{size}-{seed}", cell, "ab" * 32, rows, seconds, Latency((), 1), Usage(), local=True)


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
    """Return how often the interval of a crossover holds the true one, of an S-shaped curve over four sizes.

    A tenth of the draws is taken: each resamples and fits all curves.
    """
    sizes, truth = (16, 64, 256, 1024), 150.0

    def simulate(draws: int) -> float:
        rng, held, draws = np.random.default_rng(13), 0, draws // 10
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


@cache
def winners(
    methods: int, variants: int, unit: Compare, draws: int, *, ahead: float = 0.0, cheap: bool = False
) -> Sequence[Winner]:
    """Return the chosen arm of each draw on 200 questions, where all variants of all methods are right on two of three.

    Val holds 100 other questions. The first method answers a share `ahead` more of the questions right; if `cheap`, the
    last costs a fiftieth, so that it is chosen whenever it is not shown to be worse.
    """
    rng, found = np.random.default_rng(14), []
    dear, cent = (arms_of([arm("zero_shot", np.zeros(1, dtype=bool), s)], Prices())[0] for s in (50.0, 1.0))
    for _ in range(draws):
        hard, known = rng.beta(2, 1, 200), rng.beta(2, 1, 100)
        arms = []
        for m, v in product(range(methods), range(variants)):
            right = rng.random(200) < np.minimum(1, hard + ahead * (m == 0))
            scores = {str(i): float(x) for i, x in enumerate(right)}
            arms.append(
                replace(
                    cent if cheap and m == methods - 1 else dear,
                    name=f"{m} {v}",
                    family=f"method {m}" if unit == "methods" else f"{m} {v}",
                    val=float(np.mean(rng.random(100) < known)),
                    scores=scores,
                    by_seed=(scores,),
                    score=mean_score(scores, {}),
                )
            )
        compared = representatives(arms, Needs())
        task = task_comparison(compared, contrasts_of(compared, Needs()), Needs(), MARGIN)
        truth = 2 / 3
        if ahead and task.contenders[0].name.startswith("0 "):
            # The mean of min(1, x + ahead) over the beta(2, 1) distribution of x.
            truth += ahead - ahead**2 + ahead**3 / 3
        found.append(Winner(task.contenders[0].score, task.chosen_score(), truth))
    return found


def flattery(methods: int, variants: int, unit: Compare = "methods") -> Callable[[int], float]:
    """Return by how much the score of the best arm is too high."""
    return lambda draws: float(np.mean([w.plain.mean - w.truth for w in winners(methods, variants, unit, draws)]))


def winner_coverage(
    methods: int, variants: int, unit: Compare = "methods", *, plain: bool = False, **options: Any
) -> Callable[[int], float]:
    """Return how often the interval of the chosen score holds the truth, or the arm's own interval if `plain`."""

    def simulate(draws: int) -> float:
        found = winners(methods, variants, unit, draws, **options)
        ends = [(w.truth, w.plain if plain else w.corrected) for w in found]
        return float(np.mean([e.low <= truth <= e.high for truth, e in ends]))

    return simulate


def best_graded(arms: int, n: int = 200) -> Callable[[int], float]:
    """Return how often the interval of the best of equal arms holds the truth, with graded, skewed scores."""

    def simulate(draws: int) -> float:
        rng, held = np.random.default_rng(15), 0
        for _ in range(draws):
            table = np.clip(rng.beta(4, 1, (arms, n)) * 0.5 + rng.beta(4, 1, n) * 0.5, 0, 1)
            scores = {str(i): float(x) for i, x in enumerate(table[np.argmax(table.mean(axis=1))])}
            low, high = mean_score(scores, {}, tail=ALPHA / arms).low, mean_score(scores, {}).high
            held += low <= 0.8 <= high
        return held / draws

    return simulate


LINES: tuple[Line, ...] = (
    Line("8 points lower and 1 % cheaper, beside an arm of zeros: chosen", "83.8 %", "<= 5 %", chosen_for_a_cent()),
    Line("equally good and 50 times cheaper: chosen", "98.5 %", ">= 97 %", cheap_of_equals()),
    Line("the same in a race: chosen", "53 %", ">= 97 %", cheap_of_equals(raced=True)),
    Line(
        "interval of a crossover, S-shaped curve over four sizes (a tenth of the draws)",
        "0-70 %",
        ">= 93 %",
        crossing(),
    ),
)
FAMILIES: tuple[Line, ...] = (
    Line("best score too high: 1 method, 18 variants", "5.1 points", "<= 0.5 points", flattery(1, 18), "points"),
    Line("best score too high: 2 methods, 9 variants each", "5.1 points", "<= 2 points", flattery(2, 9), "points"),
    Line("best score too high: 6 methods, 3 variants each", "5.1 points", "<= 4 points", flattery(6, 3), "points"),
    Line("interval of the chosen score: 1 method, 18 variants", "75 %", "93-97.5 %", winner_coverage(1, 18)),
    Line("interval of the chosen score: 2 methods, 9 variants each", "75 %", "93-97.5 %", winner_coverage(2, 9)),
    Line("interval of the chosen score: 6 methods, 3 variants each", "75 %", "93-97.5 %", winner_coverage(6, 3)),
    Line("the same, one method 5 points ahead", "–", "93-97.5 %", winner_coverage(6, 3, ahead=0.05)),
    Line("the same, one method 50 times cheaper", "–", "93-97.5 %", winner_coverage(6, 3, cheap=True)),
    Line("interval of the chosen score: all of 8 variants compared", "–", "93-97.5 %", winner_coverage(1, 8, "all")),
    Line("interval of the best of 6 graded scores", "–", "93-97.5 %", best_graded(6)),
    Line("the arm's own interval in the table: 6 methods", "75 %", "–", winner_coverage(6, 3, plain=True)),
)
"""The figures before are those of `compare: all`, which reads every variant on test, with the arm's own interval."""
