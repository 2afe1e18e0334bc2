"""The rules of a verdict: `OUT`, then `ABSTAIN`, then `Case.near`, then `DOUBTS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from crossover.eval.analysis.arm import Arm, Contrast
from crossover.eval.analysis.cost import monthly_usd
from crossover.eval.analysis.findings import Finding, examples_needed
from crossover.eval.experiment.spec import Needs

Confidence = Literal["high", "moderate", "low", "abstain"]

MARGIN = 0.02
"""Differences below this do not matter: the margin of equivalence."""

LEAST_EXAMPLES = 50
"""Fewer test examples than this decide nothing."""

TELLING = 0.10
"""A test set that cannot show a difference of this size cannot call arms tied."""

FORGETS = "forgets "
"""How the warning begins that a training made the model worse at another task; the verdict repeats it."""


@dataclass(frozen=True)
class Case:
    """What the rules read about one task."""

    needs: Needs
    margin: float
    arms: Sequence[Arm]
    out: Mapping[str, str]
    """Arms that cannot be chosen, with the reason."""
    ranked: Sequence[Arm]
    """The others, best score first."""
    contrasts: Mapping[tuple[str, str], Contrast]
    """Each contrast both ways round."""

    def near(self) -> list[Arm]:
        """Return the best arm and those not significantly worse, cheapest first, unpriced ones last."""
        best = self.ranked[0]
        arms = [a for a in self.ranked if a is best or self.contrasts[a.name, best.name].verdict != "worse"]
        return sorted(arms, key=lambda a: (self.price(a) is None, self.price(a) or 0.0, -a.score.mean))

    def price(self, arm: Arm) -> float | None:
        """Return dollars a month at the needed volume, fitting included; without a volume, per 1,000 requests."""
        volume = self.needs.volume_per_month
        if volume is None:
            return arm.cost.per_1k_requests
        return monthly_usd(arm.cost, volume, months=self.needs.refresh_months)

    def ties(self) -> list[Contrast]:
        """Return the chosen arm compared with each other arm that is near the best."""
        chosen, *others = self.near()
        pairs = [(chosen.name, o.name) for o in others]
        return [self.contrasts[p] for p in pairs if p in self.contrasts]


def dropped_words(arm: Arm) -> str:
    """Return when the arm left the race; empty when it did not."""
    return "" if arm.dropped is None else f"dropped in the race after {arm.dropped[0]} of {arm.dropped[1]} examples"


def _dropped(arm: Arm, needs: Needs) -> str:
    return dropped_words(arm)


def _integrity(arm: Arm, needs: Needs) -> str:
    return f"integrity: {arm.integrity[0]}" if arm.integrity else ""


def _unscored(arm: Arm, needs: Needs) -> str:
    return "" if arm.score.n else "no example was scored"


def _below_score(arm: Arm, needs: Needs) -> str:
    missed = needs.min_score is not None and arm.score.mean < needs.min_score
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


def _none_left(case: Case) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in case.out.items())
    return "" if case.ranked else f"No arm can be recommended ({reasons})."


def _too_few(case: Case) -> str:
    n = min(a.score.n for a in case.ranked)
    if n >= LEAST_EXAMPLES:
        return ""
    advice = f"start with zero_shot or few_shot and label about {rounded(_more(case))} more"
    return f"{n} test examples are too few to choose by (at least {LEAST_EXAMPLES}): {advice}."


def _all_wrong(case: Case) -> str:
    best = case.ranked[0].score
    if best.mean > 0:
        return ""
    return (
        f"No arm got any of {best.n} test examples right: the task is beyond this model, or metric and data disagree."
    )


def _indistinct(case: Case) -> str:
    best, *others = case.ranked
    pairs = [case.contrasts[best.name, o.name] for o in others]
    blind = max((c.difference.detectable for c in pairs), default=0.0)
    if any(c.verdict in ("better", "worse") for c in pairs) or blind <= TELLING:
        return ""
    return (
        f"No arm differs significantly from the best ({best.name}) on {best.score.n} examples, which can only show "
        f"differences of about {blind:.2f} or more: collect about {rounded(_more(case))} more test examples."
    )


def _more(case: Case) -> int:
    """Return how many more examples would tell the two best arms apart, or bring the test set to its least size."""
    pairs = [case.contrasts[a.name, b.name] for a, b in pairwise(case.ranked[:2])]
    counts = [examples_needed(c.difference, margin=case.margin) or 0 for c in pairs]
    return max(LEAST_EXAMPLES - case.ranked[0].score.n, *counts, 0)


def _price_unknown(case: Case) -> bool:
    near = case.near()
    return len(near) > 1 and any(case.price(a) is None for a in near)


def _need_unsure(case: Case) -> bool:
    chosen, needs = case.near()[0], case.needs
    slow = needs.max_p95_ms is not None and chosen.latency.p95.high > needs.max_p95_ms
    return slow or (needs.min_score is not None and chosen.score.low < needs.min_score)


def _constant(case: Case) -> bool:
    return case.near()[0].constant


def _blurred_tie(case: Case) -> bool:
    return any(c.difference.low < -TELLING / 2 for c in case.ties())


def _open_tie(case: Case) -> bool:
    return any(c.difference.low < -case.margin for c in case.ties())


def _beaten_by_none_left(case: Case) -> bool:
    """Return whether arms were dropped that lost to an arm which the needs rule out."""
    best = max(case.arms, key=lambda a: a.score.mean if a.score.n and not a.dropped else -1.0)
    return best.name in case.out and any(a.dropped for a in case.arms)


def _thin(case: Case) -> bool:
    return case.near()[0].score.n < 4 * LEAST_EXAMPLES


def _close(case: Case) -> bool:
    best, near = case.ranked[0], case.near()
    return any(case.contrasts[best.name, a.name].p_holm > 0.01 for a in case.ranked if a not in near)


OUT: tuple[tuple[str, Callable[[Arm, Needs], str]], ...] = (
    ("a check of a fair comparison failed", _integrity),
    ("dropped in the race: it could not win any more", _dropped),
    ("nothing was scored", _unscored),
    ("score below min_score", _below_score),
    ("p95 above max_p95_ms, or not measured", _too_slow),
    ("above max_usd_per_month at volume_per_month, or unpriced", _too_dear),
)
"""Rule 1: an arm to which one of these applies cannot be chosen."""

ABSTAIN: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("no arm is left", _none_left),
    ("fewer than 50 test examples", _too_few),
    ("no arm got anything right", _all_wrong),
    ("no significant difference, and only one above 0.10 could have been found", _indistinct),
)
"""Rule 2: the first of these that applies makes the verdict an abstention."""

# Rule 3 is `Case.near`: the cheapest of the arms not significantly worse than the best is chosen, the others are ties.

DOUBTS: tuple[tuple[str, Confidence, Callable[[Case], bool]], ...] = (
    ("the price of a tied arm is unknown", "low", _price_unknown),
    ("the interval of the chosen arm's score or p95 reaches across the need", "low", _need_unsure),
    ("the chosen arm is not shown to be better than one answer to everything", "low", _constant),
    ("arms were dropped in the race that lost to one which the needs rule out", "low", _beaten_by_none_left),
    ("the chosen arm may be more than 0.05 worse than a tied one", "low", _blurred_tie),
    ("the chosen arm may be worse than a tied one by more than the margin", "moderate", _open_tie),
    ("fewer than 200 test examples", "moderate", _thin),
    ("an arm was ruled out as worse by a p above 0.01", "moderate", _close),
)
"""Rule 4: the first of these that applies sets the confidence; otherwise it is high."""


def eligible(arms: Sequence[Arm], needs: Needs) -> list[Arm]:
    """Return the arms that may be chosen, best score first."""
    return sorted((a for a in arms if not _reason_out(a, needs)), key=lambda a: -a.score.mean)


def _reason_out(arm: Arm, needs: Needs) -> str:
    return next((reason for _, rule in OUT if (reason := rule(arm, needs))), "")


def case_of(arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs, margin: float) -> Case:
    """Return the case of one task's arms and contrasts."""
    out = {a.name: reason for a in arms if (reason := _reason_out(a, needs))}
    both_ways = {(c.a, c.b): c for c in contrasts} | {(c.b, c.a): _reverse(c) for c in contrasts}
    return Case(needs, margin, arms, out, eligible(arms, needs), both_ways)


def _reverse(contrast: Contrast) -> Contrast:
    """Return the contrast seen from its other arm."""
    d = contrast.difference
    opposite: dict[Finding, Finding] = {"better": "worse", "worse": "better"}
    turned = replace(d, delta=-d.delta, low=-d.high, high=-d.low, low90=-d.high90, high90=-d.low90)
    verdict = opposite.get(contrast.verdict, contrast.verdict)
    return replace(contrast, a=contrast.b, b=contrast.a, difference=turned, verdict=verdict)


def usd(dollars: float) -> str:
    """Return dollars with two significant digits, or cents above a dollar."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.2g}"


def rounded(count: float) -> str:
    """Return a count to two significant digits."""
    return f"{float(f'{count:.2g}'):,.0f}"
