"""What other traffic, other prices and longer prompts would change: the verdict and the break-even, computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crossover.eval.analysis.arm import Arm, arms_of
from crossover.eval.analysis.caching import TokenPrice, prefix_lines
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.verdict import decide
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result

VOLUMES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Requests a month."""

PRICE_FACTORS = (0.5, 1.0, 2.0)
"""Times the price of a machine hour."""


@dataclass(frozen=True)
class Choice:
    """What would be chosen at one volume and one price."""

    volume: float
    price_factor: float
    choose: str | None
    """None when the verdict abstains."""


@dataclass(frozen=True)
class Sensitivity:
    """How the choice of one task depends on what is not known for sure."""

    choices: tuple[Choice, ...]
    prefixes: tuple[str, ...]
    """Lines about prefix caching; empty where the prices of tokens are not given."""


def sensitivity(
    comparison: Comparison, results: Sequence[Result], *, needs: Needs, prices: Prices
) -> dict[str, Sensitivity]:
    """Return the choice of each task at every volume and price; the differences in score stay as they were found."""
    found = {}
    for task in comparison.split_sha256:
        own = [r for r in results if r.cell.task == task]
        contrasts = [c for c in comparison.contrasts if c.task == task]
        choices = []
        for factor in PRICE_FACTORS:
            arms = arms_of(own, replace(prices, machine_hour_usd=factor * prices.machine_hour_usd))
            for volume in VOLUMES:
                verdict = decide(arms, contrasts, replace(needs, volume_per_month=volume))
                choices.append(Choice(volume, factor, verdict.choose))
        arms = [a for a in comparison.arms if a.task == task]
        found[task] = Sensitivity(tuple(choices), _prefixes(arms, own, needs, prices))
    return found


def sensitivity_lines(task: str, found: Sensitivity) -> list[str]:
    """Return the choices as a table, volumes down and prices across."""
    header = ["requests a month", *(f"machine hour x {f:g}" for f in PRICE_FACTORS)]
    by_volume: Mapping[float, list[str]] = {
        v: [c.choose or "no verdict" for c in found.choices if c.volume == v] for v in VOLUMES
    }
    lines = [header, *([f"{v:,}", *names] for v, names in by_volume.items())]
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    table = ["  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [f"{task}: the choice at other traffic and prices", *table, *found.prefixes]


def _prefixes(arms: Sequence[Arm], results: Sequence[Result], needs: Needs, prices: Prices) -> tuple[str, ...]:
    """Return the lines about prefix caching of the best in-context arm with a fixed prompt."""
    if prices.input_usd_per_million is None or prices.output_usd_per_million is None:
        return ()
    token = TokenPrice(
        prices.input_usd_per_million,
        prices.output_usd_per_million,
        read=prices.cache_read,
        write=prices.cache_write,
        seconds=prices.cache_seconds,
    )
    tuned = max((a for a in arms if a.kind == "weights" and a.score.n), key=lambda a: a.score.mean, default=None)
    fixed = [a for a in arms if a.kind == "context" and a.score.n and not a.method.startswith("retrieved_demos")]
    prompt = max(fixed, key=lambda a: a.score.mean, default=None)
    if prompt is None:
        return ()
    rows = [row for r in results if r.key in prompt.cells for row in r.rows]
    return tuple(prefix_lines(prompt, rows, token, tuned=tuned, months=needs.refresh_months))
