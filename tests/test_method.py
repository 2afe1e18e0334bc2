"""docs/method.md says what the code does: every rule, and tables that commands wrote."""

import re
from pathlib import Path

import pytest

from crossover.eval.analysis.exclusion import OUT
from crossover.eval.analysis.rules import ABSTAIN, DOUBTS

TEXT = (Path(__file__).parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
FLOWING = " ".join(TEXT.split())


@pytest.mark.parametrize("words", [rule[0] for rule in (*OUT, *ABSTAIN, *DOUBTS)])
def test_every_rule_is_explained(words: str) -> None:
    assert words in FLOWING


def section(name: str) -> str:
    found = re.search(f"<!-- {name}:begin -->(.*?)<!-- {name}:end -->", TEXT, re.S)
    assert found
    return found[1]


def test_intervals_hold_the_truth_often_enough() -> None:
    shares = _column(section("coverage"), 2) + _column(section("false-positives"), 2)
    assert len(shares) >= 6
    assert min(shares) >= 93


def test_false_positives_are_rare_enough() -> None:
    shares = _column(section("false-positives"), 3) + _column(section("decisions"), 2)
    assert all(share <= 5.5 for share in shares)


def test_races_end_with_the_winner_of_the_full_grid() -> None:
    shares = _column(section("racing"), 4)
    assert len(shares) >= 5
    assert min(shares) >= 95


WANTED = re.compile(r"\| .* \| (<= |>= |)([\d.]+)(?:-([\d.]+))? (?:%|points) \| .* \| (-?[\d.]+) (?:%|points) \|")
"""A line of a table that states what is wanted, with its bounds and what came out."""


@pytest.mark.parametrize("name", ["verdicts", "choices", "families", "latency"])
def test_what_is_wanted_of_the_verdict_came_out(name: str) -> None:
    lines = [found for line in section(name).splitlines() if (found := WANTED.fullmatch(line))]
    assert len(lines) >= 4
    for line in lines:
        least, most, now = float(line[2]), float(line[3] or 100), float(line[4])
        assert now <= least if line[1] == "<= " else least <= now <= most, line[0]


def _column(text: str, number: int) -> list[float]:
    """Return the percentages of a column of a table, the first column being 1."""
    cells = [line.split("|")[number].strip() for line in text.splitlines() if line.startswith("|")]
    return [float(cell.removesuffix(" %")) for cell in cells if re.fullmatch(r"[\d.]+ %", cell)]
