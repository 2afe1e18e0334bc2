"""Contrast two arms on the examples that both scored: the difference, its adjusted p, and what follows from it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.seeds import difference_error, widen_difference
from crossover.eval.analysis.stats import ALPHA, Difference, paired_difference

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
    finding: Finding
    """Whether a is better or worse than b."""

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
    pairs: Sequence[tuple[str, str]], differences: Sequence[Difference], *, dropped: Collection[str] = ()
) -> list[float]:
    """Return p adjusted over all pairs of arms by Holm's method, in which a pair of beaten arms no longer counts.

    Holm divides the error among the hypotheses that are left. Once two arms are each shown to be worse than a third,
    nobody will choose between them, and their pair leaves the family; its own p is multiplied by the number of all
    pairs. So a race, which never learns how its losers compare, reaches the verdict of the full grid. `dropped` names
    the arms that a race showed to be worse.
    """
    arms = {name: n for n, name in enumerate(dict.fromkeys(name for pair in pairs for name in pair))}
    first, second = np.array([[arms[a], arms[b]] for a, b in pairs], dtype=int).reshape(-1, 2).T
    p, waiting, beaten = (
        np.array([d.p for d in differences]),
        np.ones(len(pairs), dtype=bool),
        np.zeros(len(arms), bool),
    )
    beaten[[arms[name] for name in dropped if name in arms]] = True
    adjusted, most = np.minimum(1.0, len(pairs) * p), 0.0
    for n in np.argsort(p, kind="stable"):
        if beaten[first[n]] and beaten[second[n]]:
            continue
        count = int((waiting & ~(beaten[first] & beaten[second])).sum())
        adjusted[n] = most = max(most, min(1.0, count * p[n]))
        if most == 1:
            break
        waiting[n] = False
        if most <= ALPHA:
            beaten[first[n] if differences[n].delta < 0 else second[n]] = True
    return [float(x) for x in adjusted]


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


def examples_needed(difference: Difference, *, margin: float = 0.0) -> int | None:
    """Return about how many more examples would detect the observed difference, or the margin if that is larger.

    Differences below the margin do not matter, so none smaller is looked for. None when no number of examples would
    do: both are 0, or the spread of the seeds hides a difference of that size.
    """
    target, d = max(abs(difference.delta), margin), difference
    if target <= d.from_seeds:
        return None
    share = (d.detectable**2 - d.from_seeds**2) / (target**2 - d.from_seeds**2)
    return max(0, math.ceil(d.n * share) - d.n)
