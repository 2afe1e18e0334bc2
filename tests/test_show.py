"""What a person asks of a finished run: one question as the model saw it, the winner, the last report, an option."""

from pathlib import Path

import pytest

from crossover.eval.cli.main import main
from crossover.eval.run.winner import cell_named
from crossover.eval.store.recorded import read_recorded

ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(openings_run: Path) -> Path:
    """Return the store of a finished run."""
    return openings_run / "mlruns"


def test_a_question_is_shown_as_the_model_saw_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shots = next(r for r in read_recorded(store).results if r.cell.method.name == "retrieved_demos")
    before = {f: f.read_bytes() for f in store.rglob("*") if f.is_file()}
    assert main(["show", shots.key[:8], "test-7", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    row = next(r for r in shots.rows if r.id == "test-7")
    assert "example test-7, one of 60" in out
    assert "text: invoice test 7 " in out
    # Three demonstrations, each answered by its gold label.
    assert out.count("assistant (rendered again from the saved program):") == 3
    assert f"raw answer:\n  {row.raw}\n" in out
    assert "gold:\n  label: billing\n" in out
    assert f"score: {row.score:g}\n" in out
    assert {f: f.read_bytes() for f in store.rglob("*") if f.is_file()} == before


def test_without_an_example_the_first_wrong_one_is_shown(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = next(r for r in read_recorded(store).results if r.cell.method.name == "zero_shot")
    wrong = next(r for r in bare.rows if r.score != 1.0)
    assert main(["show", bare.key, "--store", str(store)]) == 0
    assert f"example {wrong.id}, one of 60" in capsys.readouterr().out
    assert main(["show", bare.key, "nope", "--store", str(store)]) == 2
    assert f"error: {bare.key}: no example 'nope'; use one of " in capsys.readouterr().err


def test_the_winner_is_a_cell_by_name(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = cell_named(store, "winner")
    assert cell_named(store, "winner.openings").key == chosen.key
    assert main(["export", "winner", str(tmp_path / "out"), "--store", str(store)]) == 0
    assert (tmp_path / "out" / "program.json").exists()
    assert main(["show", "winner.nope", "--store", str(store)]) == 2
    assert "use one of winner.openings" in capsys.readouterr().err


def test_report_without_a_run_takes_the_last_and_names_what_it_wrote(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--store", str(store)]) == 0
    last = capsys.readouterr().out
    assert main(["report", "openings", "--store", str(store), "-o", str(tmp_path / "r.md")]) == 0
    assert f"wrote {tmp_path / 'r.md'}" in capsys.readouterr().err
    assert main(["report", str(store.parent / "openings.yaml"), "--store", str(store)]) == 0
    assert capsys.readouterr().out == last


def test_ls_shows_the_options_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "sft"]) == 0
    assert "  alpha: 32  (int)\n      LoRA's scale is alpha / rank.\n" in capsys.readouterr().out
    assert main(["ls", "gepa"]) == 0
    assert "  metric_calls: None  (int | None)\n" in capsys.readouterr().out
    assert main(["ls", "stf"]) == 2
    assert capsys.readouterr().err == "error: nothing is named `stf`; did you mean `sft`?\n"


def test_the_reference_is_what_the_methods_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--markdown"]) == 0
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == capsys.readouterr().out
