"""Contrast two arms on the examples that both scored: the difference, its adjusted p, and what follows from it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.seeds import difference_error, widen_difference
from crossover.eval.analysis.stats import ALPHA, Difference, paired_difference, power_factor

Finding = Literal["better", "worse", "equivalent", "inconclusive"]

REVERSED: dict[Finding, Finding] = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Contrast:
    """A paired comparison of two arms of a task."""

    task: str
    a: str
    """Name of the first arm, of which `finding` speaks."""
    b: str
    """Name of the arm it is compared with."""
    difference: Difference
    """a minus b."""
    p_holm: float
    """p adjusted over all pairs of arms of the task."""
    level: float
    """Level that the raw p faces in that adjustment."""
    finding: Finding
    """Whether a is better or worse than b."""

    @property
    def detectable(self) -> float:
        """Return the smallest true difference that this contrast detects with 80 % power after adjustment."""
        return self.difference.detectable(self.level)

    def reversed(self) -> "Contrast":
        """Return the same contrast as b minus a."""
        d = self.difference
        turned = replace(d, delta=-d.delta, low=-d.high, high=-d.low, low90=-d.high90, high90=-d.low90)
        finding = REVERSED.get(self.finding, self.finding)
        return replace(self, a=self.b, b=self.a, difference=turned, finding=finding)


def difference_of(a: Arm, b: Arm, *, resampled: bool = True) -> Difference:
    """Return a minus b on the examples that both scored, widened by the spread of the seeds where there are several.

    `resampled` is that of `paired_difference`.
    """
    scores, others = a.scores, b.scores
    if scores.keys() != others.keys():
        shared = [i for i in scores if i in others]
        scores, others = {i: scores[i] for i in shared}, {i: others[i] for i in shared}
    seeds = [dict(zip(arm.seeds, arm.by_seed, strict=True)) for arm in (a, b)]
    difference = paired_difference(scores, others, clusters=a.clusters, resampled=resampled)
    return widen_difference(difference, *difference_error(*seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of a family of tests adjusted by Holm's method, in the order given."""
    # statsmodels has it too, and collects garbage first: a second in a process that has loaded models.
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(np.argsort(p_values, kind="stable")):
        adjusted[n] = most = max(most, min(1.0, (len(p_values) - rank) * p_values[n]))
    return adjusted


def adjust_pairs(
    pairs: Sequence[tuple[str, str]],
    differences: Sequence[Difference],
    *,
    dropped: Collection[str] = (),
    out: Collection[str] = (),
) -> list[tuple[float, float]]:
    """Return the adjusted p of each pair of arms and the level that its raw p faces, by Holm's method in two steps.

    Holm divides the error among the hypotheses that are left. Once two arms are each shown to be worse than a third,
    nobody will choose between them, and their pair leaves the family: such pairs are tested after all others, and only
    if each of those was decided, so that no error is spent on them before. So a race, which never learns how its losers
    compare, reaches the verdict of the full grid. `dropped` names the arms that a race showed to be worse, `out` those
    that cannot be chosen: they close no pair of others, for the choice is between arms that they beat.
    """
    arms = {name: n for n, name in enumerate(dict.fromkeys(name for pair in pairs for name in pair))}
    first, second = np.array([[arms[a], arms[b]] for a, b in pairs], dtype=int).reshape(-1, 2).T
    p = np.array([d.p for d in differences])
    waiting, beaten = np.ones(len(pairs), dtype=bool), np.zeros(len(arms), dtype=bool)
    beaten[[arms[name] for name in (*dropped, *out) if name in arms]] = True
    eligible = np.array([name not in out for name in arms])
    adjusted, most, order = np.ones(len(pairs)), 0.0, np.argsort(p, kind="stable")
    levels = np.full(len(pairs), ALPHA / max(1, len(pairs)))
    for n in order:
        open_pairs = waiting & ~(beaten[first] & beaten[second])
        if not open_pairs[n]:
            continue
        count = int(open_pairs.sum())
        if most <= ALPHA:
            # Until one is rejected, all that are left face the level of the next.
            levels[open_pairs] = ALPHA / count
        adjusted[n] = most = max(most, min(1.0, count * p[n]))
        if most == 1:
            break
        waiting[n] = False
        if most <= ALPHA:
            worse, better = (first[n], second[n]) if differences[n].delta < 0 else (second[n], first[n])
            beaten[worse] |= eligible[better]
    last = beaten[first] & beaten[second]
    most = max(adjusted[~last], default=0.0)
    for rank, n in enumerate(order[last[order]]):
        adjusted[n] = most = max(most, min(1.0, (int(last.sum()) - rank) * p[n]))
    return list(zip(adjusted.tolist(), levels.tolist(), strict=True))


def classify_difference(difference: Difference, p_holm: float, *, margin: float) -> Finding:
    """Classify the first arm as better, worse or equivalent, or the difference as inconclusive.

    Better or worse: adjusted p at most 0.05 and the 95 % interval clear of 0. Equivalent: the 90 % interval lies
    within the margin on both sides. Everything else is inconclusive.
    """
    if p_holm <= ALPHA and difference.low > 0:
        return "better"
    if p_holm <= ALPHA and difference.high < 0:
        return "worse"
    if -margin < difference.low90 and difference.high90 < margin:
        return "equivalent"
    return "inconclusive"


def examples_needed(contrast: Contrast, *, margin: float) -> tuple[int, int | None]:
    """Return about how many more examples would tell the arms apart: at least, and at most.

    At least if the true difference is the largest that the 95 % interval holds, at most if it is the smallest. No
    difference below the margin is looked for, because it does not matter. None when the spread of the seeds hides a
    difference of that size from any number of examples.
    """
    d, factor = contrast.difference, power_factor(contrast.level)
    smallest, largest = sorted((abs(d.low), abs(d.high)))
    if d.low <= 0 <= d.high:
        smallest = 0.0

    def more(target: float) -> int | None:
        rest = target**2 - (factor * d.seed_error) ** 2
        return max(0, math.ceil(d.n * (factor * d.error) ** 2 / rest) - d.n) if rest > 0 else None

    return more(max(largest, margin)) or 0, more(max(smallest, margin))
