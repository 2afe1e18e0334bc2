"""A comparison is shown the same way every time, in every form."""

import json
import math

import pytest
from factories import make_cell, make_result, right

from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.report.schema import to_json
from crossover.eval.report.table import render
from crossover.eval.report.text import WIDTH, money
from crossover.models.usage import Usage

GOLDEN = """\
experiment support

intents   split abababababab, 200 test examples

arm              score  95 % interval    n  failed  p50 ms  p95 ms    fit $  $ per 1k  tokens
sft              0.760  0.696 - 0.814  200       0      24      29    0.042    0.0063     105
retrieved_demos  0.750  0.686 - 0.805  200       0      94      99        0     0.042     105
few_shot !       0.474  0.404 - 0.544  190      10      44      49        0    0.0069     105
zero_shot        0.200  0.150 - 0.261  200       0      44      49  0.00014    0.0069     105

! few_shot: 1 demonstrations are test questions
! few_shot: 10 of 200 rows failed, the first by lm: LMServerError: busy
? 1 of 6 comparisons are inconclusive: 200 examples show differences of 0.036 at best
? 1 seed an arm: the spread between seeds is not in the intervals; run --seeds 0,1,2 or more
? failed rows left 3 comparisons with fewer examples (190 at least); see the failed column

use sft
  sft scores 0.76 [0.70, 0.81] on 200 test examples at $0.0063 per 1,000 requests, the best and the cheapest
  of those not significantly worse; next is retrieved_demos (difference +0.01, p = 0.5).
  confidence: moderate
  as good, as far as this test can tell: retrieved_demos
  break-even of sft over retrieved_demos: 1,176 requests (1,176 to 1,176)
  what would change this:
  - below about 1,200 requests in all, fitting included, retrieved_demos is cheaper than sft
  - at less than $0.0063 per 1,000 requests (now $0.042) retrieved_demos is cheaper than sft
  - up to 190 more test examples would tell sft from retrieved_demos

sft against      difference     95 % interval  p (Holm)       finding  detectable
zero_shot            +0.560  +0.483 to +0.626   < 0.001        better       0.137
few_shot             +0.326  +0.254 to +0.392   < 0.001        better       0.129
retrieved_demos      +0.010  -0.009 to +0.029       0.5  inconclusive       0.036
"""


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
        "partial",
        "split_sha256",
        "arms",
        "contrasts",
        "learning",
        "failures",
        "cautions",
        "verdict",
    ]
    arm = data["arms"][1]
    assert {"cell", "task", "model", "method", "train_size", "knowledge", "seed", "mlflow_run_id"} <= set(arm)
    assert set(arm["score"]) == {"mean", "low", "high", "n", "unparsed", "failed"}
    assert (arm["score"]["n"], arm["score"]["failed"]) == (190, 10)
    first = {"first_token_p50", "cold_p50", "cold_first_token_p50"}
    assert set(arm["latency_ms"]) == {"p50", "p95", "p99", "n", "concurrency"} | first
    assert set(arm["tokens"]) == {"prompt", "cached", "completion"}
    assert set(arm["cost_usd"]) == {"fit", "per_1k_requests", "paid", "per_1k_correct", "hosting_per_month", "judge"}
    keys = {"task", "a", "b", "delta", "low", "high", "p", "p_holm", "detectable", "verdict"}
    assert all(set(c) == keys for c in data["contrasts"])
    assert {"task", "choose", "because", "confidence", "break_even_requests"} <= set(data["verdict"][0])


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
