"""A race on the small model: losers stop early, the winner is read to the end, and everything says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from factories import make_cell, make_result, right
from openings import write_openings
from processes import UNTRACKED

from crossover.eval.analysis.compare import compare
from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.recorded import read_recorded
from crossover.eval.store.result import read_rows

METHODS = "[zero_shot, few_shot: {demos: 3}, retrieved_demos: {demos: 3}]"


def run(file: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Run the experiment and return its JSON."""
    store = ["--store", str(file.parent / "mlruns"), *UNTRACKED]
    assert main(["run", str(file), *store, "--no-progress", "--json", *flags]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_losers_are_dropped_and_the_winner_is_read_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_openings(tmp_path, METHODS, more="racing: true\n")
    data = run(file, capsys)
    arms = {a["name"].partition(" ")[0]: a for a in data["arms"]}
    assert arms["retrieved_demos"]["dropped"] is None
    assert arms["retrieved_demos"]["score"]["n"] == 60
    loser = arms["zero_shot"]
    assert loser["dropped"]["of"] == 60
    assert loser["score"]["n"] + loser["score"]["failed"] == loser["dropped"]["after"] < 60
    (verdict,) = data["verdict"]
    assert verdict["choose"] == arms["retrieved_demos"]["id"]
    assert f"zero_shot after {loser['dropped']['after']} of 60 examples" in verdict["because"]
    assert any("dropped in the race" in c for c in verdict["cautions"])
    # The same command again has nothing to do, and says the same.
    assert run(file, capsys) == data

    rows = {f.parent.name: len(list(read_rows(f))) for f in (tmp_path / "mlruns").glob("cells/*/rows.jsonl")}
    assert sum(rows.values()) == sum(a["score"]["n"] + a["score"]["failed"] for a in data["arms"])
    # Without racing the dropped arms are read to the end, from where they stopped.
    kept = (tmp_path / "mlruns" / "cells" / loser["id"] / "rows.jsonl").read_bytes()
    whole = run(file, capsys, "--set", "racing=false")
    assert {a["score"]["n"] + a["score"]["failed"] for a in whole["arms"]} == {60}
    assert (tmp_path / "mlruns" / "cells" / loser["id"] / "rows.jsonl").read_bytes().startswith(kept)


def test_an_arm_that_left_a_race_knows_the_clusters_of_the_whole_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_openings(tmp_path, "[zero_shot, retrieved_demos: {demos: 3}]", more="racing: true\n")
    test = tmp_path / "test.jsonl"
    rows = [json.loads(line) | {"writer": f"w{n // 2}"} for n, line in enumerate(test.read_text().splitlines())]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run(file, capsys, "--set", "tasks.openings.cluster=writer")
    assert any(a["dropped"] for a in data["arms"])
    results = read_recorded(tmp_path / "mlruns").results
    assert [len(set(r.clusters.values())) for r in results] == [30, 30]


def test_an_interrupted_race_goes_the_same_way_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_openings(tmp_path, METHODS, more="racing: true\n")
    first = run(file, capsys)
    dropped = {a["id"] for a in first["arms"] if a["dropped"]}
    assert dropped
    for keep in (dropped, {}):
        for folder in (tmp_path / "mlruns" / "cells").iterdir():
            if folder.name not in keep:
                (folder / "result.json").unlink()
                lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
                (folder / "rows.jsonl").write_text("".join(lines[:15]))
        store = ["--store", str(tmp_path / "mlruns"), *UNTRACKED]
        assert main(["run", str(file), *store, "--json"]) == 0
        out, err = capsys.readouterr()
        # All arms that there were to choose from count, also those that were dropped before the interruption.
        assert "race: 3 of 3 arms left after 0 examples" in err
        assert [(a["name"], a["score"], a["dropped"]) for a in json.loads(out)["arms"]] == [
            (a["name"], a["score"], a["dropped"]) for a in first["arms"]
        ]


def test_a_dropped_arm_is_contrasted_on_the_examples_that_both_scored() -> None:
    best, loser = make_result(make_cell("few_shot"), right(55, 60)), make_result(make_cell("zero_shot"), right(8, 20))
    loser.dropped = {"after": 20, "of": 60, "by": [best.key]}
    comparison = compare([loser, best], needs=Needs(), prices=Prices(), experiment="x")
    (contrast,) = comparison.contrasts
    assert contrast.difference.n == 20
    # Over its own 20 examples the best arm got all right, not 55 of 60.
    assert contrast.difference.delta == pytest.approx(1 - 8 / 20)
    assert comparison.verdicts[0].choose == "few_shot"
    assert not any("failed rows" in c for c in comparison.cautions["intents"])


def test_a_dropped_arm_never_wins_by_default() -> None:
    best, loser = make_result(make_cell("few_shot"), right(55, 60), ms=900), make_result(make_cell(), right(8, 20))
    loser.dropped = {"after": 20, "of": 60, "by": [best.key]}
    verdict = compare([best, loser], needs=Needs(max_p95_ms=100), prices=Prices(), experiment="x").verdicts[0]
    assert verdict.choose is None
    assert "dropped in the race after 20 of 60 examples" in verdict.because


def test_a_dropped_result_stands_only_beside_what_beat_it() -> None:
    loser = make_result(make_cell(), right(8, 20))
    assert loser.stands(racing=False, planned=[])
    loser.dropped = {"after": 20, "of": 60, "by": ["winner"]}
    assert loser.stands(racing=True, planned=["winner", "other"])
    assert not loser.stands(racing=True, planned=["other"])
    assert not loser.stands(racing=False, planned=["winner"])


def test_a_need_that_could_rule_the_winner_out_is_a_doubt_about_racing(tmp_path: Path) -> None:
    file = write_openings(tmp_path, METHODS, more="racing: true\nneeds: {max_p95_ms: 100}\n")
    experiment, problems = read_experiment(file)
    assert experiment is not None
    assert experiment.racing
    assert [(p.level, p.what.partition(" by ")[0]) for p in problems] == [("warning", "`racing` drops arms")]
    assert not any("racing" in p.what for p in read_experiment(write_openings(tmp_path, METHODS))[1])
