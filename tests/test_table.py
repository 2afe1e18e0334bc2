"""A comparison is shown the same way every time, in every form."""

import fcntl
import json
import math
import os
import pty
import re
import struct
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from factories import make_cell, make_result, right

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.cli.main import main
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.schema import to_json
from crossover.eval.report.summary import summary, terminal_width
from crossover.eval.report.table import render
from crossover.eval.report.text import WIDTH, figure, money, small_money
from crossover.eval.store.recorded import read_recorded
from crossover.models.usage import Usage
from crossover.programs.retrieval.ranking import Ranking

GOLDEN = """\
experiment support

intents   split abababababab, 200 test examples

arm              score  95 % interval    n  failed  p50 ms  p95 ms    fit $  $ per 1k  tokens
sft              0.760  0.696 - 0.814  200       0      24      29    0.042    0.0063     105
retrieved_demos  0.750  0.686 - 0.805  200       0      94      99        0     0.042     105
few_shot !       0.474  0.404 - 0.544  190      10      44      49        0    0.0069     105
zero_shot        0.200  0.150 - 0.261  200       0      44      49  0.00014    0.0069     105

arm              $ per 1k alone
sft                      0.0034
retrieved_demos           0.013
few_shot                 0.0062
zero_shot                0.0062
$ per 1k: the pace of the accuracy pass

! few_shot: 1 demonstrations are test questions
! few_shot: 10 of 200 rows failed, the first by lm: LMServerError: busy
? 1 of 6 comparisons is inconclusive: 200 examples show differences of 0.036 at best
? 1 seed an arm: the spread between seeds is not in the intervals; run --seeds 0,1,2 or more
? failed rows left 3 comparisons with fewer examples (190 at least); see the failed column

use sft
  sft scores 0.76 [0.70, 0.81] on 200 test examples at $0.63 a month for 100,000 requests (no volume is
  stated), the best, and no arm tied with it is over a tenth cheaper; next is retrieved_demos (difference
  +0.01, p = 0.5).
  confidence: moderate
  as good, as far as this test can tell: retrieved_demos
  break-even of sft over retrieved_demos: 1,176 requests
  what would change this:
  - below about 87 requests a month retrieved_demos is over a tenth cheaper than sft
  - at less than $0.0057 per 1,000 requests to retrieved_demos (now $0.042) retrieved_demos is over a tenth
    cheaper than sft
  - up to 190 more test examples would tell sft from retrieved_demos

sft against      difference     95 % interval  p (Holm)       finding  detectable
zero_shot            +0.560  +0.483 to +0.626   < 0.001        better       0.137
few_shot             +0.326  +0.254 to +0.392   < 0.001        better       0.125
retrieved_demos      +0.010  -0.009 to +0.029       0.5  inconclusive       0.036
"""

SUMMARY = """\
USE sft for intents
  sft scores 0.76 [0.70, 0.81] on 200 test examples at $0.63 a month for 100,000 requests
  (no volume is stated), the best, and no arm tied with it is over a tenth cheaper; next is
  retrieved_demos (difference +0.01, p = 0.5).
  As good, as far as this test can tell: retrieved_demos.
  Confidence: moderate.

arm              score         95 %  p95 ms  $ per 1k   fit $  failed    n
sft              0.760  0.696-0.814      29   0.00625  0.0417       0  200
retrieved_demos  0.750  0.686-0.805      99    0.0417       –       0  200
few_shot !       0.474  0.404-0.544      49   0.00694       –      10  190
zero_shot        0.200  0.150-0.261      49   0.00694       –       0  200

! few_shot: 1 demonstrations are test questions
! 1 of 6 comparisons is inconclusive: 200 examples show differences of 0.036 at best
! 1 seed an arm: the spread between seeds is not in the intervals; run --seeds 0,1,2 or more

what would change this:
- below about 87 requests a month retrieved_demos is over a tenth cheaper than sft
- at less than $0.0057 per 1,000 requests to retrieved_demos (now $0.042) retrieved_demos is
  over a tenth cheaper than sft

next: crossover export key-sft-0 ./model

all tables and doubts: the same command with --details
every run, row and artifact: crossover ui
"""
STORES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Return four arms, one of which failed on ten examples and broke a rule."""
    results = [
        make_result(make_cell("zero_shot"), right(40, 200), fit=Usage(seconds=1)),
        make_result(make_cell("few_shot"), [*right(90, 190), *[None] * 10]),
        make_result(make_cell("retrieved_demos"), right(150, 200, shift=3), serve_seconds=60, ms=90),
        make_result(make_cell("sft"), right(152, 200, shift=1), fit=Usage(seconds=300), serve_seconds=9, ms=20),
    ]
    results[1].integrity.append("1 demonstrations are test questions")
    return compare(results, needs=Needs(), prices=Prices(), experiment="support")


def test_the_table_as_a_person_reads_it(comparison: Comparison) -> None:
    assert render(comparison) == GOLDEN
    assert max(map(len, GOLDEN.splitlines())) <= WIDTH


def test_the_json_has_the_keys_of_the_interface(comparison: Comparison) -> None:
    data = to_json(comparison)
    assert list(data) == [
        "schema_version",
        "methodology_version",
        "experiment",
        "complete",
        "partial",
        "split_sha256",
        "compare",
        "arms",
        "contrasts",
        "learning",
        "failures",
        "verdict",
    ]
    arm = data["arms"][1]
    assert {"id", "name", "task", "model", "method", "options", "kind", "train_size", "knowledge", "seeds"} <= set(arm)
    assert {"cells", "prompt_format", "mlflow_run_id"} <= set(arm)
    assert set(arm["score"]) == {"mean", "low", "high", "n", "unparsed", "failed"}
    assert (arm["score"]["n"], arm["score"]["failed"]) == (190, 10)
    first = {"first_token_p50", "cold_p50", "cold_first_token_p50"}
    assert set(arm["latency_ms"]) == {"p50", "p95", "p99", "p95_low", "p95_high", "n", "concurrency"} | first
    assert set(arm["tokens"]) == {"prompt", "cached", "completion"}
    prices = {"per_1k_requests", "per_1k_low", "per_1k_high", "per_1k_basis", "per_1k_alone", "per_1k_correct"}
    assert set(arm["cost_usd"]) == {"fit", "paid", "hosting_per_month", "judge"} | prices
    keys = {"task", "a", "b", "delta", "low", "high", "p", "p_adjusted", "detectable", "verdict"}
    assert all(set(c) == keys for c in data["contrasts"])
    verdict, ids = data["verdict"][0], {a["id"] for a in data["arms"]}
    assert {"task", "choose", "because", "confidence", "cautions", "break_even"} <= set(verdict)
    assert {verdict["choose"], *verdict["ties"], *(c[x] for c in data["contrasts"] for x in "ab")} <= ids


def test_an_arm_has_a_bare_method_and_the_options_that_differ_from_its_defaults() -> None:
    steps = [{"name": "gepa", "options": {}}, {"name": "sft", "options": {"rank": 8}}]
    cells = [
        make_cell("few_shot", options={"demos": 4}),
        make_cell("retrieved_demos", options={"demos": 3, "index": "bm25"}),
        make_cell("chain", options={"steps": steps}),
    ]
    data = to_json(
        compare([make_result(c, right(5, 10)) for c in cells], needs=Needs(), prices=Prices(), experiment="x")
    )
    assert [(a["name"], a["method"], a["options"], a["kind"]) for a in data["arms"]] == [
        ("few_shot demos=4", "few_shot", {}, "in_context"),
        ("retrieved_demos demos=3 index=bm25", "retrieved_demos", {"demos": 3}, "in_context"),
        ("gepa > sft rank=8", "chain", {"steps": steps}, "mixed"),
    ]


def test_numbers_that_json_cannot_hold_are_null() -> None:
    results = [make_result(make_cell(m), [None] * 60, usd=None, local=False) for m in ("zero_shot", "few_shot")]
    data = to_json(compare(results, needs=Needs(), prices=Prices(), experiment="x"))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["arms"][0]["score"]["mean"] is None
    assert data["arms"][0]["cost_usd"]["per_1k_requests"] is None
    assert data["verdict"][0]["choose"] is None


@pytest.mark.parametrize(
    ("usd", "text"),
    [(None, "unpriced"), (0.0, "0"), (0.00014, "0.00014"), (0.042, "0.042"), (1.5, "1.50"), (250, "250")],
)
def test_money_keeps_the_digits_that_matter(usd: float | None, text: str) -> None:
    assert money(usd) == text


def test_nothing_of_an_unscored_arm_is_a_number() -> None:
    comparison = compare(
        [make_result(make_cell("zero_shot"), [None] * 60)], needs=Needs(), prices=Prices(), experiment="x"
    )
    assert math.isnan(comparison.arms[0].score.mean)
    assert "nan" not in render(comparison)


def test_the_summary_as_a_person_reads_it(comparison: Comparison) -> None:
    assert summary(comparison, width=92, colored=False) == SUMMARY


@pytest.fixture(scope="module")
def sound(comparison: Comparison) -> Comparison:
    """Return the three arms of which no row failed."""
    return replace(comparison, arms=tuple(a for a in comparison.arms if not a.failed))


@pytest.mark.parametrize("width", [60, 80, 92, 120])
def test_no_line_of_the_summary_is_longer_than_the_width(comparison: Comparison, sound: Comparison, width: int) -> None:
    lines = summary(comparison, width=width, colored=False).splitlines()
    assert max(map(len, lines)) <= width
    lines = summary(sound, width=width, colored=False).splitlines()
    assert max(map(len, lines)) <= width
    bars = [line[-10:] for line in lines if "·" in line]
    assert bars == (["██████▒▒▒·", "██████▒▒▒·", "█▒▒·······"] if width >= 90 else [])


def test_a_name_too_long_for_its_column_gets_a_line_of_its_own(comparison: Comparison) -> None:
    name = "retrieved_demos demos=4, weaviate k=3 collection=squad query=near_vector"
    arms = tuple(replace(a, name=name) if a.name == "zero_shot" else a for a in comparison.arms)
    lines = summary(replace(comparison, arms=arms), width=80, colored=False).splitlines()
    (n,) = [n for n, line in enumerate(lines) if line == name]
    assert lines[n + 1].split()[:2] == ["0.200", "0.150-0.261"]


def test_fields_and_passages_stand_below_the_arms(sound: Comparison) -> None:
    scores = {name: replace(sound.arms[0].score, mean=mean) for name, mean in [("Brand", 0.5), ("Queue (final)", 0.25)]}
    ranking = Ranking(recall=0.875, mrr=0.75, ndcg=0.8, with_gold=40)
    arms = [replace(a, fields=scores, ranking=ranking, knowledge="retrieved") for a in sound.arms]
    lines = summary(replace(sound, arms=tuple(arms)), width=80, colored=False).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("score by field"))
    assert [line.split()[-3:] for line in lines[at : at + 2]] == [
        ["Brand", "Queue", "(final)"],
        ["sft", "0.500", "0.250"],
    ]
    assert "passages, retrieved: recall 0.875, MRR 0.750, nDCG 0.800, 40 questions" in lines
    many = [replace(a, fields={f"a long name {n}": scores["Brand"] for n in range(9)}) for a in arms]
    text = summary(replace(sound, arms=tuple(many)), width=80, colored=False)
    assert text.count("a long name") == 4
    assert "5 more fields, see --details" in text


def test_a_price_by_tokens_counted_here_is_marked_and_explained(sound: Comparison) -> None:
    arms = [replace(a, tokens_estimated=True) for a in sound.arms]
    text = summary(replace(sound, arms=tuple(arms)), width=80, colored=False)
    assert "~0.00" in text
    assert "~ a price by tokens that were counted here: the provider names none" in text
    unpriced = [replace(a, cost=replace(a.cost, per_1k_requests=None)) for a in arms]
    assert "~" not in summary(replace(sound, arms=tuple(unpriced)), width=80, colored=False)


def test_many_arms_are_cut_to_the_best_and_the_chosen(sound: Comparison) -> None:
    arms = [replace(sound.arms[0], name=f"zero_shot {n}") for n in range(20)]
    text = summary(replace(sound, arms=(*arms, *sound.arms)), width=100, colored=False)
    assert sum("·" in line for line in text.splitlines()) == 8
    assert "15 more arms, see --details" in text


def test_the_verdict_is_coloured_by_its_confidence(comparison: Comparison) -> None:
    head, *rest = summary(comparison, width=80, colored=True).splitlines()
    assert head == "\x1b[1;33mUSE sft for intents\x1b[0m"
    assert "\x1b" not in "".join(rest)


@pytest.mark.parametrize(("columns", "width"), [("", 100), ("20", 60), ("80", 80), ("200", 120)])
def test_the_width_is_the_terminals_within_limits(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what `recommend` prints on a pseudo-terminal of that many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as swapped:
        swapped.setattr(sys, "stdout", terminal)
        swapped.setattr(sys, "__stdout__", terminal)
        assert main(["recommend", "openings", "--store", "openings"]) == 0
        terminal.flush()
        shown = b""
        while not shown.endswith(b"openings\r\n"):  # the end of its last command
            shown += os.read(ours, 4096)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_gets_its_width_and_colour_and_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STORES)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = on_terminal(64, monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(64, monkeypatch)
    assert colored.startswith("\x1b[1;33mUSE retrieved_demos")
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain
    assert 60 < max(map(len, plain.splitlines())) <= 64


def test_a_pipe_gets_no_codes_and_details_all_tables(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["recommend", "openings", "--store", str(STORES / "openings")]
    assert main(argv) == 0
    short = capsys.readouterr().out
    assert "\x1b" not in short
    assert short.startswith("USE retrieved_demos")
    assert main([*argv, "--details"]) == 0
    found = read_recorded(STORES / "openings")
    whole = render(compare(found.results, needs=found.needs, prices=found.prices, experiment=found.experiment))
    assert capsys.readouterr().out.startswith(whole)


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (None, "unpriced"),
        (0.0000041, "–"),
        (0.0, "–"),
        (0.01374, "0.0137"),
        (1.5, "1.50"),
        (41.26, "41.3"),
        (1234, "1,230"),
    ],
)
def test_small_money_is_written_as_people_write_it(usd: float | None, text: str) -> None:
    assert small_money(usd) == text


def test_figures_have_three_digits() -> None:
    assert [figure(x) for x in (0.1234, 49.0, 99.96, 2926.4, 1_234_567)] == ["0.123", "49", "100", "2,930", "1,230,000"]
