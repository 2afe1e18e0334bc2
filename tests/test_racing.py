"""Racing: what is far behind is dropped early, and what is near is not, beyond the stated chance."""

import numpy as np
import pytest

from crossover.eval.analysis.racing import Floats, Racer, block_size, replay


def grid(rng: np.random.Generator, rates: list[float], n: int) -> Floats:
    """Return right/wrong scores of arms that find the same examples hard."""
    hard = rng.normal(0, 1, n)
    level = np.quantile(hard + rng.normal(0, 1, n), rates)
    return (level[:, None] - hard + rng.normal(0, 1, (len(rates), n)) > 0).astype(float)


def test_what_is_far_behind_is_dropped_and_what_is_near_is_not() -> None:
    rng = np.random.default_rng(0)
    races = [replay(grid(rng, [0.3, 0.4, 0.5, 0.78, 0.8], 640), block=64, seed=s) for s in range(40)]
    assert all({3, 4} <= set(r.alive) for r in races)
    assert all(max(r.scored[:2]) < 640 for r in races)
    assert np.mean([sum(r.scored) for r in races]) <= 0.65 * 5 * 640


@pytest.mark.slow
def test_equal_arms_are_seldom_dropped_however_often_one_looks() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([len(replay(grid(rng, [0.6] * 3, 200), block=1).alive) < 3 for _ in range(300)]) <= 0.05


def test_a_tie_is_never_made_a_winner_at_the_end() -> None:
    table = np.ones((2, 200))
    table[0, :41] = table[1, :40] = 0
    assert replay(table, block=32).alive == (0, 1)


def test_nothing_is_dropped_after_the_last_block() -> None:
    table = np.array([[1.0] * 60, [0.0] * 60])
    assert replay(table, block=60) == ((0, 1), (60, 60))
    assert replay(table, block=30) == ((0,), (60, 30))


def test_failed_rows_decide_nothing() -> None:
    table = np.array([[1.0, np.nan] * 100, [1.0, 1.0] * 100])
    assert replay(table, block=20).alive == (0, 1)


def test_graded_scores_race_too() -> None:
    rng = np.random.default_rng(2)
    table = np.clip(rng.normal([[0.3], [0.5], [0.7]], 0.1, (3, 640)), 0, 1)
    race = replay(table, block=64)
    assert (race.alive, max(race.scored[:2]) <= 320) == ((2,), True)


def test_a_cluster_is_one_bet() -> None:
    scores = np.array([[1.0] * 60, [0.0] * 60])
    assert Racer(2).update(scores).tolist() == [True, False]
    assert Racer(2).update(scores, ["one"] * 30 + ["two"] * 30).tolist() == [True, True]


@pytest.mark.parametrize(("examples", "threads", "size"), [(60, 32, 32), (150, 32, 32), (500, 32, 64), (500, 1, 50)])
def test_a_block_is_whole_rounds_of_the_calls_in_flight(examples: int, threads: int, size: int) -> None:
    assert block_size(examples, threads) == size
