"""Replay races over full grids: `python benchmarks/racing.py`.

For the recorded experiments of tests/fixtures and for invented grids it counts how often the race names the winner of
the full grid, and how many of the grid's calls it makes. The table goes into docs/method.md.
"""

from pathlib import Path

import numpy as np
from section import markdown_table, write_section

from crossover.eval.analysis.racing import Floats, race_of_means
from crossover.eval.store.recorded import read_recorded

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
REPLAYS = 100
INVENTED = ((4, 500), (8, 500), (12, 1000))


def recorded(name: str) -> Floats:
    """Return the scores of a recorded experiment, arms by examples."""
    results = read_recorded(FIXTURES / name).results
    return np.array([[np.nan if r.score is None else r.score for r in result.rows] for result in results])


def invented(arms: int, examples: int, rng: np.random.Generator) -> Floats:
    """Return right/wrong scores of arms with rates spread evenly at random from 0.4 to 0.85.

    The arms find the same examples hard, as arms on one test set do.
    """
    hard = rng.normal(0, 1.5, examples)
    noise = rng.normal(0, 1, (arms, examples))
    level = np.quantile(hard + noise[0], rng.uniform(0.4, 0.85, arms))
    return (level[:, None] - hard + noise > 0).astype(float)


def replay(tables: list[Floats]) -> tuple[float, float]:
    """Return how often the winner was that of the full grid, and the share of calls; a shared first place is one."""
    same, calls = [], []
    for seed, table in enumerate(tables):
        race, totals = race_of_means(table, seed=seed), np.nan_to_num(table).sum(axis=1)
        same.append(totals[race.winner] == totals.max())
        calls.append(race.calls / table.size)
    return float(np.mean(same)), float(np.mean(calls))


def main() -> int:
    """Replay every grid and rewrite the table."""
    rng = np.random.default_rng(7)
    grids = [(f"recorded: {f.name}", [recorded(f.name)] * REPLAYS) for f in sorted(FIXTURES.iterdir())]
    for arms, examples in INVENTED:
        grids.append(("invented", [invented(arms, examples, rng) for _ in range(REPLAYS)]))
    lines = []
    for name, tables in grids:
        same, calls = replay(tables)
        arms, examples = tables[0].shape
        lines.append((name, str(arms), f"{examples:,}", f"{100 * same:.1f} %", f"{100 * calls:.0f} %"))
    table = markdown_table(("grid", "arms", "examples", "same winner", "calls made"), lines)
    text = f"{table}\n\n{REPLAYS} replays a line, each in an order of its own (`python benchmarks/racing.py`)."
    print(text)
    write_section("racing", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
