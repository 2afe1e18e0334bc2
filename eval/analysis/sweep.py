"""Reach the verdict again at other volumes and prices, to show how the choice depends on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossover.eval.analysis.arm import Arm, arms_of
from crossover.eval.analysis.caching import TokenPrice, prefix_lines
from crossover.eval.analysis.compare import Comparison, Verdicts
from crossover.eval.analysis.cost import monthly_usd
from crossover.eval.analysis.exclusion import eligible
from crossover.eval.analysis.families import representatives
from crossover.eval.analysis.rules import DEFAULT_VOLUME
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result

VOLUMES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Requests a month in the table of choices."""

PRICE_FACTORS = (0.5, 1.0, 2.0)
"""Multiples of the price of a machine hour in the table of choices."""

LOWEST, HIGHEST = 3, 8
"""Decades of requests a month that the grid always covers: a thousand to a hundred million."""


@dataclass(frozen=True)
class VolumeVerdict:
    """The verdict at one volume."""

    volume: float | None
    """Requests a month; None for a verdict by the price of a request alone."""
    verdict: Verdict
    usd_per_month: float | None
    """Dollars a month of the chosen arm at this volume, fitting included."""
    stated: bool
    """Whether this is the volume that the experiment states."""
    plain: str
    """The reason without statistics; empty for an abstention, whose own reason has none."""


def verdicts_by_volume(comparison: Comparison, verdict: Verdict, needs: Needs) -> list[VolumeVerdict]:
    """Return the verdict of one task at each volume of a grid, the lowest first, `verdict` itself among them."""
    arms = [a for a in comparison.arms if a.task == verdict.task]
    verdicts, again = [], Verdicts(comparison, verdict.task)
    for volume in _volume_grid(verdict, needs):
        stated, needs_here = volume == needs.volume_per_month, replace(needs, volume_per_month=volume)
        here = verdict if stated else again.under(arms, needs_here)
        chosen = next((a for a in arms if a.name == here.choose), None)
        usd = monthly_usd(chosen.cost, volume, months=needs.refresh_months) if chosen and volume is not None else None
        plain = _plain_reason(arms, chosen, here, needs_here) if chosen else ""
        verdicts.append(VolumeVerdict(volume, here, usd, stated, plain))
    return verdicts


def _volume_grid(verdict: Verdict, needs: Needs) -> list[float | None]:
    """Return 1, 2 and 5 of each decade, wide enough for the break-even, with the stated volume (or None) among them."""
    pivot = verdict.break_even.value if verdict.break_even else None
    # Two decades beyond the break-even, so that its far side is on the grid.
    decades = [math.floor(math.log10(pivot / needs.refresh_months))] if pivot else []
    low, high = max(0, min([LOWEST, *decades])), min(12, max([HIGHEST, *(d + 2 for d in decades)]))
    volumes = {float(m * 10**d) for d in range(low, high) for m in (1, 2, 5)} | {float(10**high)}
    if needs.volume_per_month is None:
        return [None, *sorted(volumes)]
    return [*sorted(volumes | {float(needs.volume_per_month)})]


def _plain_reason(arms: Sequence[Arm], chosen: Arm, verdict: Verdict, needs: Needs) -> str:
    """Return the reason for a choice in a sentence without statistics."""
    where = "" if needs.volume_per_month is None else f" at {needs.volume_per_month:,.0f} requests a month"
    if verdict.ties and chosen.cost.per_1k_requests is not None:
        count = "Two arms do" if len(verdict.ties) == 1 else f"{len(verdict.ties) + 1} arms do"
        tied = [a for a in arms if a.name in verdict.ties]
        volume, months = needs.volume_per_month or DEFAULT_VOLUME, needs.refresh_months
        own, *rest = (monthly_usd(a.cost, volume, months=months) for a in (chosen, *tied))
        least = own is not None and all(usd is None or own <= usd for usd in rest)
        reason = "this one costs the least" if least else "no other saves enough to be chosen for its price"
        return f"{count} equally well, as far as this test can tell; {reason}{where}."
    if verdict.ties:
        return "Other arms do equally well, as far as this test can tell, and their prices are not known."
    compared = representatives(arms, needs)
    left = len(eligible(compared, needs))
    if left == 1:
        return f"It is the only arm that can be recommended{where}."
    others = "every other arm" if left == len(compared) else "every other arm that could be recommended"
    return f"It scores better than {others}, by more than chance explains."


def choices(
    results: Sequence[Result], comparison: Comparison, needs: Needs, prices: Prices
) -> dict[tuple[float, float], str | None]:
    """Return the chosen arm of one task by volume and price factor, None for an abstention; scores do not change."""
    chosen: dict[tuple[float, float], str | None] = {}
    again = Verdicts(comparison, results[0].cell.task)
    for factor in PRICE_FACTORS:
        arms = arms_of(results, replace(prices, machine_hour_usd=factor * prices.machine_hour_usd), comparison.unit)
        for volume in VOLUMES:
            chosen[volume, factor] = again.under(arms, replace(needs, volume_per_month=volume)).choose
    return chosen


def sensitivity_lines(
    task: str, comparison: Comparison, results: Sequence[Result], *, needs: Needs, prices: Prices
) -> list[str]:
    """Return a table of the choices of a task, volumes down and prices across, and a table of prefix caching."""
    results = [r for r in results if r.cell.task == task]
    chosen = choices(results, comparison, needs, prices)
    lines = [["requests a month", *(f"machine hour x {f:g}" for f in PRICE_FACTORS)]]
    lines += [[f"{v:,}", *(chosen[v, f] or "no verdict" for f in PRICE_FACTORS)] for v in VOLUMES]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    caching = _caching_lines([a for a in comparison.arms if a.task == task], results, needs, prices)
    return [f"{task}: the choice at other traffic and prices", *table, *caching]


def _caching_lines(arms: Sequence[Arm], results: Sequence[Result], needs: Needs, prices: Prices) -> list[str]:
    """Return a table of prefix caching for the best in-context arm with a fixed prompt; empty without token prices."""
    if prices.input_usd_per_million is None or prices.output_usd_per_million is None:
        return []
    token = TokenPrice(
        prices.input_usd_per_million,
        prices.output_usd_per_million,
        read=prices.cache_read,
        write=prices.cache_write,
        seconds=prices.cache_seconds,
    )
    ranked = sorted((a for a in arms if a.score.n), key=lambda a: -a.score.mean)
    tuned = next((a for a in ranked if a.kind == "weights"), None)
    fixed = [a for a in ranked if a.kind == "context" and not a.method.startswith("retrieved_demos")]
    if not fixed:
        return []
    rows = [row for r in results if r.key in fixed[0].cells for row in r.rows]
    return list(prefix_lines(fixed[0], rows, token, tuned=tuned, months=needs.refresh_months))
