"""`compare` and `recommend`: judge again what is measured, from the store or from files of other tools."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
from factories import make_cell, make_result, right

from crossover.eval.cli.main import main
from crossover.eval.experiment.spec import Experiment, Needs, Prices
from crossover.eval.store.cells import cell_folder, save_result
from crossover.eval.store.foreign import read_scores
from crossover.eval.store.recorded import find_cell, read_recorded, record
from crossover.eval.store.result import Result, append_rows
from crossover.models.errors import UserError
from crossover.models.usage import Usage


def write_scores(file: Path, scores: Iterable[float | None], **extra: object) -> str:
    rows = [{"id": f"e{i}", "score": s, **extra} for i, s in enumerate(scores)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(file)


def keep(store: Path, *results: Result) -> None:
    for r in results:
        save_result(store, r)
        append_rows(cell_folder(store, r.key) / "rows.jsonl", r.rows)


@pytest.fixture
def recorded(store: Path) -> Path:
    """Return a store where a prompt that is dear to serve and training that is dear to start are as good."""
    results = [
        replace(make_result(make_cell("retrieved_demos"), right(240, 300), serve_seconds=30, ms=90), key="aa11"),
        replace(make_result(make_cell("sft"), right(240, 300), serve_seconds=3, fit=Usage(seconds=10_000)), key="bb22"),
        replace(make_result(make_cell("zero_shot"), right(60, 300), serve_seconds=1), key="bb33"),
    ]
    keep(store, *results)
    experiment = Experiment("support", (), (), (), prices=Prices(machine_hour_usd=3.60), needs=Needs(min_score=0.5))
    record(store, experiment, [r.key for r in results])
    return store


def choice(capsys: pytest.CaptureFixture[str], store: Path, *flags: str) -> str | None:
    assert main(["recommend", "--store", str(store), "--json", *flags]) == 0
    data = json.loads(capsys.readouterr().out)
    return next((str(a["name"]) for a in data["arms"] if a["id"] == data["verdict"][0]["choose"]), None)


def test_other_needs_change_the_recommendation(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choice(capsys, recorded, "--volume", "1000") == "retrieved_demos"
    assert choice(capsys, recorded, "--volume", "1000000") == "sft"
    assert choice(capsys, recorded, "--volume", "1000", "--max-p95-ms", "60") == "sft"
    assert choice(capsys, recorded, "--volume", "1000", "--max-usd-per-month", "0.5") == "retrieved_demos"
    assert choice(capsys, recorded, "--min-score", "0.99") is None


def test_needs_that_are_not_given_stay_as_they_were(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "support", "--store", str(recorded)]) == 0
    out = capsys.readouterr().out
    assert "USE sft" in out
    assert main(["recommend", "--store", str(recorded), "--min-score", "0", "--max-p95-ms", "10"]) == 0
    assert "NO VERDICT" in capsys.readouterr().out


def test_the_choice_is_shown_at_other_traffic_and_prices(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--store", str(recorded), "--details"]) == 0
    table = capsys.readouterr().out.partition("the choice at other traffic and prices")[2].splitlines()
    assert table[1].split("  ")[0] == "requests a month"
    assert table[2].split() == ["1,000", *["retrieved_demos"] * 3]
    assert table[-1].split() == ["10,000,000", *["sft"] * 3]


def test_recommending_changes_nothing_in_the_store(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f: f.read_bytes() for f in recorded.rglob("*") if f.is_file()}
    choice(capsys, recorded, "--volume", "5")
    assert {f: f.read_bytes() for f in recorded.rglob("*") if f.is_file()} == before


def test_the_last_run_is_the_default_and_names_are_told(recorded: Path) -> None:
    other = Experiment("a b/c", (), (), ())
    record(recorded, other, ["bb33"])
    assert (read_recorded(recorded).experiment, read_recorded(recorded, "support").needs.min_score) == ("a b/c", 0.5)
    assert [r.key for r in read_recorded(recorded, "a b/c").results] == ["bb33"]
    record(recorded, Experiment("a/b c", (), (), ()), ["aa11"])
    assert [r.key for r in read_recorded(recorded, "a b/c").results] == ["bb33"]
    with pytest.raises(UserError, match="no run is named 'x'; use one of a b/c, a/b c, support"):
        read_recorded(recorded, "x")


def test_a_cell_that_is_gone_is_named(recorded: Path) -> None:
    (recorded / "cells" / "bb22" / "result.json").unlink()
    with pytest.raises(UserError, match="cell bb22 of 'support' is gone"):
        read_recorded(recorded)
    (recorded / "comparisons" / "support.json").write_text('{"cells": []}')
    with pytest.raises(UserError, match="not readable as a recorded run"):
        read_recorded(recorded)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["recommend"],
            "error: mlruns: no finished run is recorded here; `crossover run` first, or name the --store",
        ),
        (["compare", "a.jsonl"], "error: compare a.jsonl: one run alone; name two or more"),
        (["compare", "a", "b"], "error: a: neither a file nor a finished cell of mlruns; see `crossover ls runs`"),
        (["compare", "a", "a"], "error: a a: one stands twice; name different runs or files"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert capsys.readouterr().err == message + "\n"
    assert list(tmp_path.iterdir()) == []


def test_a_budget_needs_a_volume(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--store", str(recorded), "--max-usd-per-month", "5"]) == 2
    assert capsys.readouterr().err == "error: --max-usd-per-month 5 without a volume; add --volume\n"


def test_files_of_other_tools_are_compared_pair_by_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write_scores(tmp_path / "old.jsonl", right(60, 100))
    new = write_scores(tmp_path / "new.jsonl", [*right(80, 99), None])
    assert main(["compare", old, new, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(a["name"], a["score"]["n"], a["score"]["failed"]) for a in data["arms"]] == [
        ("old", 100, 0),
        ("new", 99, 1),
    ]
    (contrast,) = data["contrasts"]
    assert (contrast["a"], contrast["b"], contrast["verdict"]) == ("new-0", "old-0", "better")
    assert data["arms"][0]["cost_usd"]["per_1k_requests"] is None


def test_documents_of_both_versions_name_the_arm_that_they_chose(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", "--store", str(recorded), "--json"]) == 0
    now = json.loads(capsys.readouterr().out)
    arm = next(a for a in now["arms"] if a["id"] == now["verdict"][0]["choose"])
    # The first version named arms by their names.
    then = {"schema_version": 1, "arms": [{"name": arm["name"], "cells": arm["cells"]}]}
    then["verdict"] = [{"task": "intents", "choose": arm["name"]}]
    files = [tmp_path / "now.json", tmp_path / "then.json"]
    for file, document in zip(files, (now, then), strict=True):
        file.write_text(json.dumps(document))
        other = next(a["id"] for a in now["arms"] if a is not arm)
        assert main(["compare", str(file), other, "--store", str(recorded), "--json"]) == 0
        assert {a["id"] for a in json.loads(capsys.readouterr().out)["arms"]} == {arm["id"], other}
    files[0].write_text(json.dumps(now | {"verdict": []}))
    assert main(["compare", *map(str, files), "--store", str(recorded)]) == 2
    assert "its verdicts choose 0 arms; name one cell of it by its key" in capsys.readouterr().err


def test_seeds_and_clusters_of_a_file_count(tmp_path: Path) -> None:
    lines = [
        {"id": str(i), "score": float(i % 3 > seed % 2), "seed": seed, "cluster": i // 5, "usd": 0.01, "seconds": 0.2}
        for seed in (0, 1)
        for i in range(50)
    ]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = read_scores(tmp_path / "runs.jsonl")
    assert [r.cell.seed for r in results] == [0, 1]
    assert results[0].clusters["7"] == "1"
    assert (results[1].rows[3].usd, results[1].latency.seconds[:1]) == (0.01, (0.2,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1, "score": 1, "split": "val"}', "a.jsonl:1: scored on 'val'; only test scores are compared"),
        ('{"id": 1, "score": 1, "selected_on": "test"}', "a.jsonl:1: selected on 'test'"),
        ('{"id": 1, "score": 1}\n{"id": 1, "score": 0}', "a.jsonl:2: id '1' stands twice"),
        ('{"id": 1, "score": 7}', "a.jsonl:1: score 7 is not a number from 0 to 1"),
        ('{"id": 1, "score": NaN}', "a.jsonl:1: score nan is not a number from 0 to 1"),
        ('{"id": 1, "value": 7}', r"a.jsonl:1: no `id` and `score` \(id, value\)"),
        ("[1]", r"a.jsonl:1: no `id` and `score` \(list\)"),
        ("not json", "a.jsonl:1: not JSON"),
        ("", "a.jsonl: no rows"),
        ("\udcff\udcfe", "a.jsonl:1: not UTF-8"),
        ('{"id": 1, "score": 1, "seed": "a"}', "a.jsonl:1: seed 'a' is not a whole number"),
        ('{"id": 1, "score": 1, "usd": -1}', "a.jsonl:1: usd -1 is not a number from 0 up"),
        ('{"id": 1, "score": 1}\n{"id": 2, "score": 1, "seed": 1}', "seed 1 has other ids than the first seed"),
        ('{"id": 1, "score": 1, "cluster": "x"}\n{"id": 2, "score": 1}', "id '2' has no `cluster` and others have"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "a.jsonl")


def test_files_with_other_examples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write_scores(tmp_path / f"{n}.jsonl", right(5, n)) for n in (10, 11)]
    assert main(["compare", *files]) == 2
    assert "were scored on different examples (10 of split" in capsys.readouterr().err


def test_cells_are_found_by_the_start_of_their_key(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_cell(recorded, "aa").cell.method.name == "retrieved_demos"
    with pytest.raises(UserError, match=r"bb: 2 cells start so \(bb22, bb33\)"):
        find_cell(recorded, "bb")
    assert main(["compare", "bb33", "bb22", "--store", str(recorded)]) == 0
    assert "\nzero_shot        +0.600  " in capsys.readouterr().out.partition("sft against")[2]


def test_files_of_one_name_are_arms_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, score in (("before", 0), ("after", 1)):
        (tmp_path / name).mkdir()
        rows = "".join(json.dumps({"id": i, "score": score}) + "\n" for i in range(60))
        (tmp_path / name / "scores.jsonl").write_text(rows)
    files = [str(tmp_path / name / "scores.jsonl") for name in ("before", "after")]
    assert main(["compare", *files, "--json"]) == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert [(a["method"], a["score"]["mean"], a["seeds"]) for a in sorted(arms, key=lambda a: a["score"]["mean"])] == [
        (file.removesuffix(".jsonl"), score, [0]) for file, score in zip(files, (0.0, 1.0), strict=True)
    ]


def test_a_cell_is_compared_with_a_file_and_with_its_like(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(recorded, replace(find_cell(recorded, "bb22"), key="cc44"))
    mine = write_scores(tmp_path / "mine.jsonl", right(280, 300))
    assert main(["compare", "bb22", "cc44", mine, "--store", str(recorded), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [a["name"] for a in data["arms"]] == [
        f"sft cell=bb22, {tiny.NAME}",
        f"sft cell=cc44, {tiny.NAME}",
        "mine, other tool",
    ]
    assert set(data["split_sha256"]) == {"intents"}


def test_cells_of_different_tasks_are_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = find_cell(recorded, "aa11")
    keep(recorded, replace(other, key="dd55", cell=replace(other.cell, task="module")))
    assert main(["compare", "aa11", "dd55", "--store", str(recorded)]) == 2
    assert "cells of different tasks (intents, module)" in capsys.readouterr().err


def test_a_record_holds_needs_and_prices(recorded: Path) -> None:
    found = read_recorded(recorded, "support")
    assert asdict(found.prices)["machine_hour_usd"] == 3.60
    assert [r.key for r in found.results] == ["aa11", "bb22", "bb33"]
