"""The verdict at other volumes: the rules, applied once for each volume that a reader can choose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossover.eval.analysis.compare import Arm, Contrast, Verdict, contrasts_of
from crossover.eval.analysis.cost import monthly_usd
from crossover.eval.analysis.rules import eligible
from crossover.eval.analysis.verdict import decide
from crossover.eval.experiment.spec import Needs
from crossover.eval.report.evidence import Evidence

LOWEST, HIGHEST = 3, 8
"""Decades of requests a month that are always offered: a thousand to a hundred million."""


@dataclass(frozen=True)
class State:
    """The verdict at one volume."""

    volume: float | None
    """Requests a month; None for a verdict by the price of a request alone."""
    verdict: Verdict
    usd_per_month: float | None
    """Of the chosen arm at this volume, fitting spread over a year."""
    stated: bool
    """The experiment's own needs give this volume."""
    plain: str
    """Why, for a reader without statistics; empty for an abstention, whose reason is plain already."""


def states(evidence: Evidence, verdict: Verdict) -> list[State]:
    """Return the verdicts of one task over volumes, the lowest first; one of them is the experiment's own."""
    needs = evidence.experiment.needs
    arms = [a for a in evidence.comparison.arms if a.task == verdict.task]
    contrasts = [c for c in evidence.comparison.contrasts if c.task == verdict.task]
    found = []
    for volume in grid(verdict, needs):
        stated, here = volume == needs.volume_per_month, replace(needs, volume_per_month=volume)
        there = verdict if stated else _decide(arms, contrasts, here)
        found.append(State(volume, there, _monthly(arms, there, here), stated, _plain(arms, there, here)))
    return found


def grid(verdict: Verdict, needs: Needs) -> list[float | None]:
    """Return 1, 2 and 5 of each decade, wide enough for the break-even, with the stated volume (or none) among them."""
    pivot = verdict.break_even.value if verdict.break_even else None
    decades = [math.floor(math.log10(pivot / needs.refresh_months))] if pivot else []
    low, high = max(0, min([LOWEST, *decades])), min(12, max([HIGHEST, *(d + 2 for d in decades)]))
    volumes = {float(m * 10**d) for d in range(low, high) for m in (1, 2, 5)} | {float(10**high)}
    if needs.volume_per_month is None:
        return [None, *sorted(volumes)]
    return [*sorted(volumes | {float(needs.volume_per_month)})]


def _decide(arms: Sequence[Arm], contrasts: Sequence[Contrast], needs: Needs) -> Verdict:
    """Return the verdict under other needs; where only contrasts with the best were made, those of the new best."""
    ranked = eligible(arms, needs)
    made = {frozenset((c.a, c.b)) for c in contrasts}
    if any(frozenset((ranked[0].name, a.name)) not in made for a in ranked[1:]):
        contrasts = contrasts_of(arms, needs)
    return decide(arms, contrasts, needs)


def _monthly(arms: Sequence[Arm], verdict: Verdict, needs: Needs) -> float | None:
    chosen, volume = next((a for a in arms if a.name == verdict.choose), None), needs.volume_per_month
    return None if chosen is None or volume is None else monthly_usd(chosen.cost, volume, months=needs.refresh_months)


def _plain(arms: Sequence[Arm], verdict: Verdict, needs: Needs) -> str:
    """Return the reason of a choice without a number of statistics in it."""
    chosen = next((a for a in arms if a.name == verdict.choose), None)
    if chosen is None:
        return ""
    where = "" if needs.volume_per_month is None else f" at {needs.volume_per_month:,.0f} requests a month"
    if verdict.ties and chosen.cost.per_1k_requests is not None:
        count = "Two arms do" if len(verdict.ties) == 1 else f"{len(verdict.ties) + 1} arms do"
        return f"{count} equally well, as far as this test can tell; this one costs the least{where}."
    if verdict.ties:
        return "Other arms do equally well, as far as this test can tell, and their prices are not known."
    left = len(eligible(arms, needs))
    if left == 1:
        return f"It is the only arm that can be recommended{where}."
    others = "every other arm" if left == len(arms) else "every other arm that could be recommended"
    return f"It scores better than {others}, by more than chance explains."
