"""docs/method.md says what the code does: every rule, and tables that commands wrote."""

import re
from pathlib import Path

import pytest

from eval.rules import ABSTAIN, DOUBTS, OUT

TEXT = (Path(__file__).parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
FLOWING = " ".join(TEXT.split())


@pytest.mark.parametrize("words", [rule[0] for rule in (*OUT, *ABSTAIN, *DOUBTS)])
def test_every_rule_is_explained(words: str) -> None:
    assert words in FLOWING


def section(name: str) -> str:
    found = re.search(f"<!-- {name}:begin -->(.*?)<!-- {name}:end -->", TEXT, re.S)
    assert found
    return found[1]


@pytest.mark.parametrize("name", ["coverage", "false-positives"])
def test_the_intervals_hold_the_truth_often_enough(name: str) -> None:
    shares = [float(s) for s in re.findall(r"\| ([\d.]+) % (?:\|$|\| [\d.]+ % \|$)", section(name), re.M)]
    assert len(shares) >= 6
    assert min(shares) >= 93


def test_false_positives_are_rare_enough() -> None:
    shares = [float(s) for name in ("false-positives", "decisions") for s in _last_column(section(name))]
    assert len(shares) >= 9
    assert max(shares) <= 5.5


def test_races_end_with_the_winner_of_the_full_grid() -> None:
    lines = [line.split("|") for line in section("racing").splitlines() if "%" in line]
    assert len(lines) >= 5
    assert all(float(line[4].rstrip(" %")) >= 95 for line in lines)


def _last_column(text: str) -> list[str]:
    return re.findall(r"([\d.]+) % \|$", text, re.M)
