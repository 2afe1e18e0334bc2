"""Replay races over full grids: `python benchmarks/racing.py`.

For the recorded experiments of tests/fixtures and for invented grids it counts how often the race reaches the verdict
of the full grid (the choice among arms of random prices, and its ties), and how many of the grid's calls it makes. The
table goes into docs/method.md.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from section import markdown_table, write_section

from crossover.eval.analysis.contrast import adjust_pairs, classify_difference
from crossover.eval.analysis.racing import Floats, Race, block_size, replay
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.stats import paired_difference
from crossover.eval.store.recorded import read_recorded

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
REPLAYS = 200
THREADS = 32
"""Calls in flight, the default of `crossover run`."""


def recorded(name: str) -> Floats:
    """Return the scores of a recorded experiment, shape (arms, examples)."""
    results = read_recorded(FIXTURES / name).results
    return np.array([[np.nan if r.score is None else r.score for r in result.rows] for result in results])


def grid(rates: Floats, examples: int, rng: np.random.Generator) -> Floats:
    """Return right/wrong scores of arms with these rates, which find the same examples hard."""
    hard = rng.normal(0, 1.5, examples)
    noise = rng.normal(0, 1, (len(rates), examples))
    return (np.quantile(hard + noise[0], rates)[:, None] - hard + noise > 0).astype(float)


def spread(arms: int, examples: int) -> Callable[[np.random.Generator], Floats]:
    """Return draws of grids with rates spread evenly at random from 0.4 to 0.85."""
    return lambda rng: grid(rng.uniform(0.4, 0.85, arms), examples, rng)


def equal(best: int, others: int, examples: int) -> Callable[[np.random.Generator], Floats]:
    """Return draws of grids with `best` equal arms at a rate of 0.8, and others at 0.5."""
    return lambda rng: grid(np.repeat([0.8, 0.5], [best, others]), examples, rng)


INVENTED: tuple[tuple[str, str, Callable[[np.random.Generator], Floats]], ...] = (
    ("two equal arms", "–", equal(2, 0, 200)),
    ("two equal arms and six worse", "–", equal(2, 6, 500)),
    ("spread", "37 %", spread(4, 500)),
    ("spread", "29 %", spread(8, 500)),
    ("spread", "22 %", spread(12, 1000)),
)
"""Name, calls made before, and draws of each grid."""
RECORDED = {"openings": "13 %", "wanted": "48 %"}
"""Calls made before over each recorded grid, when an arm was dropped that could not win on this test set any more."""


def verdict(table: Floats, race: Race, prices: Floats, order: NDArray[np.int64]) -> tuple[int, frozenset[int]]:
    """Return the cheapest contender and all contenders, of the arms that the race left, on the examples it scored."""
    scored = [(row, order[:n]) for row, n in zip(table, race.scored, strict=True)]
    scores = [{str(i): float(row[i]) for i in ids if not np.isnan(row[i])} for row, ids in scored]
    names = list(combinations(map(str, range(len(scores))), 2))
    differences = []
    for a, b in ((scores[int(x)], scores[int(y)]) for x, y in names):
        shared = a.keys() & b.keys()
        differences.append(paired_difference({i: a[i] for i in shared}, {i: b[i] for i in shared}))
    dropped = [str(n) for n in range(len(scores)) if n not in race.alive]
    best = max(race.alive, key=lambda n: float(np.mean(list(scores[n].values()))))
    near = {best}
    for (a, b), d, (p, _) in zip(names, differences, adjust_pairs(names, differences, dropped=dropped), strict=True):
        pair = {int(a), int(b)}
        if best in pair and pair <= {*race.alive}:
            finding = classify_difference(d, p, margin=MARGIN)
            if finding != ("better" if int(a) == best else "worse"):
                near |= pair
    return min(near, key=lambda n: float(prices[n])), frozenset(near)


def compared(tables: list[Floats]) -> tuple[float, float]:
    """Return how often the verdict was that of the full grid, and the share of calls."""
    same, calls = [], []
    for seed, table in enumerate(tables):
        arms, examples = table.shape
        rng = np.random.default_rng(seed)
        race = replay(table, block=block_size(examples, THREADS), seed=seed)
        order, prices = rng.permutation(examples), rng.permutation(arms).astype(float)
        full = Race(tuple(range(arms)), (examples,) * arms)
        same.append(verdict(table, race, prices, order) == verdict(table, full, prices, order))
        calls.append(sum(race.scored) / table.size)
    return float(np.mean(same)), float(np.mean(calls))


def main() -> int:
    """Replay every grid and rewrite the table."""
    rng = np.random.default_rng(7)
    grids = [(f"recorded: {name}", before, [recorded(name)] * REPLAYS) for name, before in RECORDED.items()]
    grids += [(name, before, [draw(rng) for _ in range(REPLAYS)]) for name, before, draw in INVENTED]
    lines = []
    for name, before, tables in grids:
        same, calls = compared(tables)
        arms, examples = tables[0].shape
        lines.append((name, str(arms), f"{examples:,}", f"{100 * same:.1f} %", before, f"{100 * calls:.0f} %"))
        print(*lines[-1], flush=True)
    table = markdown_table(("grid", "arms", "examples", "same verdict", "calls before", "calls now"), lines)
    text = f"{table}\n\n{REPLAYS} replays a line, each in an order of its own (`python benchmarks/racing.py`)."
    write_section("racing", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
