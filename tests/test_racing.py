"""Racing: the winner of the full grid for fewer calls, and never a good arm dropped beyond the stated chance."""

import numpy as np
import pytest

from crossover.eval.analysis.racing import Floats, Racer, race_of_means


def grid(rng: np.random.Generator, rates: list[float], n: int) -> Floats:
    """Return right/wrong scores of arms that find the same examples hard."""
    hard = rng.normal(0, 1, n)
    level = np.quantile(hard + rng.normal(0, 1, n), rates)
    return (level[:, None] - hard + rng.normal(0, 1, (len(rates), n)) > 0).astype(float)


def test_the_winner_is_that_of_the_full_grid_for_fewer_calls() -> None:
    rng = np.random.default_rng(0)
    tables = [grid(rng, [0.3, 0.4, 0.5, 0.55, 0.6, 0.75], 600) for _ in range(60)]
    races = [race_of_means(t, seed=s) for s, t in enumerate(tables)]
    same = [t.sum(axis=1)[r.winner] == t.sum(axis=1).max() for t, r in zip(tables, races, strict=True)]
    assert np.mean(same) >= 0.95
    assert np.mean([r.calls / t.size for t, r in zip(tables, races, strict=True)]) <= 0.40


@pytest.mark.slow
def test_the_best_of_like_arms_is_seldom_dropped_however_often_one_looks() -> None:
    rng = np.random.default_rng(1)
    dropped = 0
    for _ in range(300):
        table = grid(rng, [0.6, 0.6, 0.6], 200)
        best = np.flatnonzero(table.sum(axis=1) == table.sum(axis=1).max())
        dropped += not set(best) & set(race_of_means(table, block=1).alive)
    assert dropped / 300 <= 0.05


def test_a_lead_that_cannot_be_made_up_ends_the_race() -> None:
    racer = Racer(2, 10, alpha=1e-9)
    assert racer.update(np.array([[1.0] * 5, [0.0] * 5])).tolist() == [True, True]
    assert racer.update(np.array([[1.0], [0.0]])).tolist() == [True, False]


def test_equal_arms_race_to_the_end_and_with_a_margin_they_need_not() -> None:
    table = np.tile((np.arange(400) % 2).astype(float), (3, 1))
    assert race_of_means(table, seed=0).scored == (400, 400, 400)
    near = race_of_means(table, seed=0, margin=0.05)
    assert near.calls < table.size
    assert len(near.alive) == 1


def test_one_arm_alone_needs_one_block() -> None:
    race = race_of_means(np.ones((1, 100)))
    assert (race.winner, race.alive, race.scored) == (0, (0,), (10,))


def test_failed_rows_count_as_wrong() -> None:
    table = np.array([[1.0, np.nan] * 100, [1.0, 1.0] * 100])
    assert race_of_means(table, seed=0).winner == 1


def test_graded_scores_race_too() -> None:
    rng = np.random.default_rng(2)
    table = np.clip(rng.normal([[0.5], [0.6], [0.7]], 0.1, (3, 500)), 0, 1)
    race = race_of_means(table, seed=0)
    assert (race.winner, race.calls < 0.2 * table.size) == (2, True)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_race_is_the_same_each_time(seed: int) -> None:
    table = grid(np.random.default_rng(3), [0.4, 0.5, 0.7], 200)
    assert race_of_means(table, seed=seed) == race_of_means(table, seed=seed)
