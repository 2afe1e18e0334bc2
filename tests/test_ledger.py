"""What an arm costs, by what it was spent on; hosting, labels, prefix caching, and what other prices would change."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import make_cell, make_result, make_row, right

from crossover.eval.analysis.break_even import break_even_requests
from crossover.eval.analysis.caching import SECONDS_A_MONTH, RequestTokens, TokenPrice, hit_rate, request_usd, tokens_of
from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.cost import Cost, cost_of, monthly_usd
from crossover.eval.analysis.ledger import Ledger, ledger_of
from crossover.eval.analysis.sweep import choices, sensitivity_lines
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.text import dollars, money
from crossover.eval.store.facts import flat_notes, split_notes
from crossover.eval.store.result import Result
from crossover.models.usage import Usage
from crossover.programs.task import FitFacts

PRICES = Prices(machine_hour_usd=3.60, label_usd=0.10, tuned_hosting_usd_per_month=20.0)


def result(method: str, facts: FitFacts, *, usd: float | None = 0.0, seconds: float = 1000) -> Result:
    return replace(make_result(make_cell(method), right(80, 100), fit=Usage(seconds=seconds, usd=usd)), facts=facts)


def test_training_is_charged_with_labels_discarded_trials_and_hosting() -> None:
    trained = result("sft", FitFacts(train_examples=200, val_examples=40, discarded_seconds=600))
    assert ledger_of(trained, PRICES) == Ledger(
        labels=pytest.approx(24.0),
        optimizer=0.0,
        teacher=0.0,
        training=pytest.approx(0.4),
        discarded=pytest.approx(0.6),
        hosting_per_month=20.0,
    )
    assert cost_of(trained, PRICES).fit == pytest.approx(25.0)
    assert cost_of(trained, PRICES).paid == pytest.approx(1.0 + 0.01)


def test_a_search_is_charged_with_its_teacher() -> None:
    searched = result("gepa", FitFacts(train_examples=50, val_examples=50, teacher_usd=0.75), usd=1.0)
    ledger = ledger_of(searched, PRICES)
    assert (ledger.labels, ledger.teacher, ledger.training) == (pytest.approx(10.0), 0.75, 0.0)
    assert ledger.optimizer == pytest.approx(1.0 + 0.25)
    # A model that runs here needs a machine that is on, whoever adapted it.
    assert ledger.hosting_per_month == 20
    assert ledger_of(replace(searched, local=False), PRICES).hosting_per_month == 0


@pytest.mark.parametrize("usd", [None, 1.0])
def test_an_unknown_price_of_teacher_or_search_stays_unknown(usd: float | None) -> None:
    ledger = ledger_of(result("gepa", FitFacts(teacher_usd=None), usd=usd), PRICES)
    assert ledger.fit is None


@pytest.mark.parametrize(
    ("method", "notes", "labels"),
    [
        ("zero_shot", {"demos": 0, "train_examples": 400}, 0),
        ("few_shot", {"demos": 4, "train_examples": 400}, 4),
        ("retrieved_demos", {"demos": 8, "pool": 300, "train_examples": 300}, 300),
        ("hybrid", {"fixed": 20, "demos": 8, "pool": 280, "train_examples": 300}, 300),
        ("sft", {"rows": 300, "train_examples": 400, "val_examples": 50}, 450),
        ("sft", {"rows": 300}, 300),
        ("gepa", {"candidates": 4, "demos": 2, "train_examples": 50, "val_examples": 50}, 100),
    ],
)
def test_the_labels_of_an_earlier_version_are_read_from_its_notes(
    method: str, notes: dict[str, Any], labels: int
) -> None:
    facts, _ = split_notes(notes)
    assert ledger_of(result(method, facts), PRICES).labels == pytest.approx(0.10 * labels)


FACTS = [
    FitFacts(),
    FitFacts(labels_used=0, zero_shot=True, train_examples=400, val_examples=40),
    FitFacts(teacher="openai/gpt-4o", teacher_calls=3, teacher_usd=None, discarded_seconds=2.5, logit_change=0.0),
    FitFacts(teacher_usd=0.5, training_seconds=9.0, training_usd=None),
]


@pytest.mark.parametrize("facts", FACTS, ids=str)
def test_facts_come_back_from_the_store_as_they_were(facts: FitFacts) -> None:
    notes = {"demos": 4, "pool": 9, "loss": [1.0, 0.5]}
    assert split_notes(json.loads(json.dumps(flat_notes(facts, notes)))) == (facts, notes)


def test_right_answers_cost_more_than_answers() -> None:
    assert Cost(0.0, 2.0, None).per_1k_correct(0.8) == 2.5
    assert Cost(0.0, 2.0, None).per_1k_correct(0.0) == math.inf
    assert money(math.inf) == dollars(math.inf) == "never"
    assert Cost(0.0, None, None).per_1k_correct(0.8) is None


def test_hosting_moves_the_break_even_and_the_month() -> None:
    prompt, tuned = Cost(0.0, 10.0, None), Cost(40.0, 2.0, None, hosting_per_month=20.0)
    # [(40 - 0) / 4 months + 20] dollars a month over 0.008 saved on each request, four months long.
    assert break_even_requests(prompt, tuned, months=4) == pytest.approx(4 * (40 / 4 + 20) / 0.008)
    assert monthly_usd(tuned, 1000, months=4) == 10 + 20 + 2


def test_a_prefix_is_hit_when_requests_come_often() -> None:
    rng = np.random.default_rng(1)
    gaps = rng.exponential(SECONDS_A_MONTH / 10_000, 200_000)
    assert hit_rate(10_000, 300) == pytest.approx(np.mean(gaps <= 300), abs=0.005)
    assert hit_rate(0, 300) == 0
    assert hit_rate(1e9, 300) == pytest.approx(1.0)


# studies.md, section 14: $3 and $15 per million tokens, a prefix of 10,000, a question of 100, an answer of 10.
@pytest.mark.parametrize(("hits", "usd"), [(None, 0.03045), (1.0, 0.00345), (0.0, 0.03795)])
def test_a_request_costs_what_the_worked_example_says(hits: float | None, usd: float) -> None:
    tokens = RequestTokens(10_000, 100, 10)
    assert request_usd(tokens, TokenPrice(3, 15), hits=hits) == pytest.approx(usd)


def test_a_short_prefix_is_not_cached() -> None:
    tokens = RequestTokens(1000, 100, 10)
    assert request_usd(tokens, TokenPrice(3, 15), hits=1.0) == request_usd(tokens, TokenPrice(3, 15))


def test_the_shortest_prompt_stands_for_the_prefix() -> None:
    tokens = tokens_of([make_row(0, 1.0, tokens=100), make_row(1, 0.0, tokens=140), make_row(2, None, tokens=0)])
    assert tokens == RequestTokens(100, 20, 5)
    assert tokens_of([]) == RequestTokens(0, 0, 0)


def arms() -> list[Result]:
    many = make_result(make_cell("many_shot"), right(240, 300), serve_seconds=30)
    many.rows[:] = [replace(r, prompt_tokens=3000 + i % 7) for i, r in enumerate(many.rows)]
    return [many, make_result(make_cell("sft"), right(240, 300), serve_seconds=3, fit=Usage(seconds=10_000))]


def test_prices_and_traffic_move_the_choice() -> None:
    prices, needs = Prices(machine_hour_usd=3.60), Needs()
    comparison = compare(arms(), needs=needs, prices=prices, experiment="x")
    chosen = choices(arms(), comparison, needs, prices)
    assert (chosen[1_000, 1.0], chosen[10_000_000, 1.0]) == ("many_shot", "sft")
    assert "" not in sensitivity_lines("intents", comparison, arms(), needs=needs, prices=prices)
    # A machine that is always on costs either arm the same, and hides what they differ by at little traffic.
    hosted = replace(prices, tuned_hosting_usd_per_month=10.0)
    comparison = compare(arms(), needs=needs, prices=hosted, experiment="x")
    chosen = choices(arms(), comparison, needs, hosted)
    assert (chosen[1_000, 1.0], chosen[10_000_000, 1.0]) == ("many_shot", "sft")


def test_caching_is_shown_over_traffic_and_prefix() -> None:
    prices = Prices(machine_hour_usd=3.60, input_usd_per_million=3.0, output_usd_per_million=15.0)
    comparison = compare(arms(), needs=Needs(), prices=prices, experiment="x")
    lines = sensitivity_lines("intents", comparison, arms(), needs=Needs(), prices=prices)
    table = [line.split() for line in lines[lines.index("") + 3 :]]
    assert [(row[0], row[1]) for row in table[:4]] == [
        ("3,000", "1,000"),
        ("3,000", "100,000"),
        ("3,000", "10,000,000"),
        ("12,000", "1,000"),
    ]
    seldom, often = table[0], table[2]
    assert float(seldom[3]) > float(seldom[4]) > float(often[3])
    saving = 1000 * request_usd(RequestTokens(3000, 3, 5), TokenPrice(3, 15), hits=1.0) - 0.036
    assert float(often[5].replace(",", "")) == pytest.approx(10_000 / saving, rel=0.05)
    assert math.isclose(float(often[2].rstrip("%")), 100.0)
