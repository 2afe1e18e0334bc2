"""Define the rules of a verdict: `OUT`, then `ABSTAIN`, then `TaskComparison.contenders`, then `DOUBTS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.contrast import Contrast, examples_needed
from crossover.eval.analysis.cost import monthly_usd
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

    def contenders(self) -> list[Arm]:
        """Return the best arm and every arm not significantly worse, the cheapest first, unpriced ones last.

        Arms that scored below `min_score`, though not shown to be below it, come after the others.
        """
        best = self.ranked[0]
        arms = [a for a in self.ranked if a is best or self.contrasts[a.name, best.name].finding != "worse"]
        floor = self.needs.min_score or 0.0
        return sorted(
            arms, key=lambda a: (a.score.mean < floor, self.price(a) is None, self.price(a) or 0.0, -a.score.mean)
        )

    def price(self, arm: Arm) -> float | None:
        """Return dollars a month at the needed volume, fitting included, or per 1,000 requests without a volume."""
        volume = self.needs.volume_per_month
        if volume is None:
            return arm.cost.per_1k_requests
        return monthly_usd(arm.cost, volume, months=self.needs.refresh_months)

    def ties(self) -> list[Contrast]:
        """Return the contrasts of the chosen arm with the other contenders."""
        chosen, *others = self.contenders()
        pairs = [(chosen.name, o.name) for o in others]
        return [self.contrasts[p] for p in pairs if p in self.contrasts]


def dropped_words(arm: Arm) -> str:
    """Return when the arm was dropped in the race, or an empty string."""
    return "" if arm.dropped is None else f"dropped in the race after {arm.dropped[0]} of {arm.dropped[1]} examples"


def _dropped(arm: Arm, needs: Needs) -> str:
    return dropped_words(arm)


def _integrity(arm: Arm, needs: Needs) -> str:
    return f"integrity: {arm.integrity[0]}" if arm.integrity else ""


def _unscored(arm: Arm, needs: Needs) -> str:
    return "" if arm.score.n else "no example was scored"


def _below_score(arm: Arm, needs: Needs) -> str:
    missed = needs.min_score is not None and arm.score.high < needs.min_score
    return f"score {arm.score.mean:.4g} < min_score {needs.min_score}" if missed else ""


def _too_slow(arm: Arm, needs: Needs) -> str:
    if needs.max_p95_ms is None or arm.latency.p95.mean <= needs.max_p95_ms:
        return ""
    if not arm.latency.n:
        return "latency not measured"
    return f"p95 {arm.latency.p95.mean:.0f} ms > max_p95_ms {needs.max_p95_ms:g}"


def _too_dear(arm: Arm, needs: Needs) -> str:
    if needs.max_usd_per_month is None or needs.volume_per_month is None:
        return ""
    price = monthly_usd(arm.cost, needs.volume_per_month, months=needs.refresh_months)
    if price is None:
        return "unpriced, so max_usd_per_month cannot be shown to be met"
    too_dear = price > needs.max_usd_per_month
    return f"{usd(price)} a month > max_usd_per_month {needs.max_usd_per_month:g}" if too_dear else ""


def _none_left(task: TaskComparison) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in task.out.items())
    return "" if task.ranked else f"No arm can be recommended ({reasons})."


def _too_few(task: TaskComparison) -> str:
    best, n = task.ranked[0], min(a.score.n for a in task.ranked)
    if n >= LEAST_EXAMPLES or (len(task.ranked) > 1 and task.contenders() == [best]):
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
    best, *others = task.ranked
    pairs = [task.contrasts[best.name, o.name] for o in others]
    blind = max((c.detectable for c in pairs), default=0.0)
    if any(c.finding in ("better", "worse") for c in pairs) or blind <= TELLING:
        return ""
    return (
        f"No arm differs significantly from the best ({best.name}) on {best.score.n} examples, which can only show "
        f"differences of about {blind:.2f} or more: collect {_more(task)}."
    )


def _more(task: TaskComparison) -> str:
    """Return how many more examples would tell the two best arms apart, as text."""
    best, second = task.ranked[:2]
    return examples_words(task.contrasts[best.name, second.name], margin=task.margin) or "some more test examples"


def _price_unknown(task: TaskComparison) -> bool:
    near = task.contenders()
    return len(near) > 1 and any(task.price(a) is None for a in near)


def _need_unsure(task: TaskComparison) -> bool:
    chosen, needs = task.contenders()[0], task.needs
    slow = needs.max_p95_ms is not None and chosen.latency.p95.high > needs.max_p95_ms
    return slow or (needs.min_score is not None and chosen.score.low < needs.min_score)


def _single_answer(task: TaskComparison) -> bool:
    return task.contenders()[0].single_answer


def _blurred_tie(task: TaskComparison) -> bool:
    return any(c.difference.low < -TELLING / 2 for c in task.ties())


def _open_tie(task: TaskComparison) -> bool:
    return any(c.difference.low < -task.margin for c in task.ties())


def _beaten_by_none_left(task: TaskComparison) -> bool:
    """Return whether arms were dropped in a race that an arm leads which the needs rule out."""
    best = max(task.arms, key=lambda a: a.score.mean if a.score.n and not a.dropped else -1.0)
    return best.name in task.out and any(a.dropped for a in task.arms)


def _one_seed(task: TaskComparison) -> bool:
    chosen = task.contenders()[0]
    return len(chosen.seeds) == 1 and (chosen.learns or chosen.sampled)


def _lone(task: TaskComparison) -> bool:
    return len(task.arms) == 1


def _very_thin(task: TaskComparison) -> bool:
    return task.contenders()[0].score.n < LEAST_EXAMPLES


def _thin(task: TaskComparison) -> bool:
    return task.contenders()[0].score.n < 4 * LEAST_EXAMPLES


def _close(task: TaskComparison) -> bool:
    best, near = task.ranked[0], task.contenders()
    return any(task.contrasts[best.name, a.name].p_holm > 0.01 for a in task.ranked if a not in near)


OUT: tuple[tuple[str, Callable[[Arm, Needs], str]], ...] = (
    ("a check of a fair comparison failed", _integrity),
    ("dropped in the race: shown to be worse than another by more than the margin", _dropped),
    ("nothing was scored", _unscored),
    ("score shown to be below min_score", _below_score),
    ("p95 above max_p95_ms, or not measured", _too_slow),
    ("above max_usd_per_month at volume_per_month, or unpriced", _too_dear),
)
"""Rule 1: an arm cannot be chosen when one of these applies."""

ABSTAIN: tuple[tuple[str, Callable[[TaskComparison], str]], ...] = (
    ("no arm is left", _none_left),
    ("no arm got anything right", _all_wrong),
    ("the best arm is shown to score below 0.10, and no min_score says that this is enough", _no_floor),
    ("fewer than 50 test examples, and no arm significantly better than the others", _too_few),
    ("no significant difference, and only one above 0.10 could have been found", _indistinct),
)
"""Rule 2: the verdict abstains, for the first of these reasons that applies."""

# Rule 3 is `TaskComparison.contenders`: the cheapest contender is chosen, the others are ties.

DOUBTS: tuple[tuple[str, Confidence, Callable[[TaskComparison], bool]], ...] = (
    ("fewer than 50 test examples", "low", _very_thin),
    ("the price of a tied arm is unknown", "low", _price_unknown),
    ("the interval of the chosen arm's score or p95 reaches across the need", "low", _need_unsure),
    ("the chosen arm is not shown to be better than one answer to everything", "low", _single_answer),
    ("arms were dropped in the race that lost to one which the needs rule out", "low", _beaten_by_none_left),
    ("the chosen arm may be more than 0.05 worse than a tied one", "low", _blurred_tie),
    ("the chosen arm may be worse than a tied one by more than the margin", "moderate", _open_tie),
    ("fewer than 200 test examples", "moderate", _thin),
    ("one seed of an arm that is trained, shows drawn demonstrations or samples its answers", "moderate", _one_seed),
    ("only one arm was measured", "moderate", _lone),
    ("an arm was ruled out as worse by a p above 0.01", "moderate", _close),
)
"""Rule 4: the first of these that applies sets the confidence; without any it is high."""


def eligible(arms: Sequence[Arm], needs: Needs) -> list[Arm]:
    """Return the arms that rule 1 leaves, best score first."""
    return sorted((a for a in arms if not _reason_out(a, needs)), key=lambda a: -a.score.mean)


def _reason_out(arm: Arm, needs: Needs) -> str:
    return next((reason for _, rule in OUT if (reason := rule(arm, needs))), "")


def task_comparison(arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs, margin: float) -> TaskComparison:
    """Sort the arms of one task into eligible and excluded ones, and index their contrasts."""
    out = {a.name: reason for a in arms if (reason := _reason_out(a, needs))}
    both_ways = {(c.a, c.b): c for c in contrasts} | {(c.b, c.a): c.reversed() for c in contrasts}
    return TaskComparison(needs, margin, arms, out, eligible(arms, needs), both_ways)


def usd(dollars: float) -> str:
    """Return dollars with two significant digits, from one dollar on with cents."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"


def rounded(count: float) -> str:
    """Return a count to two significant digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def examples_words(contrast: Contrast, *, margin: float) -> str:
    """Return that range as text, such as `about 90 to 2,800 more test examples`; empty where none are needed."""
    least, most = examples_needed(contrast, margin=margin)
    if most == 0:
        return ""
    if most is None:
        return "more seeds"
    start = "up to" if not least else f"about {rounded(least)} to"
    return f"{start} {rounded(most)} more test examples"
