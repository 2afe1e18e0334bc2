"""Arms, contrasts, and every rule of the verdict, on real results with chosen numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import make_cell, make_result, right

from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.exclusion import OUT
from crossover.eval.analysis.rules import ABSTAIN, DOUBTS
from crossover.eval.analysis.sweep import choices
from crossover.eval.analysis.verdict import Verdict, decide
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result
from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import FitFacts

PRICES = Prices(machine_hour_usd=3.60)
COSTLY_FIT = Usage(seconds=10_000)


def judge(*results: Result, **needs: float) -> Verdict:
    return compare(results, needs=Needs(**needs), prices=PRICES, experiment="x").verdicts[0]


def zero(scores: Sequence[float | None], **options: Any) -> Result:
    return make_result(make_cell("zero_shot"), scores, **options)


def sft(scores: Sequence[float | None], **options: Any) -> Result:
    return make_result(make_cell("sft"), scores, **{"fit": COSTLY_FIT, **options})


def demos(scores: Sequence[float | None], **options: Any) -> Result:
    return make_result(make_cell("retrieved_demos"), scores, **options)


def test_the_significantly_best_arm_is_chosen_with_its_numbers() -> None:
    v = judge(zero(right(60, 300)), sft(right(240, 300)))
    assert (v.choose, v.confidence, v.ties) == ("sft", "moderate", ())
    assert v.because == (
        "sft scores 0.80 [0.75, 0.84] on 300 test examples at $4.17 a month for 100,000 requests "
        "(no volume is stated), significantly better than the next, zero_shot (difference +0.60, p < 0.001)."
    )


def test_the_cheapest_of_tied_arms_is_chosen_and_the_tie_named() -> None:
    v = judge(zero(right(60, 300)), demos(right(240, 300), serve_seconds=30), sft(right(238, 300), serve_seconds=5))
    assert (v.choose, v.ties) == ("sft", ("retrieved_demos",))
    assert "over a tenth cheaper than the best, with which it is tied: retrieved_demos" in v.because


def test_a_chosen_arm_that_is_as_good_as_a_constant_is_chosen_with_low_confidence() -> None:
    silent = replace(
        sft(right(240, 300)), notes={"constant": "is not shown to be better than answering 'none' to everything"}
    )
    assert judge(zero(right(60, 300)), silent).confidence == "low"
    # What the others are says nothing about it.
    assert judge(replace(zero(right(60, 300)), notes=silent.notes), sft(right(240, 300))).confidence == "moderate"


def test_volume_decides_between_fitting_and_serving() -> None:
    arms = demos(right(240, 300), serve_seconds=30), sft(right(238, 300), serve_seconds=3)
    assert judge(*arms, volume_per_month=1_000).choose == "retrieved_demos"
    assert judge(*arms, volume_per_month=1_000_000).choose == "sft"


def test_traffic_that_flips_the_answer_is_stated() -> None:
    arms = demos(right(240, 300), serve_seconds=30), sft(right(238, 300), serve_seconds=3)
    flips = judge(*arms, volume_per_month=1_000).flips
    # $10 of fitting over 12 months, $0.00001 a request against nine tenths of $0.0001.
    assert "above about 10,000 requests a month sft is over a tenth cheaper than retrieved_demos" in flips
    assert (
        "below about 10,000 requests a month sft is no longer a tenth cheaper than retrieved_demos"
        in judge(*arms).flips
    )


def test_the_price_that_flips_the_answer_is_stated() -> None:
    v = judge(demos(right(240, 300), serve_seconds=30), sft(right(238, 300), serve_seconds=3))
    assert (
        "at less than $0.02 per 1,000 requests to retrieved_demos (now $0.1) sft is no longer a tenth cheaper than "
        "retrieved_demos" in v.flips
    )


def test_more_data_that_would_tell_a_tie_is_stated() -> None:
    v = judge(demos(right(240, 300), serve_seconds=20), zero(right(246, 300, shift=20)))
    # Standard error 0.023, margin 0.02: (2.8 x 0.023 / 0.02) squared, times 300, less the 300 there are. The largest
    # difference that the interval holds, 0.065, would have been found.
    assert "up to 2,800 more test examples would tell zero_shot from retrieved_demos" in v.flips


def test_an_arm_with_a_failed_check_is_out() -> None:
    broken = sft(right(290, 300))
    broken.integrity.append("the adapter does not change the logits")
    v = judge(zero(right(60, 300)), demos(right(240, 300)), broken)
    assert v.choose == "retrieved_demos"


def test_an_arm_with_many_failed_rows_is_out() -> None:
    v = judge(zero(right(60, 300)), sft([None] * 16 + [1.0] * 284))
    assert v.choose == "zero_shot"
    assert judge(zero(right(60, 300)), sft([None] * 15 + [1.0] * 285)).choose == "sft"


def test_failed_rows_that_decide_the_verdict_leave_low_confidence() -> None:
    cheap = demos(right(250, 300, shift=50), serve_seconds=5)
    shaky = sft([*right(262, 285), *[None] * 15], serve_seconds=90)
    v = judge(cheap, shaky)
    assert (v.choose, v.confidence) == ("sft", "low")
    assert v.because.endswith(
        "But if the 15 failed rows counted as 0, retrieved_demos would be chosen: run again to fill them in."
    )
    # Against an arm far below, the failures decide nothing.
    assert judge(zero(right(60, 300)), shaky).confidence == "moderate"


def test_an_arm_that_scored_nothing_is_out() -> None:
    v = judge(zero([None] * 100), sft([None] * 100))
    assert (v.choose, v.confidence) == (None, "abstain")
    assert "100 of 100 rows failed" in v.because
    assert "no example was scored" in judge(zero([]), sft([])).because


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ({"min_score": 0.9}, "sft scores 0.85, but score 0.85 < min_score 0.9"),
        ({"max_p95_ms": 100}, "sft scores 0.85, but p95 909 ms > max_p95_ms 100"),
        (
            {"max_usd_per_month": 5, "volume_per_month": 1e6},
            "sft scores 0.85, but $34.17 a month > max_usd_per_month 5",
        ),
    ],
)
def test_an_arm_that_misses_a_need_is_out_and_said_to_be(needs: dict[str, float], reason: str) -> None:
    cheap = zero(right(60, 300), serve_seconds=0.1, ms=10)
    v = judge(cheap, sft(right(255, 300), ms=900), **needs)
    assert v.choose == (None if "min_score" in needs else "zero_shot")
    assert reason in v.flips


def test_an_unpriced_arm_cannot_meet_a_budget() -> None:
    v = judge(zero(right(60, 300)), sft(right(255, 300), usd=None), max_usd_per_month=500, volume_per_month=1000)
    assert v.choose == "zero_shot"
    assert any("unpriced" in line for line in v.flips)


def test_a_monthly_budget_without_a_volume_is_said_to_be_unapplied() -> None:
    v = judge(zero(right(60, 300)), sft(right(255, 300)), max_usd_per_month=0.01)
    assert v.choose == "sft"
    assert "max_usd_per_month was not applied, for needs has no volume_per_month" in v.flips


def test_nothing_left_abstains_with_every_reason() -> None:
    v = judge(zero(right(60, 300)), sft(right(240, 300)), min_score=0.95)
    assert (v.choose, v.confidence) == (None, "abstain")
    assert "zero_shot: score 0.2 < min_score 0.95; sft: score 0.8 < min_score 0.95" in v.because


def test_fewer_than_fifty_examples_name_the_leader_and_no_other_arm() -> None:
    v = judge(zero(right(20, 40, shift=10)), sft(right(26, 40)))
    assert (v.choose, v.confidence) == (None, "abstain")
    assert v.because == (
        "40 test examples are too few to choose by (at least 50), and no arm is significantly the best; sft leads with "
        "0.65: label 10 more or so."
    )


def test_a_significant_best_of_few_examples_is_chosen_with_low_confidence() -> None:
    v = judge(zero(right(4, 40)), sft(right(36, 40)))
    assert (v.choose, v.confidence) == ("sft", "low")


@pytest.mark.parametrize("n", [40, 300])
def test_arms_that_get_nothing_right_abstain_however_many_examples_there_are(n: int) -> None:
    v = judge(zero(right(0, n)), sft(right(0, n)))
    assert (v.choose, v.confidence) == (None, "abstain")
    assert v.because.startswith(f"No arm got any of {n} test examples right")


def test_indistinct_arms_on_a_blunt_test_set_abstain() -> None:
    v = judge(zero(right(40, 80)), sft(right(42, 80, shift=30)))
    assert (v.choose, v.confidence) == (None, "abstain")
    assert "The best arm, sft, is not significantly better than zero_shot on 80 examples" in v.because


def test_a_third_arm_that_is_bad_settles_nothing_between_the_others() -> None:
    near = zero(right(40, 80), serve_seconds=9), sft(right(42, 80, shift=30))
    v = judge(*near, demos(right(0, 80)))
    assert v.choose is None
    assert "sft, is not significantly better than zero_shot" in v.because


def test_a_tenth_of_the_price_is_no_reason_to_choose() -> None:
    arms = demos(right(1604, 2000), serve_seconds=100), zero(right(1600, 2000), serve_seconds=91)
    v = judge(*arms)
    assert (v.choose, v.ties) == ("retrieved_demos", ("zero_shot",))
    assert "the best, and no arm tied with it is over a tenth cheaper" in v.because
    cheaper = replace(arms[1], serve_seconds=89)
    assert judge(arms[0], cheaper).choose == "zero_shot"


def test_a_saving_within_the_noise_of_prices_is_no_reason_to_choose() -> None:
    best = demos(right(1604, 2000), serve_seconds=100)
    assert judge(best, zero(right(1600, 2000), serve_seconds=60)).choose == "zero_shot"
    shaky = [make_result(make_cell(seed=s), right(1600, 2000), serve_seconds=t) for s, t in ((0, 90), (1, 30))]
    assert judge(best, *shaky).choose == "retrieved_demos"
    # A charge of one request in 500 says little of what the mean saves.
    rare = demos(right(1604, 2000), serve_seconds=0)
    rare.rows[:] = [replace(r, usd=0.5 * (i % 500 == 0)) for i, r in enumerate(rare.rows)]
    even = zero(right(1600, 2000), serve_seconds=0, usd=0.0008)
    assert judge(rare, even).choose == "retrieved_demos"


def test_dear_labels_are_no_sure_choice_for_a_small_saving() -> None:
    prompt = demos(right(1600, 2000), serve_seconds=100)
    tuned = [make_result(make_cell("sft", seed=s), right(1600, 2000), serve_seconds=99) for s in (0, 1)]
    for result in tuned:
        result.facts = FitFacts(labels_used=500)

    def verdict(volume: float | None) -> Verdict:
        needs, prices = Needs(volume_per_month=volume), Prices(machine_hour_usd=3600.0, label_usd=10.0)
        return compare([prompt, *tuned], needs=needs, prices=prices, experiment="x").verdicts[0]

    assert verdict(None).choose == "retrieved_demos"
    assert verdict(1e9).choose == "retrieved_demos"
    tuned = [replace(t, rows=zero(right(1604, 2000)).rows) for t in tuned]
    v = verdict(1e6)
    assert (v.choose, v.confidence) == ("sft", "moderate")


def test_a_choice_that_rests_on_the_default_volume_is_no_sure_one() -> None:
    trained = [make_result(make_cell("sft", seed=s), right(1600, 2000), fit=COSTLY_FIT) for s in (0, 1)]
    arms = demos(right(1600, 2000), serve_seconds=100), *trained
    v = judge(*arms)
    assert (v.choose, v.confidence) == ("sft", "moderate")
    assert judge(*arms, volume_per_month=100_000).confidence == "high"


def test_equivalent_arms_are_settled_by_price_with_high_confidence() -> None:
    same = right(1600, 2000)
    v = judge(demos(same, serve_seconds=90), zero(same, serve_seconds=60))
    assert (v.choose, v.confidence, v.ties) == ("zero_shot", "high", ("retrieved_demos",))


def test_an_unknown_price_among_ties_lowers_confidence() -> None:
    same = right(1600, 2000)
    v = judge(demos(same, usd=None, local=False), zero(same))
    assert (v.choose, v.confidence) == ("zero_shot", "low")
    assert "a known price of retrieved_demos, now unpriced" in v.flips


def test_a_score_that_may_miss_the_need_lowers_confidence() -> None:
    arms = demos(right(60, 300)), zero(right(240, 300))
    assert judge(*arms, min_score=0.79).confidence == "low"
    assert judge(*arms, min_score=0.82).confidence == "low"
    assert judge(*arms, min_score=0.85).choose is None
    assert judge(*arms, min_score=0.70).confidence == "high"


def test_a_p95_that_may_miss_the_need_lowers_confidence() -> None:
    arms = demos(right(60, 300)), zero(right(240, 300), ms=40)
    assert judge(*arms, max_p95_ms=49).confidence == "high"
    few = zero(right(240, 300), ms=40)
    few.latency = replace(few.latency, seconds=few.latency.seconds[:20])
    assert judge(arms[0], few, max_p95_ms=60).confidence == "low"


def test_a_chosen_arm_that_may_be_far_worse_than_a_tie_has_low_confidence() -> None:
    v = judge(zero(right(150, 300)), demos(right(240, 300), serve_seconds=5), sft(right(243, 300, shift=30)))
    assert (v.choose, v.ties, v.confidence) == ("retrieved_demos", ("sft",), "low")


def test_a_chosen_arm_that_may_be_a_little_worse_than_a_tie_has_moderate_confidence() -> None:
    v = judge(zero(right(60, 300)), demos(right(240, 300), serve_seconds=5), sft(right(244, 300)))
    assert (v.choose, v.ties, v.confidence) == ("retrieved_demos", ("sft",), "moderate")


def test_a_small_test_set_has_moderate_confidence() -> None:
    assert judge(zero(right(20, 100)), sft(right(80, 100))).confidence == "moderate"


def test_an_arm_ruled_out_narrowly_leaves_moderate_confidence() -> None:
    # Eight wins to none: p = 0.008; seven: p = 0.016.
    assert judge(demos(right(240, 300)), zero(right(248, 300))).confidence == "high"
    assert judge(demos(right(240, 300)), zero(right(247, 300))).confidence == "moderate"


def test_a_single_arm_is_named_as_such_and_is_no_sure_choice() -> None:
    v = judge(zero(right(200, 300)))
    assert "is the only arm that can be recommended" in v.because
    assert v.confidence == "moderate"


def test_an_arm_that_is_good_for_nothing_needs_a_min_score() -> None:
    v = judge(zero(right(0, 200)), sft(right(4, 200)))
    assert v.choose is None
    assert "say so with needs.min_score" in v.because
    assert judge(zero(right(0, 200)), sft(right(12, 200)), min_score=0.05).choose == "sft"


def test_one_seed_of_an_arm_that_learns_is_no_sure_choice() -> None:
    weak = demos(right(60, 300))
    assert judge(weak, zero(right(240, 300))).confidence == "high"
    trained = [make_result(make_cell("sft", seed=s), right(240, 300)) for s in (0, 1)]
    assert judge(weak, trained[0]).confidence == "moderate"
    assert judge(weak, *trained).confidence == "high"


def test_the_cheapest_of_ties_that_reaches_min_score_comes_first() -> None:
    arms = zero(right(240, 300), serve_seconds=1), demos(right(246, 300, shift=20))
    assert judge(*arms).choose == "zero_shot"
    assert judge(*arms, min_score=0.81).choose == "retrieved_demos"


def test_break_even_is_between_the_best_arms_of_both_kinds() -> None:
    v = judge(zero(right(60, 300)), demos(right(240, 300), serve_seconds=30), sft(right(280, 300), serve_seconds=3))
    assert (v.break_even.start, v.break_even.run) == ("retrieved_demos", "sft")
    assert v.break_even.value == pytest.approx(10 / 0.00009, rel=1e-6)
    assert judge(zero(right(60, 300)), demos(right(240, 300))).break_even is None
    assert judge(demos(right(240, 300), serve_seconds=30), sft(right(60, 300), serve_seconds=3)).break_even is None


def test_arms_measured_on_different_splits_or_examples_are_refused() -> None:
    other = sft(right(50, 100))
    other.split_sha256 = "cd" * 32
    with pytest.raises(UserError, match=r"'zero_shot' and 'sft' were scored on different examples \(100 of split abab"):
        judge(zero(right(50, 100)), other)
    with pytest.raises(UserError, match="different examples"):
        judge(zero(right(50, 100)), sft(right(50, 99)))


def test_seeds_of_an_arm_are_averaged_by_example() -> None:
    seeds = [make_result(make_cell("sft", seed=s), [1.0, 0.0, 1.0 - s, None]) for s in (0, 1)]
    arm = compare(seeds, needs=Needs(), prices=PRICES, experiment="x").arms[0]
    assert arm.scores == {"e0": 1.0, "e1": 0.0, "e2": 0.5}
    assert (arm.seeds, arm.cells, arm.rows, arm.failed) == ((0, 1), ("key-sft-0", "key-sft-1"), 8, 2)
    assert (arm.score.n, arm.latency.n, arm.tokens.prompt_tokens) == (3, 200, 400)
    assert 40 < arm.latency.p50.mean < arm.latency.p95.mean < 50


def test_arms_are_named_by_what_varies() -> None:
    cells = [make_cell(), make_cell("sft", size=64), make_cell("sft", size=256)]
    comparison = compare([make_result(c, right(5, 10)) for c in cells], needs=Needs(), prices=PRICES, experiment="x")
    assert [a.name for a in comparison.arms] == ["zero_shot", "sft, n=64", "sft, n=256"]
    one_size = compare([make_result(cells[1], right(5, 10))], needs=Needs(), prices=PRICES, experiment="x")
    assert one_size.arms[0].name == "sft"


def test_contrasts_take_what_both_scored_and_share_one_adjustment() -> None:
    arms = zero([None, *right(20, 99)]), demos(right(50, 100)), sft(right(90, 100))
    contrasts = compare(arms, needs=Needs(), prices=PRICES, experiment="x").contrasts
    assert [(c.a, c.b, c.difference.n) for c in contrasts] == [
        ("retrieved_demos", "zero_shot", 99),
        ("sft", "zero_shot", 99),
        ("sft", "retrieved_demos", 100),
    ]
    assert all(c.finding == "better" and c.p_holm >= c.difference.p for c in contrasts)


def test_many_arms_are_one_family_of_all_pairs() -> None:
    results = [make_result(make_cell("sft", size=n), right(50 + n, 100)) for n in range(1, 11)]
    contrasts = compare(results, needs=Needs(), prices=PRICES, experiment="x").contrasts
    assert len(contrasts) == 45
    widest = next(c for c in contrasts if (c.a, c.b) == ("sft, n=10", "sft, n=1"))
    assert widest.p_holm == pytest.approx(45 * widest.difference.p)


def test_many_graded_arms_are_resampled_against_the_best_alone() -> None:
    rng = np.random.default_rng(0)
    results = [make_result(make_cell("sft", size=n), rng.beta(2 + n / 5, 1, 60).tolist()) for n in range(1, 10)]
    comparison = compare(results, needs=Needs(), prices=PRICES, experiment="x")
    best = max(comparison.arms, key=lambda a: a.score.mean).name
    assert {c.difference.test for c in comparison.contrasts if best in (c.a, c.b)} == {"sign-flip"}
    assert {c.difference.test for c in comparison.contrasts if best not in (c.a, c.b)} == {"t"}


def test_another_best_arm_among_many_has_its_contrasts() -> None:
    cells = [make_cell("sft", size=n) for n in range(1, 11)]
    results = [make_result(c, right(10 * i, 100), serve_seconds=1 + 99 * (i == 9)) for i, c in enumerate(cells)]
    comparison = compare(results, needs=Needs(), prices=PRICES, experiment="x")
    assert choices(results, comparison, Needs(max_usd_per_month=1000), PRICES)[10_000_000, 1.0] == "sft, n=9"
    needs = Needs(max_usd_per_month=1, volume_per_month=10_000_000)
    assert decide(comparison.arms, comparison.contrasts, needs).choose is None


def test_a_comparison_holds_each_task_by_itself() -> None:
    results = [make_result(replace(make_cell(), task=task), right(60, 100)) for task in ("intents", "module")]
    comparison = compare(results, needs=Needs(), prices=PRICES, experiment="x")
    assert [v.task for v in comparison.verdicts] == ["intents", "module"]
    assert comparison.split_sha256 == {"intents": "ab" * 32, "module": "ab" * 32}
    assert (comparison.contrasts, comparison.fronts["module"]) == ((), ("zero_shot",))


def test_every_rule_has_words() -> None:
    assert all(rule[0] for rule in (*OUT, *ABSTAIN, *DOUBTS))
