"""The simulations behind docs/method.md, in a small version: what they promise holds in a few hundred draws."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def simulated() -> Any:
    sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("verdict_simulation")


@pytest.mark.parametrize(("arms", "worse"), [(4, 0), (12, 0), (8, 4)])
def test_equal_arms_are_seldom_called_different(simulated: Any, arms: int, worse: int) -> None:
    assert simulated.false_difference(arms, worse)(300) <= 0.05


def test_intervals_of_p95_and_break_even_hold_the_truth(simulated: Any) -> None:
    latencies = importlib.import_module("latency_simulation")
    assert latencies.p95(80, 3)(100) >= 0.93
    assert latencies.break_even(5, 40)(40) >= 0.85
    assert latencies.break_even(1, 40)(40) <= 0.40


def test_a_bad_third_arm_makes_no_cheap_arm_chosen(simulated: Any) -> None:
    assert importlib.import_module("choice_simulation").chosen_for_a_cent()(20) <= 0.05


def test_variants_chosen_on_val_do_not_flatter_their_method(simulated: Any) -> None:
    choice = importlib.import_module("choice_simulation")
    assert choice.flattery(1, 18, "all")(100) > 0.04
    assert choice.winner_coverage(1, 18, "all", plain=True)(100) < 0.9
    assert abs(choice.flattery(1, 18)(100)) < 0.01
    assert choice.winner_coverage(1, 18)(100) >= 0.9


@pytest.mark.parametrize("table", ["cases", "recorded"])
def test_what_the_document_says_of_single_cases_is_what_they_come_to(simulated: Any, table: str) -> None:
    method = Path(__file__).parent.parent / "docs" / "method.md"
    assert importlib.import_module("simulation").TABLES[table](0) in method.read_text(encoding="utf-8")


def test_the_interval_of_the_chosen_score_allows_for_the_choice_among_methods(simulated: Any) -> None:
    choice = importlib.import_module("choice_simulation")
    assert choice.winner_coverage(6, 1)(200) >= 0.93
    assert choice.winner_coverage(6, 1, plain=True)(200) < choice.winner_coverage(6, 1)(200)
