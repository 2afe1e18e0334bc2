"""Group the variants of one method, and let the one that scores best on val stand for it in the verdict."""

import math
from collections.abc import Sequence
from dataclasses import replace

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.cost import monthly_usd
from crossover.eval.analysis.exclusion import reason_out
from crossover.eval.analysis.rules import DEFAULT_VOLUME
from crossover.eval.experiment.spec import Needs


def families_of(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Return the arms of one task by method; a method without the val scores to choose by is taken apart."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.family, []).append(arm)
    families: list[list[Arm]] = []
    for group in groups.values():
        families += [[a] for a in group] if any(a.val is None for a in group) else [group]
    return families


def representatives(arms: Sequence[Arm], needs: Needs) -> list[Arm]:
    """Return the arms of one task that the verdict compares: of each method the variant that scores best on val.

    Variants that other rules or needs bar stand back where one of their family is left; equal scores on val go to the
    cheaper one. The score on test is not looked at, `needs.min_score` included, so that it flatters nobody.
    """
    return [family[0] if len(family) == 1 else _best_on_val(family, needs) for family in families_of(arms)]


def _best_on_val(family: Sequence[Arm], needs: Needs) -> Arm:
    blind = replace(needs, min_score=None)
    volume = needs.volume_per_month or DEFAULT_VOLUME

    def worth(arm: Arm) -> tuple[float, float]:
        price = monthly_usd(arm.cost, volume, months=needs.refresh_months)
        return arm.val or 0.0, -math.inf if price is None else -price

    return max([a for a in family if not reason_out(a, blind)] or family, key=worth)
