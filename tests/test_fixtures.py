"""Two recorded experiments of the small model, one that prompting wins and one that training wins, judged whole.

`python benchmarks/record_fixtures.py` records them anew; what is asserted here is what must not depend on a machine's
speed on one day.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.compare import Comparison, compare
from crossover.eval.analysis.racing import replay
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.cli.main import main
from crossover.eval.store.recorded import Recorded, read_recorded

FIXTURES = Path(__file__).parent / "fixtures"


def judge(name: str) -> tuple[Recorded, Comparison, Verdict]:
    found = read_recorded(FIXTURES / name)
    comparison = compare(found.results, needs=found.needs, prices=found.prices, experiment=found.experiment)
    return found, comparison, comparison.verdicts[0]


def arm(comparison: Comparison, start: str) -> Arm:
    return next(a for a in comparison.arms if a.name.startswith(start))


def test_showing_the_nearest_demonstrations_wins_where_the_first_word_tells() -> None:
    _, comparison, verdict = judge("openings")
    assert verdict.choose == "retrieved_demos demos=4"
    assert verdict.confidence == "moderate"
    assert verdict.ties == ()
    assert "significantly better than the next, few_shot demos=4" in verdict.because
    assert arm(comparison, "sft").secondary["macro_f1"] < arm(comparison, "retrieved").secondary["macro_f1"]


def test_training_wins_where_the_answer_must_be_read_off() -> None:
    _, comparison, verdict = judge("wanted")
    assert verdict.choose is not None
    assert verdict.choose.startswith("sft ")
    assert [c.finding for c in comparison.contrasts if c.a == verdict.choose] == ["better", "better"]
    assert verdict.ties == ()


def test_a_challenger_that_is_worse_has_no_break_even() -> None:
    assert judge("openings")[2].break_even is None


def test_the_break_even_is_that_of_the_rows() -> None:
    found, comparison, verdict = judge("wanted")
    tuned, prompt = arm(comparison, "sft"), arm(comparison, "retrieved_demos")
    assert verdict.break_even is not None
    assert (verdict.break_even.start, verdict.break_even.run) == (prompt.name, tuned.name)
    rate = found.prices.machine_hour_usd / 3600
    seconds = {r.cell.method.name: r for r in found.results}
    trained, shown = seconds["sft"], seconds["retrieved_demos"]
    extra = rate * (trained.fit.seconds - shown.fit.seconds)
    saving = rate * (shown.serve_seconds - trained.serve_seconds) / 150
    assert verdict.break_even.value == pytest.approx(extra / saving)
    # It was served in one piece, so that nothing is known of how the machine's speed varies.
    assert (verdict.break_even.low, verdict.break_even.high) == (None, None)


@pytest.mark.parametrize(("name", "winner"), [("openings", "retrieved_demos"), ("wanted", "sft")])
def test_recommend_says_the_same_and_other_needs_say_otherwise(
    name: str, winner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(FIXTURES / name)
    assert main(["recommend", name, "--store", store, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [a["method"] for a in data["arms"] if a["id"] == data["verdict"][0]["choose"]] == [winner]
    assert main(["recommend", name, "--store", store, "--json", "--min-score", "0.95"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"][0]["confidence"] == "abstain"


@pytest.mark.parametrize("name", ["openings", "wanted"])
def test_a_race_over_the_recorded_grid_keeps_the_winner(name: str) -> None:
    found, _, _ = judge(name)
    table = np.array([[np.nan if r.score is None else r.score for r in result.rows] for result in found.results])
    best = int(np.argmax(np.nan_to_num(table).sum(axis=1)))
    races = [replay(table, block=32, seed=seed) for seed in range(40)]
    assert all(best in r.alive for r in races)
    assert np.mean([sum(r.scored) for r in races]) < table.size


def test_cells_of_both_kinds_are_compared_by_key(capsys: pytest.CaptureFixture[str]) -> None:
    keys = [r.key for r in read_recorded(FIXTURES / "wanted").results]
    assert main(["compare", keys[0], keys[2], "--store", str(FIXTURES / "wanted")]) == 0
    assert "split 8e1905d83774, 150 test examples" in capsys.readouterr().out


EVALTRUST = {
    ("openings", "few_shot", "retrieved_demos"): (0.5667, 5.1e-20),
    ("openings", "few_shot", "sft"): (-0.14, 0.0238),
    ("openings", "retrieved_demos", "sft"): (-0.7067, 6.7e-31),
    ("wanted", "few_shot", "retrieved_demos"): (0.1, 0.0041),
    ("wanted", "few_shot", "sft"): (0.2333, 1.0e-08),
    ("wanted", "retrieved_demos", "sft"): (0.1333, 0.0105),
}
"""Difference and p of each recorded pair, as EvalTrust 0.7.0 finds them (`evaltrust.audit` of a list of records)."""


@pytest.mark.parametrize("pair", EVALTRUST, ids=" ".join)
def test_two_files_of_records_are_compared_as_evaltrust_does(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, *methods = pair
    rows = {r.cell.method.name: r.rows for r in read_recorded(FIXTURES / experiment).results}
    files = [tmp_path / f"{m}.jsonl" for m in methods]
    for method, file in zip(methods, files, strict=True):
        lines = [{"id": r.id, "model": method, "score": r.score} for r in rows[method]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["compare", *map(str, files), "--json"]) == 0
    (contrast,) = json.loads(capsys.readouterr().out)["contrasts"]
    delta, p = EVALTRUST[pair]
    assert contrast["delta"] == pytest.approx(delta, abs=0.01)
    assert contrast["p"] == pytest.approx(p, rel=0.02, abs=1e-6)
