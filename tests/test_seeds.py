"""Seeds as a second level: widths against a real two-level bootstrap, tests against simulated seeds."""

from typing import Any

import numpy as np
import pytest
from factories import make_cell, make_result, right
from numpy.typing import NDArray
from statsmodels.stats.weightstats import DescrStatsW

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.contrast import classify_difference
from crossover.eval.analysis.seeds import difference_error, mean_score, seed_error, widen_difference
from crossover.eval.analysis.stats import paired_difference, score_interval
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result


def named(values: NDArray[np.float64]) -> dict[str, float]:
    return {f"e{i}": float(v) for i, v in enumerate(values)}


def two_level(rng: np.random.Generator, *, seeds: int, n: int, between: float) -> list[dict[str, float]]:
    """Return differences of one mean over seeds: a spread of seeds, of examples, and of both together."""
    table = rng.normal(0, between, (seeds, 1)) + rng.normal(0, 0.3, n) + rng.normal(0, 0.2, (seeds, n))
    return [named(row) for row in table]


def judged(by_seed: list[dict[str, float]]) -> Any:
    zero = dict.fromkeys(by_seed[0], 0.0)
    mean = {i: float(np.mean([s[i] for s in by_seed])) for i in zero}
    return widen_difference(paired_difference(mean, zero), *difference_error(dict(enumerate(by_seed)), {0: zero}))


def test_the_seed_error_is_the_standard_error_of_the_seed_means() -> None:
    by_seed = [{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.5}]
    assert seed_error(by_seed) == pytest.approx(np.std([0.5, 1.0, 0.75], ddof=1) / np.sqrt(3))
    assert seed_error(by_seed[:1]) == 0


def test_a_failed_row_is_no_difference_between_seeds() -> None:
    assert seed_error([{"easy": 1.0, "hard": 0.0}, {"easy": 1.0}]) == 0


def test_one_seed_or_equal_seeds_change_nothing() -> None:
    scores = named(np.array(right(30, 50)))
    e = score_interval(list(scores.values()))
    assert mean_score(scores, {}, [scores]) == mean_score(scores, {}, [scores, scores]) == e


def test_the_widths_are_those_of_resampling_seeds_then_examples() -> None:
    rng = np.random.default_rng(4)
    by_seed = two_level(rng, seeds=30, n=300, between=0.1)
    table = np.array([list(s.values()) for s in by_seed])
    draws = [table[rng.integers(0, 30, 30)][:, rng.integers(0, 300, 300)].mean() for _ in range(3000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert judged(by_seed).high - judged(by_seed).low == pytest.approx(high - low, rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.05, 0.2])
def test_other_seeds_are_no_false_positives(between: float) -> None:
    rng = np.random.default_rng(5)
    draws = [judged(two_level(rng, seeds=3, n=80, between=between)) for _ in range(200)]
    assert np.mean([d.p <= 0.05 for d in draws]) <= 0.055 + 0.01
    assert np.mean([d.low <= 0 <= d.high for d in draws]) >= 0.93


def test_the_p_ends_where_the_interval_does() -> None:
    d = judged(two_level(np.random.default_rng(6), seeds=4, n=100, between=0.05))
    shifted = paired_difference(named(np.full(100, 0.2)), named(np.zeros(100)))
    assert (d.p <= 0.05) == (d.low > 0 or d.high < 0)
    assert d.test.endswith("4 seeds")
    assert widen_difference(shifted, 0.2, 3).p > 0.05 > shifted.p
    assert widen_difference(shifted, 0.2, 3).detectable() > shifted.detectable()


def test_shared_seeds_are_paired() -> None:
    good, bad = named(np.array([1.0, 1.0, 0.0])), named(np.array([1.0, 0.0, 0.0]))
    a = {0: good, 1: bad}
    assert difference_error(a, a) == (0, 2)
    assert difference_error(a, {0: bad, 1: good})[0] > difference_error(a, {7: good})[0] > 0
    assert difference_error({0: good}, {1: bad}) == (0, 1)


def test_equivalence_agrees_with_two_one_sided_tests() -> None:
    rng = np.random.default_rng(8)
    findings = set()
    for spread in (0.05, 0.1, 0.2, 0.4):
        a = rng.normal(0.0, spread, 400)
        d = paired_difference(named(a), named(np.zeros(400)))
        p = DescrStatsW(a).ttost_mean(-0.02, 0.02)[0]
        equivalent = classify_difference(d, 1.0, margin=0.02) == "equivalent"
        assert equivalent == (p < 0.05)
        findings.add(equivalent)
    assert findings == {True, False}


def comparison(*results: Result) -> Comparison:
    return compare(results, needs=Needs(), prices=Prices(), experiment="x")


def test_seeds_that_disagree_keep_a_verdict_open() -> None:
    zero = make_result(make_cell("zero_shot"), right(150, 300))
    steady = [make_result(make_cell("sft", seed=s), right(190, 300)) for s in (0, 1, 2)]
    restless = [make_result(make_cell("sft", seed=s), right(n, 300)) for s, n in enumerate((110, 190, 270))]
    assert comparison(zero, *steady).contrasts[0].finding == "better"
    assert comparison(zero, *restless).contrasts[0].finding == "inconclusive"
    assert "more seeds help, not more examples" in " ".join(comparison(zero, *restless).cautions["intents"])


def test_too_few_seeds_clusters_and_examples_are_said() -> None:
    sft = make_result(make_cell("sft"), right(42, 80, shift=9))
    sft.clusters = {r.id: f"doc{i % 12}" for i, r in enumerate(sft.rows)}
    zero = make_result(make_cell("zero_shot"), right(40, 80))
    zero.clusters = sft.clusters
    text = "\n".join(comparison(zero, sft).cautions["intents"])
    assert "1 of 1 comparisons is inconclusive: 80 examples" in text
    assert "12 clusters: below 30" in text
    assert "1 seed an arm" in text


def test_a_sound_comparison_has_no_cautions() -> None:
    zero = make_result(make_cell("zero_shot"), right(600, 2000))
    sft = [make_result(make_cell("sft", seed=s), right(1600, 2000)) for s in (0, 1, 2)]
    assert comparison(zero, *sft).cautions == {"intents": ()}
