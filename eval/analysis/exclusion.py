"""Define rule 1 of a verdict, `OUT`: which arms cannot be chosen, and why."""

from collections.abc import Callable, Sequence

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import monthly_usd, usd
from crossover.eval.experiment.spec import Needs


def _dropped(arm: Arm, needs: Needs) -> str:
    return "" if arm.dropped is None else f"dropped in the race after {arm.dropped[0]} of {arm.dropped[1]} examples"


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


OUT: tuple[tuple[str, Callable[[Arm, Needs], str]], ...] = (
    ("a check of a fair comparison failed", _integrity),
    ("dropped in the race: shown to be worse than another by more than the margin", _dropped),
    ("nothing was scored", _unscored),
    ("score shown to be below min_score", _below_score),
    ("p95 above max_p95_ms, or not measured", _too_slow),
    ("above max_usd_per_month at volume_per_month, or unpriced", _too_dear),
)
"""Rule 1: an arm cannot be chosen when one of these applies."""


def eligible(arms: Sequence[Arm], needs: Needs) -> list[Arm]:
    """Return the arms that rule 1 leaves, best score first."""
    return sorted((a for a in arms if not reason_out(a, needs)), key=lambda a: -a.score.mean)


def reason_out(arm: Arm, needs: Needs) -> str:
    """Return why the arm cannot be chosen, or an empty string."""
    return next((reason for _, rule in OUT if (reason := rule(arm, needs))), "")
