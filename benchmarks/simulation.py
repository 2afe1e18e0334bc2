"""Check the intervals and tests by simulation: `python benchmarks/simulation.py [TABLE…]`.

Every draw invents data whose truth is known, and asks the functions that judge real runs. The tables go into
docs/method.md.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence

import choice_simulation
import latency_simulation
import numpy as np
import recorded_cases
import verdict_cases
from section import markdown_table, write_section
from verdict_simulation import LINES, Line

from crossover.eval.analysis.contrast import classify_difference, holm
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.racing import replay
from crossover.eval.analysis.seeds import difference_error, widen_difference
from crossover.eval.analysis.stats import Difference, paired_difference, score_interval

Draw = Callable[[np.random.Generator], tuple[bool, bool]]
"""Returns whether the interval held the truth, and whether a true null was rejected."""


def named(values: Iterable[float]) -> dict[str, float]:
    """Return values by invented example id."""
    return {f"e{i}": float(v) for i, v in enumerate(values)}


def wilson(p: float, n: int) -> Draw:
    """Return draws of right/wrong scores."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        e = score_interval((rng.random(n) < p).astype(float).tolist())
        return e.low <= p <= e.high, False

    return draw


def graded(n: int) -> Draw:
    """Return draws of skewed scores between 0 and 1."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        e = score_interval(rng.beta(4, 1, n).tolist())
        return e.low <= 0.8 <= e.high, False

    return draw


def paired(n: int, wins: float, losses: float) -> Draw:
    """Return draws of two right/wrong arms with these rates of disagreement."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        kind = rng.choice(3, n, p=[wins, losses, 1 - wins - losses])
        d = paired_difference(named(kind == 0), named(kind == 1))
        return d.low <= wins - losses <= d.high, wins == losses and d.p <= 0.05

    return draw


def few_clusters(clusters: int, each: int, p: float, spread: float) -> Draw:
    """Return draws of a right/wrong score over few clusters whose own means vary."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        group = np.repeat(np.arange(clusters), rng.integers(each // 2, each * 3 // 2, clusters))
        own = rng.beta(p * (1 - spread) / spread, (1 - p) * (1 - spread) / spread, clusters)[group]
        e = score_interval((rng.random(len(group)) < own).astype(float).tolist(), clusters=[str(g) for g in group])
        return e.low <= p <= e.high, False

    return draw


def paired_graded(n: int, clusters: int | None = None) -> Draw:
    """Return draws of two graded arms that do not differ, over clusters of uneven size where they are given."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        if clusters is None:
            d = paired_difference(named(rng.beta(3, 1, n)), named(rng.beta(3, 1, n)))
        else:
            group = np.sort(rng.integers(0, clusters, n))
            shift = rng.normal(0, 0.15, clusters)[group] + rng.normal(0, 0.1, n)
            names = {f"e{i}": str(g) for i, g in enumerate(group)}
            d = paired_difference(named(shift), named(0 * shift), clusters=names)
        return d.low <= 0 <= d.high, d.p <= 0.05

    return draw


def seeds(count: int, between: float, n: int = 2400) -> Draw:
    """Return draws of two arms that are equal over all seeds, of which only `count` were run."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        table = rng.normal(0, between, (count, 1)) + rng.normal(0, 0.3, n) + rng.normal(0, 0.2, (count, n))
        zero = named(np.zeros(n))
        d = paired_difference(named(table.mean(axis=0)), zero)
        d = widen_difference(d, *difference_error({s: named(row) for s, row in enumerate(table)}, {0: zero}))
        return d.low <= 0 <= d.high, d.p <= 0.05

    return draw


def family(arms: int, n: int) -> Draw:
    """Return draws of equal arms; a false positive is any pair called different after Holm's adjustment."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        hard = rng.beta(2, 1, n)
        scores = [named(rng.random(n) < hard) for _ in range(arms)]
        found = [paired_difference(a, b) for i, a in enumerate(scores) for b in scores[:i]]
        called = [classify_difference(d, p, margin=0) for d, p in zip(found, holm([d.p for d in found]), strict=True)]
        return all(_covers_0(d) for d in found), any(c in ("better", "worse") for c in called)

    return draw


def equivalence(n: int, margin: float) -> Draw:
    """Return draws of arms that differ by exactly the margin; a false positive calls them equivalent."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        d = paired_difference(named(rng.normal(margin, 0.2, n)), named(np.zeros(n)))
        return d.low <= margin <= d.high, classify_difference(d, 1.0, margin=margin) == "equivalent"

    return draw


def p95(n: int) -> Draw:
    """Return draws of latencies with a long tail."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        e = quantile_interval(rng.lognormal(0, 0.5, n).tolist(), 0.95)
        return e.low <= float(np.exp(0.5 * 1.6448536)) <= e.high, False

    return draw


def racing(arms: int, n: int) -> Draw:
    """Return draws of equal arms, looked at after every 10 examples; a false positive drops any of them."""

    def draw(rng: np.random.Generator) -> tuple[bool, bool]:
        table = (rng.random((arms, n)) < rng.beta(2, 1, n)).astype(float)
        return True, len(replay(table, block=10).alive) < arms

    return draw


def _covers_0(d: Difference) -> bool:
    return d.low <= 0 <= d.high


COVERAGE: tuple[tuple[str, Draw], ...] = (
    ("right/wrong score 0.5, n = 100 (Wilson)", wilson(0.5, 100)),
    ("right/wrong score 0.9, n = 300 (Wilson)", wilson(0.9, 300)),
    ("graded score, skewed, n = 60 (BCa bootstrap)", graded(60)),
    ("score 0.1 in 14 clusters of about 14 (Korn and Graubard)", few_clusters(14, 14, 0.1, 0.05)),
    ("score 0.5 in 14 clusters of about 14 (Korn and Graubard)", few_clusters(14, 14, 0.5, 0.05)),
    ("difference +0.05 of right/wrong arms, n = 200 (Bonett and Price)", paired(200, 0.15, 0.10)),
    ("difference +0.10 of right/wrong arms, n = 80 (Bonett and Price)", paired(80, 0.20, 0.10)),
    ("p95 of 100 latencies (order statistics)", p95(100)),
)
FALSE_POSITIVES: tuple[tuple[str, Draw], ...] = (
    ("right/wrong arms that disagree on 10 %, n = 200 (McNemar)", paired(200, 0.05, 0.05)),
    ("right/wrong arms that disagree on 40 %, n = 80 (McNemar)", paired(80, 0.20, 0.20)),
    ("graded arms, n = 100 (sign-flip)", paired_graded(100)),
    ("40 clusters of uneven size, n = 200 (sign-flip by cluster)", paired_graded(200, 40)),
    ("3 seeds that do not matter, n = 2,400", seeds(3, 0.0)),
    ("3 seeds with standard deviation 0.03, n = 2,400", seeds(3, 0.03)),
    ("3 seeds with standard deviation 0.10, n = 2,400", seeds(3, 0.10)),
    ("5 seeds with standard deviation 0.03, n = 2,400", seeds(5, 0.03)),
)
FAMILIES: tuple[tuple[str, Draw], ...] = (
    ("any of the 6 pairs of 4 equal arms called different (Holm), n = 200", family(4, 200)),
    ("called equivalent at a difference of exactly the margin 0.02, n = 2,400", equivalence(2400, 0.02)),
    ("any of 4 equal arms dropped by racing, looked at every 10 examples, n = 200", racing(4, 200)),
)


def bounds(share: float, draws: int) -> str:
    """Return the half-width of the 95 % interval of a share of so many draws, in points."""
    return f"±{196 * (share * (1 - share) / draws) ** 0.5:.1f}"


def rates(draw: Draw, draws: int) -> tuple[float, float]:
    """Return the coverage and the false positives of so many draws."""
    rng = np.random.default_rng(2024)
    found = np.array([draw(rng) for _ in range(draws)], dtype=float)
    return float(found[:, 0].mean()), float(found[:, 1].mean())


def coverage(draws: int) -> str:
    """Return how often intervals hold the truth."""
    lines = [(name, f"{100 * rates(draw, draws)[0]:.1f} %") for name, draw in COVERAGE]
    return markdown_table(("the truth lies in the 95 % interval", "how often"), lines)


def false_positives(draws: int) -> str:
    """Return how often a difference is found where there is none."""
    lines = [(name, *(f"{100 * r:.1f} %" for r in rates(draw, draws))) for name, draw in FALSE_POSITIVES]
    return markdown_table(("no true difference", "0 in the 95 % interval", "p at most 0.05"), lines)


def decisions(draws: int) -> str:
    """Return how often a decision is wrong."""
    lines = [(name, f"{100 * rates(draw, draws)[1]:.1f} %") for name, draw in FAMILIES]
    return markdown_table(("wrong decision", "how often"), lines)


def verdicts(draws: int, lines: Sequence[Line] = LINES) -> str:
    """Return what the verdict is built on, before its mending and now."""
    rows = [(x.what, x.bar, x.before, f"{100 * x.simulate(draws):.1f} {x.unit}") for x in lines]
    return markdown_table(("simulated", "wanted", "before", "now"), rows)


def choices(draws: int) -> str:
    """Return what is chosen and what learning curves claim, before its mending and now; slow."""
    return verdicts(draws, choice_simulation.LINES)


def families(draws: int) -> str:
    """Return what choosing the variants of a method on val is worth, beside reading all of them on test."""
    return verdicts(draws, choice_simulation.FAMILIES)


def latencies(draws: int) -> str:
    """Return how often the intervals of a p95 and of a break-even hold the truth, before their mending and now."""
    return verdicts(draws, latency_simulation.LINES)


def cases(draws: int) -> str:
    """Return what is made of single cases, before and now; they are no draws."""
    return markdown_table(("case", "before", "now"), [(c.what, c.before, c.now()) for c in verdict_cases.CASES])


def recorded(draws: int) -> str:
    """Return what is said of the recorded experiments, before and now, and why; they are no draws."""
    lines = [(c.what, c.before, c.now(), why) for c, why in recorded_cases.RECORDED]
    return markdown_table(("recorded", "before", "now", "why"), lines)


SINGLE = {"cases": cases, "recorded": recorded}
TABLES = {
    "coverage": coverage,
    "false-positives": false_positives,
    "decisions": decisions,
    "verdicts": verdicts,
    "choices": choices,
    "families": families,
    "latency": latencies,
    **SINGLE,
}


def main() -> int:
    """Simulate every case and rewrite the tables of docs/method.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"one of {', '.join(TABLES)}; all by default")
    parser.add_argument("--draws", type=int, default=2000)
    flags = parser.parse_args()
    for name in flags.tables or TABLES:
        note = f"{flags.draws:,} draws a line, which know a share of 95 % to {bounds(0.95, flags.draws)} points"
        note = "No draws" if name in SINGLE else note
        text = f"{TABLES[name](flags.draws)}\n\n{note} (`python benchmarks/simulation.py {name}`)."
        print(text, flush=True)
        write_section(name, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
