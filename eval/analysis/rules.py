"""Define the rules of a verdict after `exclusion.OUT`: `ABSTAIN`, then `TaskComparison.contenders`, then `DOUBTS`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.contrast import Contrast, examples_needed
from crossover.eval.analysis.cost import monthly_usd, rounded, start_usd
from crossover.eval.analysis.exclusion import eligible, reason_out
from crossover.eval.analysis.stats import Estimate
from crossover.eval.experiment.spec import Needs

Confidence = Literal["high", "moderate", "low", "abstain"]

MARGIN = 0.02
"""Margin of equivalence: smaller differences do not matter."""

LEAST_EXAMPLES = 50
"""With fewer test examples only an arm that is significantly the best is chosen."""

FLOOR = 0.10
"""An arm shown to score below this is recommended only where `min_score` asks for no more."""

TELLING = 0.10
"""A test set too small to detect a difference of this size cannot call arms tied."""

DEFAULT_VOLUME = 100_000.0
"""Requests a month by which arms are priced where the needs state no volume."""

CHEAPER = 0.10
"""An arm that is cheaper by no more than this share of the other's price is not chosen for its price."""

FORGETS = "forgets "
"""Start of the warning that training made the model worse at another task; the verdict repeats such a warning."""


@dataclass(frozen=True)
class TaskComparison:
    """The arms of one task as the rules read them."""

    needs: Needs
    margin: float
    arms: Sequence[Arm]
    out: Mapping[str, str]
    """Name to reason of each arm that cannot be chosen."""
    ranked: Sequence[Arm]
    """The eligible arms, best score first."""
    contrasts: Mapping[tuple[str, str], Contrast]
    """Contrasts by the names of both arms, in either order."""

    @cached_property
    def contenders(self) -> Sequence[Arm]:
        """The best arm and every arm not significantly worse, the chosen one first, then the cheapest.

        The best is chosen unless others save enough against it (`saves`): then the best of those against which the
        cheapest does not save enough. Arms that scored below `min_score`, though not shown to be below it, and
        unpriced ones come after the others.
        """
        best = self.ranked[0]
        near = [a for a in self.ranked if a is best or self.contrasts[a.name, best.name].finding != "worse"]
        floor = self.needs.min_score or 0.0
        by_price = sorted(
            near, key=lambda a: (a.score.mean < floor, self.price(a) is None, self.price(a) or 0.0, -a.score.mean)
        )
        first = by_price[0]
        alike = [a for a in near if (a.score.mean < floor) == (first.score.mean < floor) and self.price(a) is not None]
        leader = next(iter(alike), first)
        cheaper = [a for a in alike if self.saves(a, leader)]
        chosen = next((a for a in cheaper if not self.saves(first, a)), leader)
        return [chosen, *(a for a in by_price if a is not chosen)]

    @property
    def volume(self) -> float:
        """Return the requests a month by which arms are priced."""
        return self.needs.volume_per_month or DEFAULT_VOLUME

    def price(self, arm: Arm) -> float | None:
        """Return dollars a month at the volume, with hosting, and fitting spread over `refresh_months`."""
        return monthly_usd(arm.cost, self.volume, months=self.needs.refresh_months)

    def saves(self, arm: Arm, other: Arm) -> bool:
        """Return whether the arm is cheaper by more than `CHEAPER` and by more than the noise of both prices.

        The noise is half of the 95 % interval of the difference in price: over the requests, paired, over the seeds,
        and over the blocks in which the arms were served.
        """
        cheap, dear = self.price(arm), self.price(other)
        if cheap is None or dear is None or dear - cheap <= CHEAPER * dear:
            return False
        a, b = arm.request_usd or {}, other.request_usd or {}
        saved = [b[i] - usd for i, usd in a.items() if i in b]
        error = float(np.std(saved)) / math.sqrt(len(saved)) if saved else 0.0
        noise = self.volume * math.hypot(2 * error, arm.cost.spread / 1000, other.cost.spread / 1000)
        return dear - cheap > noise

    def chosen_score(self) -> Estimate:
        """Return the score of the chosen arm, its interval corrected for the choice among the contenders."""
        return self.contenders[0].score_among(len(self.contenders))

    def ties(self) -> list[Contrast]:
        """Return the contrasts of the chosen arm with the other contenders."""
        chosen, *others = self.contenders
        pairs = [(chosen.name, o.name) for o in others]
        return [self.contrasts[p] for p in pairs if p in self.contrasts]


def _none_left(task: TaskComparison) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in task.out.items())
    return "" if task.ranked else f"No arm can be recommended ({reasons})."


def _too_few(task: TaskComparison) -> str:
    best, n = task.ranked[0], min(a.score.n for a in task.ranked)
    if n >= LEAST_EXAMPLES or (len(task.ranked) > 1 and task.contenders == [best]):
        return ""
    return (
        f"{n} test examples are too few to choose by (at least {LEAST_EXAMPLES}), and no arm is significantly the "
        f"best; {best.name} leads with {best.score.mean:.2f}: label {LEAST_EXAMPLES - n} more or so."
    )


def _all_wrong(task: TaskComparison) -> str:
    best = task.ranked[0].score
    if best.mean > 0:
        return ""
    return (
        f"No arm got any of {best.n} test examples right: the task is beyond this model, or metric and data disagree."
    )


def _no_floor(task: TaskComparison) -> str:
    """Return that the best arm is good for next to nothing, unless `min_score` says that it is good enough."""
    best = task.ranked[0]
    if task.needs.min_score is not None or best.score.high >= FLOOR:
        return ""
    return (
        f"The best arm, {best.name}, gets {best.score.mean:.2f} right, shown to be below {FLOOR:g}: none is "
        "recommended. If that is enough, say so with needs.min_score."
    )


def _indistinct(task: TaskComparison) -> str:
    """Return that arms near the best may be far from it; what is worse than both says nothing about that."""
    best = task.ranked[0]
    pairs = [task.contrasts[best.name, a.name] for a in task.contenders if a is not best]
    blind = max((c.detectable for c in pairs), default=0.0)
    if blind <= TELLING:
        return ""
    names = ", ".join(c.b for c in pairs)
    return (
        f"The best arm, {best.name}, is not significantly better than {names} on {best.score.n} examples, which can "
        f"only show differences of about {blind:.2f} or more: collect {_more(task)}."
    )


def _more(task: TaskComparison) -> str:
    """Return how many more examples would tell the two best arms apart, as text."""
    best, second = task.ranked[:2]
    return examples_words(task.contrasts[best.name, second.name], margin=task.margin) or "some more test examples"


def _price_unknown(task: TaskComparison) -> bool:
    near = task.contenders
    return len(near) > 1 and any(task.price(a) is None for a in near)


def _need_unsure(task: TaskComparison) -> bool:
    chosen, needs = task.contenders[0], task.needs
    slow = needs.max_p95_ms is not None and chosen.latency.p95.high > needs.max_p95_ms
    return slow or (needs.min_score is not None and task.chosen_score().low < needs.min_score)


def _single_answer(task: TaskComparison) -> bool:
    return task.contenders[0].single_answer


def _blurred_tie(task: TaskComparison) -> bool:
    return any(c.difference.low < -TELLING / 2 for c in task.ties())


def _open_tie(task: TaskComparison) -> bool:
    return any(c.difference.low < -task.margin for c in task.ties())


def _start_outweighs(task: TaskComparison) -> bool:
    """Return whether a tied arm costs over a dollar less to start, and the chosen one saves less than twice that."""
    (chosen, *others), months = task.contenders, task.needs.refresh_months

    def outweighs(other: Arm) -> bool:
        a, b = chosen.cost, other.cost
        if a.fit is None or b.fit is None or a.per_1k_requests is None or b.per_1k_requests is None:
            return False
        extra = start_usd(a, months=months) - start_usd(b, months=months)
        return extra > 1 and months * task.volume * (b.per_1k_requests - a.per_1k_requests) / 1000 < 2 * extra

    return any(map(outweighs, others))


def _default_decides(task: TaskComparison) -> bool:
    """Return whether a tenth or ten times of the default volume would change the choice."""
    if task.needs.volume_per_month is not None:
        return False
    others = (replace(task.needs, volume_per_month=DEFAULT_VOLUME * factor) for factor in (0.1, 10))
    return any(replace(task, needs=n).contenders[0] is not task.contenders[0] for n in others)


def _beaten_by_none_left(task: TaskComparison) -> bool:
    """Return whether arms were dropped in a race that an arm leads which the needs rule out."""
    best = max(task.arms, key=lambda a: a.score.mean if a.score.n and not a.dropped else -1.0)
    return best.name in task.out and any(a.dropped for a in task.arms)


def _one_seed(task: TaskComparison) -> bool:
    chosen = task.contenders[0]
    return len(chosen.seeds) == 1 and (chosen.learns or chosen.sampled)


def _lone(task: TaskComparison) -> bool:
    return len(task.arms) == 1


def _very_thin(task: TaskComparison) -> bool:
    return task.contenders[0].score.n < LEAST_EXAMPLES


def _thin(task: TaskComparison) -> bool:
    return task.contenders[0].score.n < 4 * LEAST_EXAMPLES


def _close(task: TaskComparison) -> bool:
    best, near = task.ranked[0], task.contenders
    return any(task.contrasts[best.name, a.name].p_holm > 0.01 for a in task.ranked if a not in near)


ABSTAIN: tuple[tuple[str, Callable[[TaskComparison], str]], ...] = (
    ("no arm is left", _none_left),
    ("no arm got anything right", _all_wrong),
    ("the best arm is shown to score below 0.10, and no min_score says that this is enough", _no_floor),
    ("fewer than 50 test examples, and no arm significantly better than the others", _too_few),
    (
        "arms are tied with the best, and only a difference above 0.10 could have been found",
        _indistinct,
    ),
)
"""Rule 2: the verdict abstains, for the first of these reasons that applies."""

# Rule 3 is `TaskComparison.contenders`: the first one is chosen, the others are ties.

DOUBTS: tuple[tuple[str, Confidence, Callable[[TaskComparison], bool]], ...] = (
    ("fewer than 50 test examples", "low", _very_thin),
    ("the price of a tied arm is unknown", "low", _price_unknown),
    ("the interval of the chosen arm's score or p95 reaches across the need", "low", _need_unsure),
    ("the chosen arm is not shown to be better than one answer to everything", "low", _single_answer),
    ("arms were dropped in the race that lost to one which the needs rule out", "low", _beaten_by_none_left),
    ("the chosen arm may be more than 0.05 worse than a tied one", "low", _blurred_tie),
    ("the chosen arm may be worse than a tied one by more than the margin", "moderate", _open_tie),
    (
        "the chosen arm costs $1 more to start than a tied one, and saves less than twice that",
        "moderate",
        _start_outweighs,
    ),
    (
        "no volume is stated, and a tenth or tenfold of the default changes the choice",
        "moderate",
        _default_decides,
    ),
    ("fewer than 200 test examples", "moderate", _thin),
    ("one seed of an arm that is trained, shows drawn demonstrations or samples its answers", "moderate", _one_seed),
    ("only one arm was measured", "moderate", _lone),
    ("an arm was ruled out as worse by a p above 0.01", "moderate", _close),
)
"""Rule 4: the first of these that applies sets the confidence; without any it is high."""


def task_comparison(arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs, margin: float) -> TaskComparison:
    """Sort the arms of one task into eligible and excluded ones, and index their contrasts."""
    out = {a.name: reason for a in arms if (reason := reason_out(a, needs))}
    both_ways = {(c.a, c.b): c for c in contrasts} | {(c.b, c.a): c.reversed() for c in contrasts}
    return TaskComparison(needs, margin, arms, out, eligible(arms, needs), both_ways)


def examples_words(contrast: Contrast, *, margin: float) -> str:
    """Return that range as text, such as `about 90 to 2,800 more test examples`; empty where none are needed."""
    least, most = examples_needed(contrast, margin=margin)
    if most == 0:
        return ""
    if most is None:
        return "more seeds"
    start = "up to" if not least else f"about {rounded(least)} to"
    return f"{start} {rounded(most)} more test examples"
