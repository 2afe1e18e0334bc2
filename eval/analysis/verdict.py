"""Decide which arm to use, why, with what confidence, and what would change that; or abstain."""

from collections.abc import Sequence
from dataclasses import dataclass

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.break_even import BreakEven, break_even_interval
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.cost import rounded, start_usd, usd
from crossover.eval.analysis.exclusion import eligible
from crossover.eval.analysis.rules import (
    ABSTAIN,
    CHEAPER,
    DOUBTS,
    FORGETS,
    MARGIN,
    Confidence,
    TaskComparison,
    examples_words,
    task_comparison,
)
from crossover.eval.analysis.stats import Estimate
from crossover.eval.experiment.spec import Kind, Needs


@dataclass(frozen=True)
class Verdict:
    """The recommendation for one task."""

    task: str
    choose: str | None
    """Name of the arm; None when abstaining."""
    because: str
    """The reason in one sentence, with the numbers that decide."""
    confidence: Confidence
    score: Estimate | None = None
    """Score of that arm, its interval corrected for the choice among it and `ties`; None when abstaining."""
    ties: tuple[str, ...] = ()
    """The other arms that are not significantly worse than the best."""
    flips: tuple[str, ...] = ()
    """One sentence for each change that would alter the choice."""
    break_even: BreakEven | None = None
    """Of the best in-context and the best fine-tuned arm; None when one is missing, unpriced or no rival."""


def decide(arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs, *, margin: float = MARGIN) -> Verdict:
    """Choose among the arms of one task by the rules of `rules.py`, or abstain."""
    task = task_comparison(arms, contrasts, needs, margin)
    name, break_even = arms[0].task, _break_even(task)
    for _, reason_to_abstain in ABSTAIN:
        if reason := reason_to_abstain(task):
            return Verdict(name, None, reason, "abstain", flips=_needs_unmet(task), break_even=break_even)
    chosen, *others = task.contenders
    confidence: Confidence = next((level for _, level, applies in DOUBTS if applies(task)), "high")
    ties = tuple(a.name for a in others)
    lost = "".join(f" But it {w}." for w in chosen.warnings if w.startswith(FORGETS))
    because = _because(task) + _val_words(chosen, arms) + lost + _race_words(arms)
    flips = (*_flips(task), *filter(None, [_data(task)]))
    return Verdict(name, chosen.name, because, confidence, task.chosen_score(), ties, flips, break_even)


def _break_even(task: TaskComparison) -> BreakEven | None:
    """Return the break-even between the best in-context and the best fine-tuned arm that passed the checks.

    None where the arm that costs more to start is significantly worse: nobody will wait for it to pay.
    """
    sound = eligible(task.arms, Needs())
    kinds: tuple[Kind, ...] = ("context", "weights")
    best = [a for kind in kinds for a in [b for b in sound if b.kind == kind][:1]]
    requests = {a.name: a.request_usd for a in best if a.request_usd and a.cost.fit is not None}
    if len(requests) < 2:
        return None
    found = break_even_interval({a.name: a.cost for a in best}, requests, months=task.needs.refresh_months)
    contrast = task.contrasts.get((found.run, found.start))
    return None if contrast is not None and contrast.finding == "worse" else found


def _val_words(arm: Arm, arms: Sequence[Arm]) -> str:
    """Return that val chose the arm among the variants of its method, as a sentence with a space before it, if so."""
    # A family of which one variant has no score on val is taken apart.
    if arm.variants == 1 or any(a.val is None for a in arms if a.family == arm.family):
        return ""
    return f" Val chose it among {arm.variants} variants of {arm.family}, with {arm.val:.2f}."


def _race_words(arms: Sequence[Arm]) -> str:
    """Return which arms a race dropped and when, as a sentence with a space before it, or an empty string."""
    dropped = [(a.name, *a.dropped) for a in arms if a.dropped]
    names = ", ".join(f"{name} after {after} of {of} examples" for name, after, of in dropped)
    return f" Dropped in the race, shown to be worse by more than {MARGIN:g}: {names}." if dropped else ""


def _because(task: TaskComparison) -> str:
    chosen, best, e, among = task.contenders[0], task.ranked[0], task.chosen_score(), len(task.contenders)
    choice = f" after choosing among {among}" if among > 2 else ""
    score = f"{chosen.name} scores {e.mean:.2f} [{e.low:.2f}, {e.high:.2f}{choice}]"
    price = f"on {chosen.score.n} test examples {_price_words(task, chosen)}"
    if len(task.ranked) == 1 and any(a.dropped for a in task.arms):
        return f"{score} {price} and is the only arm left of the race."
    if len(task.ranked) == 1:
        return f"{score} {price} and is the only arm that can be recommended."
    other = best if chosen is not best else task.ranked[1]
    contrast = task.contrasts[chosen.name, other.name]
    p = f"p = {contrast.p_holm:.2g}" if contrast.p_holm >= 0.001 else "p < 0.001"
    numbers = f"{other.name} (difference {round(contrast.difference.delta, 2) + 0.0:+.2f}, {p})"
    if len(task.contenders) == 1:
        return f"{score} {price}, significantly better than the next, {numbers}."
    if task.price(chosen) is None:
        return (
            f"{score} {price}, with no price to set against arms that are not significantly worse; next is {numbers}."
        )
    if chosen is best:
        return f"{score} {price}, the best, and {_no_savings(task)}; next is {numbers}."
    if task.price(best) is None:
        return f"{score} {price}, tied with the best, whose price is not known: {numbers}."
    return f"{score} {price}, over a tenth cheaper than the best, with which it is tied: {numbers}."


def _no_savings(task: TaskComparison) -> str:
    """Return why no arm that is tied with the chosen one is chosen for its price."""
    chosen, *tied = task.contenders
    limit = (1 - CHEAPER) * (task.price(chosen) or 0.0)
    cheap = [a for a in tied if (price := task.price(a)) is not None and price < limit]
    if not cheap:
        return "no arm tied with it is over a tenth cheaper"
    low = task.needs.min_score is not None and cheap[0].score.mean < task.needs.min_score
    but = "scores below min_score" if low else "saves no more than the noise of both prices"
    return f"{cheap[0].name}, tied with it and cheaper, {but}"


def _flips(task: TaskComparison) -> tuple[str, ...]:
    """Return a sentence for each change of traffic, price or needs that would alter the choice."""
    near = task.contenders if task.ranked else []
    found = [f(task, near[0], other) for other in near[1:] for f in (_traffic, _price)]
    return (*filter(None, found), *_needs_unmet(task))


def _needs_unmet(task: TaskComparison) -> tuple[str, ...]:
    """Return a sentence for each need that was not applied, and for the best arm that one of them rules out."""
    found = []
    if task.needs.max_usd_per_month is not None and task.needs.volume_per_month is None:
        found.append("max_usd_per_month was not applied, for needs has no volume_per_month")
    floor = task.contenders[0].score.mean if task.ranked else 0.0
    barred = [a for a in eligible(task.arms, Needs()) if a.name in task.out and a.score.mean > floor]
    return (*found, *(f"{a.name} scores {a.score.mean:.2f}, but {task.out[a.name]}" for a in barred[:1]))


def _savers(task: TaskComparison, chosen: Arm, other: Arm) -> tuple[Arm, Arm]:
    """Return which of the arms must be a tenth cheaper to be chosen, the one that scores lower, and the other."""
    return (other, chosen) if task.ranked.index(chosen) < task.ranked.index(other) else (chosen, other)


def _traffic(task: TaskComparison, chosen: Arm, other: Arm) -> str:
    """Return from which volume on the choice between the two is another, as a sentence, or an empty string."""
    cheap, dear = _savers(task, chosen, other)
    a, b, months = cheap.cost, dear.cost, task.needs.refresh_months
    if a.fit is None or b.fit is None or a.per_1k_requests is None or b.per_1k_requests is None:
        return ""
    start = (start_usd(a, months=months) - (1 - CHEAPER) * start_usd(b, months=months)) / months
    slope = (a.per_1k_requests - (1 - CHEAPER) * b.per_1k_requests) / 1000
    if start * slope >= 0 or -start / slope < 1:
        return ""
    side = "above" if (slope < 0) == (cheap is other) else "below"
    words = "is over a tenth cheaper than" if cheap is other else "is no longer a tenth cheaper than"
    return f"{side} about {rounded(-start / slope)} requests a month {cheap.name} {words} {dear.name}"


def _price(task: TaskComparison, chosen: Arm, other: Arm) -> str:
    """Return at which lower price of the other arm it would be chosen, as a sentence, or an empty string."""
    price, now, months = task.price(chosen), other.cost.per_1k_requests, task.needs.refresh_months
    if price is None:
        return ""
    if now is None or other.cost.fit is None:
        return f"a known price of {other.name}, now unpriced"
    lower = _savers(task, chosen, other)[0] is other
    target = price * (1 - CHEAPER) if lower else price / (1 - CHEAPER)
    below = 1000 * (target - start_usd(other.cost, months=months) / months) / task.volume
    words = (
        f"{other.name} is over a tenth cheaper than {chosen.name}"
        if lower
        else f"{chosen.name} is no longer a tenth cheaper than {other.name}"
    )
    line = f"at less than {usd(below)} per 1,000 requests to {other.name} (now {usd(now)}) {words}"
    return line if 0 < below < now and usd(below) != usd(now) else ""


def _data(task: TaskComparison) -> str:
    """Return how many more examples would tell the two best arms apart, or an empty string where that is settled."""
    if len(task.ranked) < 2:
        return ""
    best, second = task.ranked[:2]
    contrast = task.contrasts[best.name, second.name]
    more = examples_words(contrast, margin=task.margin) if contrast.finding == "inconclusive" else ""
    return f"{more} would tell {best.name} from {second.name}" if more else ""


def _price_words(task: TaskComparison, arm: Arm) -> str:
    price = task.price(arm)
    if price is None:
        return "(unpriced)"
    default = " (no volume is stated)" if task.needs.volume_per_month is None else ""
    return f"at {usd(price)} a month for {task.volume:,.0f} requests{default}"
