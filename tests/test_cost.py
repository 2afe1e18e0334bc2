"""Dollars, break-even and the Pareto front."""

from dataclasses import replace

import pytest
from factories import make_cell, make_result, make_row

from crossover.eval.analysis.break_even import BreakEven, break_even_interval, break_even_requests
from crossover.eval.analysis.cost import (
    Cost,
    cost_of,
    machine_usd,
    mean_cost,
    monthly_usd,
    pareto_front,
    request_costs,
)
from crossover.eval.experiment.spec import Prices
from crossover.eval.report.table import break_even_line
from crossover.eval.store.result import Latency
from crossover.models.usage import Usage
from crossover.programs.task import FitFacts

PRICES = Prices(machine_hour_usd=3.60)


def cost(fit: float | None, per_request: float | None) -> Cost:
    return Cost(fit, None if per_request is None else 1000 * per_request, None)


def test_an_hour_costs_its_price() -> None:
    assert machine_usd(1800, 2.50) == 1.25


def test_a_local_model_costs_machine_time() -> None:
    result = make_result(make_cell("sft"), [1.0] * 100, serve_seconds=10, fit=Usage(seconds=500, usd=0.25))
    c = cost_of(result, PRICES)
    assert c.fit == pytest.approx(0.75)
    assert c.per_1k_requests == pytest.approx(0.10)
    assert c.paid == pytest.approx(0.76)


def test_an_api_model_costs_what_it_charged_and_no_machine_time() -> None:
    result = make_result(make_cell(), [1.0] * 10, fit=Usage(seconds=500, usd=0.20), usd=0.003, local=False)
    c = cost_of(result, PRICES)
    assert (c.fit, c.per_1k_requests, c.paid) == pytest.approx((0.20, 3.0, 0.23))


def test_an_unknown_price_is_never_0() -> None:
    result = make_result(make_cell(), [1.0] * 10, usd=0.003, local=False)
    result.rows[3] = make_row(3, 1.0, usd=None)
    assert cost_of(result, PRICES) == Cost(0.0, None, None)
    unpriced_fit = make_result(make_cell(), [1.0], fit=Usage(usd=None))
    assert cost_of(unpriced_fit, PRICES).fit is None
    assert cost_of(unpriced_fit, PRICES).paid is None


def test_a_stated_price_counts_for_rows_that_were_measured_without_one() -> None:
    name = "openai/mine"
    cell = replace(make_cell(), model=replace(make_cell().model, name=name))
    result = make_result(cell, [1.0] * 4, local=False)
    tokens = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 100}
    result.rows[:] = [replace(make_row(n, 1.0, usd=None), **tokens) for n in range(4)]
    assert cost_of(result, PRICES).per_1k_requests is None
    prices = replace(PRICES, models={name: {"input_per_million": 2.0, "output_per_million": 10.0}})
    # The next thousand are priced as read anew, what was paid by what the cache held.
    assert cost_of(result, prices).per_1k_requests == pytest.approx(2.0 + 1.0)
    assert cost_of(result, prices).paid == pytest.approx(4 * 0.003)
    cached = replace(prices, models={name: {**prices.models[name], "cached_per_million": 0.5}})
    assert cost_of(result, cached).per_1k_requests == pytest.approx(3.0)
    assert cost_of(result, cached).paid == pytest.approx(4 * (0.0012 + 0.0002 + 0.001))
    # So are the calls of the fit and of the judge, unless a teacher's are among them.
    result.fit = Usage(calls=9, prompt_tokens=1000, completion_tokens=100, usd=None)
    result.notes["judge"] = {"model": "openai/j", "usd": None, "prompt_tokens": 500, "completion_tokens": 50}
    judged = replace(prices, models=prices.models | {"openai/j": prices.models[name]})
    assert cost_of(result, prices).judge is None
    assert cost_of(result, judged).judge == pytest.approx(0.0015)
    assert cost_of(result, judged).fit is None
    del result.notes["judge"]
    assert cost_of(result, prices).fit == pytest.approx(0.003)
    result.facts = FitFacts(teacher="openai/t", teacher_usd=0.5)
    assert cost_of(result, prices).fit is None


def test_machine_time_is_shared_out_by_tokens() -> None:
    result = make_result(make_cell(), [1.0, 1.0], serve_seconds=10)
    result.rows[:] = [make_row(0, 1.0, tokens=95), make_row(1, None, tokens=295)]
    assert request_costs(result, PRICES) == pytest.approx({"e0": 0.0025, "e1": 0.0075})


def test_a_local_price_is_that_of_the_blocks_and_another_one_at_a_time() -> None:
    result = make_result(make_cell("sft"), [1.0] * 100, serve_seconds=99)
    result.latency = Latency((0.5, 0.7), 1, batched=(0.1, 0.2, 0.3), batch=16)
    c = cost_of(result, PRICES)
    assert (c.per_1k_requests, c.per_1k_alone) == pytest.approx((0.2, 0.6))
    assert c.blocks == pytest.approx((0.1, 0.2, 0.3))
    assert c.spread == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert c.basis == "16 at once, the common prefix kept"
    assert not c.measured_once
    assert cost_of(make_result(make_cell("sft"), [1.0] * 100), PRICES).measured_once


def test_the_price_of_an_api_is_that_of_its_tokens_whatever_its_cache_held() -> None:
    result = make_result(make_cell(), [1.0] * 10, usd=0.003, local=False)
    result.notes["token_rates"] = [[0, 1e-6, 1e-5], [50, 2e-6, 2e-5]]
    c = cost_of(result, PRICES)
    assert (c.per_1k_requests, c.paid) == pytest.approx((1000 * (100 * 2e-6 + 5 * 2e-5), 0.03))
    assert not c.measured_once


def test_a_break_even_holds_the_speed_of_the_machine_or_no_interval() -> None:
    few, tuned = cost(0.0, 0.002), cost(10.0, 0.001)
    same = {"few_shot": requests_of(0.002, 0.0), "sft": requests_of(0.001, 0.0)}
    blocks = {"few_shot": replace(few, blocks=(1.9, 2.0, 2.1)), "sft": replace(tuned, blocks=(1.0, 1.0, 1.0))}
    b = break_even_interval(blocks, same)
    half = 4.303 * 0.1 / 3**0.5
    assert (b.low, b.high) == pytest.approx((10_000 / (1 + half), 10_000 / (1 - half)), rel=1e-3)
    # A slow minute that both arms share says nothing about what one saves.
    alike = {"few_shot": replace(few, blocks=(1.9, 2.0, 2.1)), "sft": replace(tuned, blocks=(0.9, 1.0, 1.1))}
    assert break_even_interval(alike, same).low == pytest.approx(10_000)
    once = {"few_shot": replace(few, blocks=()), "sft": replace(tuned, blocks=())}
    b = break_even_interval(once, same)
    assert (b.low, b.high) == (None, None)
    assert break_even_line(b).endswith("10,000 requests")


def test_a_result_without_rows_has_no_price() -> None:
    assert cost_of(make_result(make_cell(), []), PRICES).per_1k_requests is None


def test_costs_are_averaged_over_seeds_and_stay_unknown() -> None:
    assert mean_cost([Cost(1.0, 2.0, 3.0), Cost(3.0, 4.0, None)]) == Cost(2.0, 3.0, None, seed_error=1.0)


def test_a_month_holds_its_share_of_fitting() -> None:
    assert monthly_usd(Cost(24.0, 0.5, None), 10_000, months=12) == 7.0
    assert monthly_usd(Cost(None, 0.5, None), 10_000, months=12) is None


# studies.md, section 14: $3 / $0.3 per million prompt tokens, a 10,000-token prefix, $50 of training.
@pytest.mark.parametrize(("in_context", "requests"), [(0.03045, 1644), (0.00345, 14684)])
def test_break_even_is_that_of_the_worked_example(in_context: float, requests: int) -> None:
    assert break_even_requests(cost(0.0, in_context), cost(50.0, 0.000045)) == pytest.approx(requests, abs=1)


def test_break_even_is_never_where_serving_saves_nothing() -> None:
    assert break_even_requests(cost(0.0, 0.001), cost(50.0, 0.001)) is None
    assert break_even_requests(cost(0.0, 0.001), cost(50.0, 0.002)) is None


def test_break_even_is_at_once_where_starting_costs_nothing_more() -> None:
    assert break_even_requests(cost(5.0, 0.002), cost(5.0, 0.001)) == 0
    assert break_even_requests(cost(9.0, 0.002), cost(5.0, 0.001)) == 0


def test_an_unpriced_arm_has_no_break_even() -> None:
    with pytest.raises(ValueError, match="unpriced"):
        break_even_requests(cost(0.0, None), cost(5.0, 0.001))


def requests_of(mean: float, spread: float) -> dict[str, float]:
    return {f"e{i}": mean + spread * (-1) ** i for i in range(100)}


def test_the_interval_of_a_break_even_holds_its_value() -> None:
    costs = {"few_shot": cost(0.0, 0.002), "sft": cost(10.0, 0.001)}
    b = break_even_interval(costs, {"few_shot": requests_of(0.002, 0.0005), "sft": requests_of(0.001, 0.0)})
    assert (b.start, b.run) == ("few_shot", "sft")
    assert b.value == pytest.approx(10_000)
    assert 8_000 < b.low < 10_000 < b.high < 13_000


def test_seeds_that_differ_in_price_widen_the_interval_of_a_break_even() -> None:
    costs = {"few_shot": Cost(0.0, 2.0, None, seed_error=0.1), "sft": Cost(10.0, 1.0, None)}
    b = break_even_interval(costs, {"few_shot": requests_of(0.002, 0.0), "sft": requests_of(0.001, 0.0)})
    assert (b.low, b.high) == (pytest.approx(10 / 0.0012), pytest.approx(10 / 0.0008))


def test_equal_ends_are_not_printed_as_an_interval() -> None:
    assert break_even_line(BreakEven(1176.4, 1176.4, 1176.4, "few_shot", "sft")).endswith("1,176 requests")
    assert break_even_line(BreakEven(1176.4, 1000.0, None, "few_shot", "sft")).endswith("requests (1,000 to never)")
    # An arm that was no cheaper as measured may be cheaper within the noise of the machine.
    line = break_even_line(BreakEven(None, 1000.0, None, "few_shot", "sft"))
    assert line == "break-even of sft over few_shot: never, as measured (1,000 to never)"
    assert "does not get cheaper" in break_even_line(BreakEven(None, None, None, "few_shot", "sft"))


def test_a_break_even_that_may_never_come_has_no_upper_end() -> None:
    costs = {"sft": cost(10.0, 0.001), "few_shot": cost(0.0, 0.0011)}
    b = break_even_interval(costs, {"few_shot": requests_of(0.0011, 0.002), "sft": requests_of(0.001, 0.0)})
    assert b.value == pytest.approx(100_000)
    assert b.low is not None
    assert b.high is None


def test_a_break_even_that_never_comes_is_named_so() -> None:
    costs = {"few_shot": cost(0.0, 0.001), "sft": cost(10.0, 0.002)}
    b = break_even_interval(costs, {"few_shot": requests_of(0.001, 0.0), "sft": requests_of(0.002, 0.0)})
    assert (b.value, b.low, b.high) == (None, None, None)
    assert b.start == "few_shot"


def test_an_arm_that_is_cheaper_both_ways_has_paid_for_itself_at_once() -> None:
    costs = {"gepa": cost(20.0, 0.002), "sft": cost(10.0, 0.001)}
    b = break_even_interval(costs, {"gepa": requests_of(0.002, 0.0), "sft": requests_of(0.001, 0.0)})
    assert (b.start, b.run, b.value) == ("sft", "gepa", None)


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = {"good": (0.9, 1.0, 50.0), "cheap": (0.5, 0.1, 50.0), "beaten": (0.8, 1.0, 60.0), "twin": (0.9, 1.0, 50.0)}
    assert pareto_front(points) == ("good", "cheap", "twin")


def test_an_unknown_price_neither_beats_nor_is_beaten() -> None:
    assert pareto_front({"a": (0.9, None, 50.0), "b": (0.5, 2.0, 60.0)}) == ("a", "b")
