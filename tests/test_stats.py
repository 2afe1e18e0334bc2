"""Intervals, differences and tests, against statsmodels and scipy on fixed tables and by simulation."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from crossover.eval.analysis import quantiles
from crossover.eval.analysis.contrast import Contrast, adjust_pairs, classify_difference, examples_needed, holm
from crossover.eval.analysis.latency import quantile_interval
from crossover.eval.analysis.shares import paired_share_bound
from crossover.eval.analysis.stats import (
    Difference,
    mean_interval,
    paired_difference,
    power_factor,
    score_interval,
)
from crossover.models.errors import UserError


def named(values: Iterable[float]) -> dict[str, float]:
    return {f"e{i}": float(v) for i, v in enumerate(values)}


def named_clusters(clusters: list[str]) -> dict[str, str]:
    return {f"e{i}": c for i, c in enumerate(clusters)}


def binary_pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[dict[str, float], dict[str, float]]:
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return named(a), named(b)


@pytest.mark.parametrize(("right", "n"), [(0, 40), (7, 40), (40, 40), (250, 300)])
def test_right_wrong_scores_get_wilsons_interval(right: int, n: int) -> None:
    e = score_interval([1.0] * right + [0.0] * (n - right))
    assert (e.low, e.high) == pytest.approx(proportion_confint(right, n, method="wilson"))
    assert (e.mean, e.n) == (right / n, n)


def test_no_score_has_no_mean_and_no_bound() -> None:
    e = score_interval([])
    assert e.n == 0
    assert all(math.isnan(x) for x in (e.mean, e.low, e.high))


@pytest.mark.parametrize("scores", [[0.5], [0.5] * 30, [0.2, 0.4, 0.9]])
def test_few_or_equal_scores_keep_a_wide_interval(scores: list[float]) -> None:
    e = score_interval(scores)
    assert e.low < e.mean < e.high
    assert e.high - e.low > 0.3


@given(st.floats(1e-6, 0.5), st.integers(1, 400), st.floats(0.01, 0.99), st.floats(-9, 9))
def test_quantiles_are_those_of_scipy_stats(tail: float, n: int, share: float, ratio: float) -> None:
    assert quantiles.normal(tail) == pytest.approx(stats.norm.isf(tail), abs=1e-9)
    assert quantiles.student(tail, n) == pytest.approx(stats.t.isf(tail, n), rel=1e-9, abs=1e-9)
    assert quantiles.student_interval(tail, n, 1.0, 2.0) == pytest.approx(stats.t.interval(1 - 2 * tail, n, 1.0, 2.0))
    assert quantiles.student_test(ratio, n) == pytest.approx(2 * stats.t.sf(abs(ratio), n))
    assert quantiles.beta(tail, n, 3) == pytest.approx(stats.beta.isf(tail, n, 3))
    assert quantiles.binomial(0.025, n, share) == stats.binom.ppf(0.025, n, share)


def test_graded_scores_get_the_bootstrap_of_scipy() -> None:
    scores = np.random.default_rng(3).beta(2, 1, 200)
    expected = stats.bootstrap((scores,), np.mean, method="BCa", n_resamples=20000, rng=np.random.default_rng(9))
    e = score_interval(scores.tolist())
    assert (e.low, e.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.003)


def test_clusters_widen_the_interval() -> None:
    scores = [float(i % 2) for i in range(40) for _ in range(10)]
    clusters = [f"doc{i}" for i in range(40) for _ in range(10)]
    alone, clustered = score_interval(scores), score_interval(scores, clusters=clusters)
    assert clustered.mean == alone.mean
    assert 2.5 < (clustered.high - clustered.low) / (alone.high - alone.low) < 4


def test_clusters_of_one_change_nothing_but_the_method() -> None:
    scores = np.random.default_rng(1).random(100).tolist()
    assert score_interval(scores, clusters=[str(i) for i in range(100)]).low == pytest.approx(
        score_interval(scores).low, abs=0.01
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_0_and_1(scores: list[float]) -> None:
    e = score_interval(scores)
    assert 0 <= e.low <= e.mean + 1e-9
    assert e.mean <= e.high + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize("table", [(30, 12, 3, 5), (30, 0, 0, 20), (5, 1, 1, 3), (100, 40, 10, 50)])
def test_right_wrong_pairs_get_mcnemars_exact_test(table: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, neither = table
    d = paired_difference(*binary_pair(*table))
    assert d.p == pytest.approx(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue)
    assert d.delta == pytest.approx((only_a - only_b) / sum(table))
    assert (d.test, d.n) == ("mcnemar", sum(table))
    assert max(d.low, d.low90) <= d.delta <= min(d.high, d.high90)


def test_right_wrong_pairs_get_bonett_and_prices_interval() -> None:
    d = paired_difference(*binary_pair(30, 12, 3, 5))
    p12, p21, n = 13 / 52, 4 / 52, 52
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    assert (d.low, d.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)


def test_equivalence_of_right_wrong_pairs_goes_by_tangos_score_bounds() -> None:
    # Airway reactivity in 21 children: -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014).
    assert paired_share_bound(1, 7, 21, 0.025) == pytest.approx(-0.026, abs=5e-4)
    assert -paired_share_bound(7, 1, 21, 0.025) == pytest.approx(-0.517, abs=5e-4)
    d = paired_difference(*binary_pair(30, 12, 3, 5))
    assert (d.low90, d.high90) == (-paired_share_bound(3, 12, 50, 0.05), paired_share_bound(12, 3, 50, 0.05))


@pytest.mark.parametrize(("n", "finding"), [(148, "inconclusive"), (149, "equivalent")])
def test_arms_that_never_disagree_are_equivalent_from_149_examples_on(n: int, finding: str) -> None:
    d = paired_difference(*binary_pair(n // 2, 0, 0, n - n // 2))
    assert classify_difference(d, 1.0, margin=0.02) == finding


@pytest.mark.parametrize("losses", [0.0, 0.01, 0.1])
def test_arms_that_differ_by_the_margin_are_seldom_called_equivalent(losses: float) -> None:
    for n in (150, 240):
        chance = 0.0
        for k in range(int(stats.binom.ppf(1 - 1e-4, n, losses)) + 1):
            # The fewest wins that no longer look equivalent.
            wins = next(w for w in range(max(0, k - 20), n) if paired_share_bound(w, k, n, 0.05) >= 0.02)
            rest = stats.binom.cdf(wins - 1, n - k, (losses + 0.02) / (1 - losses))
            chance += stats.binom.pmf(k, n, losses) * rest
        assert chance <= 0.056


def test_few_graded_pairs_get_every_sign_flip() -> None:
    a, b = named([0.5, 0.7, 0.9, 0.6, 0.8]), named([0.4, 0.5, 0.6, 0.2, 0.3])
    d = paired_difference(a, b)
    assert (d.test, d.p) == ("sign-flip", pytest.approx(2 / 2**5))


def test_graded_pairs_agree_with_the_t_test_when_there_are_many() -> None:
    rng = np.random.default_rng(5)
    a, noise = rng.random(400), rng.normal(0.02, 0.2, 400)
    d = paired_difference(named(a), named(a + noise))
    assert d.p == pytest.approx(stats.ttest_1samp(noise, 0).pvalue, abs=0.02)
    assert d.low == pytest.approx(-noise.mean() - 1.96 * noise.std() / 20, abs=0.003)


def test_thousands_of_pairs_take_the_t_test() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(3000), rng.random(3000)
    d = paired_difference(named(a), named(b))
    assert (d.test, d.p) == ("t", pytest.approx(stats.ttest_rel(a, b).pvalue))


def test_clustered_pairs_are_tested_by_cluster() -> None:
    a, b = binary_pair(0, 80, 40, 0)
    clusters = {f"e{i}": f"doc{i // 10}" for i in range(120)}
    d = paired_difference(a, b, clusters=clusters)
    assert d.test == "sign-flip"
    assert d.p > 0.1 > paired_difference(a, b).p


def test_equal_arms_are_not_called_certain() -> None:
    d = paired_difference(named([1, 0] * 50), named([1, 0] * 50))
    assert (d.delta, d.p) == (0, 1)
    assert d.low < 0 < d.high
    assert d.detectable() == 6 / 100


def test_one_pair_tells_nothing() -> None:
    d = paired_difference({"e": 1.0}, {"e": 0.0})
    assert d.p == 1
    assert d.low < 0
    assert d.detectable() > 1


def test_arms_scored_on_different_examples_are_refused() -> None:
    with pytest.raises(UserError, match=r"different examples \('x' and 1 more\)"):
        paired_difference({"e": 1.0, "x": 1.0}, {"e": 1.0, "y": 0.0})
    with pytest.raises(UserError, match="no example was scored by both"):
        paired_difference({}, {})


def test_swapping_the_arms_turns_the_difference_round() -> None:
    a, b = named(np.random.default_rng(2).random(60)), named(np.random.default_rng(3).random(60))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.delta == -back.delta
    assert there.low == pytest.approx(-back.high, abs=0.01)
    assert there.p == pytest.approx(back.p, abs=0.03)


@pytest.mark.parametrize("level", [0.05, 0.05 / 28])
@pytest.mark.parametrize(("n", "discordant"), [(100, 0.4), (250, 0.2), (500, 0.1), (1000, 0.2)])
def test_the_exact_test_finds_the_detectable_difference_with_the_stated_power(
    n: int, discordant: float, level: float
) -> None:
    half = round(n * discordant / 2)
    d = paired_difference(*binary_pair(n - 2 * half, half, half, 0)).detectable(level)
    share = (discordant + d) / 2 / discordant
    differ = np.arange(n + 1)
    # The most losses of so many pairs at which the exact test rejects; -1 where none are few enough.
    most = stats.binom.ppf(level / 2, differ, 0.5) - 1
    found = stats.binom.pmf(differ, n, discordant) @ stats.binom.cdf(most, differ, 1 - share)
    assert 0.79 <= found <= 0.96


def test_detectable_difference_is_found_with_the_stated_power() -> None:
    rng = np.random.default_rng(0)
    n, spread = 150, 0.3
    stated = paired_difference(named(rng.normal(0, spread, n)), named(np.zeros(n))).detectable()
    found = [stats.ttest_1samp(rng.normal(stated, spread, n), 0).pvalue <= 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.80, abs=0.08)


@pytest.mark.slow
def test_coverage_of_the_paired_interval_and_false_positives() -> None:
    rng = np.random.default_rng(11)
    held, alarms, draws = 0, 0, 2000
    for _ in range(draws):
        cells = rng.multinomial(120, [0.5, 0.15, 0.15, 0.2])
        d = paired_difference(*binary_pair(*cells))
        held += d.low <= 0 <= d.high
        alarms += d.p <= 0.05
    assert 0.93 <= held / draws <= 0.975
    assert alarms / draws <= 0.055


@pytest.mark.slow
def test_coverage_of_the_bootstrap_interval() -> None:
    rng = np.random.default_rng(12)
    draws = [score_interval(rng.beta(4, 1, 60).tolist()) for _ in range(300)]
    assert np.mean([e.low <= 0.8 <= e.high for e in draws]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
def test_coverage_of_the_clustered_interval() -> None:
    rng = np.random.default_rng(13)
    held = []
    for _ in range(400):
        sizes = rng.integers(2, 8, 40)
        clusters = [str(i) for i in np.repeat(np.arange(40), sizes)]
        noise = np.repeat(rng.normal(0, 0.15, 40), sizes) + rng.normal(0, 0.1, sizes.sum())
        d = paired_difference(named(noise), named(0 * noise), clusters=named_clusters(clusters))
        held.append(d.low <= 0 <= d.high)
    assert np.mean(held) == pytest.approx(0.945, abs=0.03)


@pytest.mark.slow
def test_coverage_over_few_clusters() -> None:
    rng = np.random.default_rng(14)
    scored, paired = [], []
    for _ in range(300):
        sizes = rng.integers(7, 21, 14)
        clusters = [str(i) for i in np.repeat(np.arange(14), sizes)]
        chance = np.repeat(rng.beta(2, 6, 14), sizes)
        e = score_interval((rng.random(len(chance)) < chance).astype(float).tolist(), clusters=clusters)
        scored.append(e.low <= 0.25 <= e.high)
        # As narrow as the spread of fourteen clusters allows, not as fourteen tosses of a coin would be.
        assert e.high - e.low < 0.35
        noise = np.repeat(rng.normal(0, 0.1, 14), sizes) + rng.normal(0, 0.3, len(chance))
        d = paired_difference(named(noise), named(0 * noise), clusters=named_clusters(clusters))
        paired.append(d.low <= 0 <= d.high)
    assert np.mean(scored) == pytest.approx(0.95, abs=0.035)
    assert np.mean(paired) == pytest.approx(0.95, abs=0.035)


def test_holm_adjusts_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    values = [float(v) for v in np.random.default_rng(0).uniform(0, 0.2, 9).round(2)]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def interval(delta: float, half: float, half90: float) -> Difference:
    error = 0.05 / power_factor(0.05)
    return Difference(delta, delta - half, delta + half, delta - half90, delta + half90, 0.5, "t", 100, error)


@pytest.mark.parametrize(
    ("difference", "p_holm", "finding"),
    [
        (interval(0.10, 0.05, 0.04), 0.01, "better"),
        (interval(-0.10, 0.05, 0.04), 0.01, "worse"),
        (interval(0.10, 0.05, 0.04), 0.06, "inconclusive"),
        (interval(0.10, 0.12, 0.09), 0.04, "inconclusive"),
        (interval(0.00, 0.025, 0.015), 0.9, "equivalent"),
        (interval(0.01, 0.025, 0.015), 0.9, "inconclusive"),
    ],
)
def test_a_difference_is_classified(difference: Difference, p_holm: float, finding: str) -> None:
    assert classify_difference(difference, p_holm, margin=0.02) == finding


def test_pairs_of_beaten_arms_are_tested_last() -> None:
    names = [("b", "a"), ("c", "a"), ("d", "a"), ("c", "b"), ("d", "b"), ("d", "c")]

    def adjusted(p: float, out: tuple[str, ...] = ()) -> list[float]:
        found = [Difference(-0.1, *[math.nan] * 4, x, "mcnemar", 9, 0.1) for x in (p, *[1e-6] * 4, 1e-3)]
        return [q for q, _ in adjust_pairs(names, found, out=out)]

    # While a and b both lead, no error is spent on c and d.
    assert adjusted(0.6) == pytest.approx([0.6, 6e-6, 6e-6, 6e-6, 6e-6, 0.6])
    assert adjusted(0.01) == pytest.approx([0.01, 6e-6, 6e-6, 0.01, 0.01, 0.01])
    # Where neither a nor b may be chosen, c and d are what there is to choose from.
    assert adjusted(0.6, out=("a", "b"))[5] == pytest.approx(1e-3)


def test_examples_needed_are_a_range_over_the_interval() -> None:
    contrast = Contrast("t", "a", "b", interval(0.075, 0.05, 0.04), 0.5, 0.05, "inconclusive")
    # A difference of 0.05 is detected by the 100 examples there are, one of 0.025 by 400.
    assert examples_needed(contrast, margin=0.02) == (0, 301)
    assert examples_needed(contrast, margin=0.05) == (0, 0)
    stricter = replace(contrast, level=0.005)
    assert examples_needed(stricter, margin=0.02)[1] > 500
    restless = replace(contrast, difference=replace(contrast.difference, seed_error=0.05))
    assert examples_needed(restless, margin=0.02) == (0, None)


def test_quantile_interval_is_that_of_order_statistics() -> None:
    e = quantile_interval([float(i) for i in range(1, 101)], 0.5)
    assert e.mean == 50.5
    assert stats.binom.cdf(e.high - 1, 100, 0.5) - stats.binom.cdf(e.low - 1, 100, 0.5) >= 0.95
    assert 38 <= e.low <= 41
    assert 60 <= e.high <= 62


def test_a_tail_quantile_of_few_latencies_has_no_upper_bound() -> None:
    assert quantile_interval([0.1] * 49 + [0.9], 0.99).high == math.inf
    assert quantile_interval([], 0.5).n == 0


def test_a_p95_has_an_upper_end_from_72_questions_on_however_many_seeds_ask_them() -> None:
    seconds = [float(i) for i in range(72)]
    assert quantile_interval(seconds[:71], 0.95).high == math.inf
    once = quantile_interval(seconds, 0.95)
    assert once.high == 71
    thrice = quantile_interval(seconds * 3, 0.95, questions=72)
    assert (thrice.low, thrice.high) == (once.low, once.high)


def test_mean_interval_of_too_few_values_has_no_bound() -> None:
    assert mean_interval([2.0]).high == math.inf
    assert (mean_interval([2.0] * 5).low, mean_interval([2.0] * 5).high) == (2.0, 2.0)


def test_a_single_difference_proves_nothing() -> None:
    a, b = {"1": 0.5, "2": 0.4, "3": 0.0}, {"1": 0.5, "2": 0.9, "3": 0.0}
    assert paired_difference(a, b).p == 1.0
