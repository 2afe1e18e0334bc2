"""What can happen to a store: each fault is named, and nothing damaged or outdated is used in silence."""

import json
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import make_cell, make_result, make_row, right
from openai_server import Served, openai_server
from processes import FORKS, UNTRACKED, command, ended
from remote_experiment import first_word, write_remote

from eval.cli import main
from eval.experiment import Experiment
from eval.measure import append_rows, read_rows
from eval.store.cells import check_fitted, inside, load_result, save_fitted, save_result
from eval.store.lock import holding
from eval.store.recorded import read_recorded, record
from models.load import LoadedModel
from programs.modules.classify import Classify
from programs.task import Fitted, Spent, UserError


def run(file: Path, *flags: str) -> int:
    return main(["run", str(file), "--store", str(file.parent / "mlruns"), "-q", *UNTRACKED, *flags])


@pytest.fixture
def served() -> Iterator[Served]:
    with openai_server(first_word) as server:
        yield server


@pytest.fixture
def done(tmp_path: Path, served: Served) -> Path:
    """Return the file of a finished experiment."""
    file = write_remote(tmp_path, served.url, methods="[zero_shot]")
    assert run(file) == 0
    return file


def short_of_room(size: int, folder: str, argv: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    command(folder, f"{folder}/said", argv, {})


@pytest.mark.parametrize(("size", "methods"), [(1500, "[zero_shot]"), (600, "[{bootstrap: {bootstrapped: 4}}]")])
def test_a_full_disk_is_named_and_costs_nothing_twice(tmp_path: Path, served: Served, size: int, methods: str) -> None:
    file = write_remote(tmp_path, served.url, methods=methods)
    argv = ["run", str(file), "--store", str(tmp_path / "mlruns"), "-q", "-j", "1", *UNTRACKED]
    process = FORKS.Process(target=short_of_room, args=(size, str(tmp_path), argv))
    process.start()
    assert ended(process) == 2
    said = (tmp_path / "said.err").read_text()
    assert "File too large; free some space, and run again, which goes on from there" in said
    assert "Traceback" not in said
    first = len(served.bodies)
    assert first > 0
    assert main(argv) == 0
    rest = len(served.bodies) - first
    assert main([*argv[:3], str(tmp_path / "other"), *argv[4:]]) == 0
    whole = len(served.bodies) - first - rest
    # Of what was answered before the disk was full, one answer was not kept: the one that did not fit.
    assert whole <= first + rest <= whole + 1


def hold_as_nobody(folder: str) -> None:
    with open(f"{folder}/said", "w") as said:
        os.chmod(f"{folder}/mlruns", 0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            with holding(Path(folder) / "mlruns", ["a"], "words"):
                said.write("held")
        except UserError as e:
            said.write(str(e))


def test_a_read_only_store_is_named() -> None:
    # Outside of pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "mlruns").mkdir()
        process = FORKS.Process(target=hold_as_nobody, args=(folder,))
        process.start()
        assert ended(process) == 0
        said = (Path(folder) / "said").read_text()
    assert said.startswith(f"{folder}/mlruns/locks: Permission denied; make it writable, or name another folder with")


def test_a_damaged_line_is_no_torn_one(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [make_row(n, 1.0) for n in range(3)])
    lines = file.read_text().splitlines(keepends=True)
    notes: list[str] = []
    file.write_text("".join(lines[:2]) + lines[2][:-1])
    assert [r.id for r in read_rows(file, notes.append)] == ["e0", "e1"]
    assert "the last line was torn by a crash" in notes[0]
    file.write_text(lines[0] + lines[1][:9] + "\n" + lines[2])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: damaged; move the cell's folder away"):
        list(read_rows(file))


@pytest.mark.parametrize("damage", ["rows.jsonl", "result.json"])
def test_a_finished_cell_that_was_changed_is_not_used(
    done: Path, served: Served, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (file,) = done.parent.glob(f"mlruns/cells/*/{damage}")
    file.write_text(file.read_text().replace('"score": 0.0', '"score": 1.0').replace('{\n "key"', '\n "key"'))
    before = len(served.bodies)
    assert run(done) == 2
    assert f"{damage}: " in (said := capsys.readouterr().err)
    assert "move the cell's folder away and run again, or restore it" in said
    assert len(served.bodies) == before


def test_changed_data_is_said_and_measured_anew(done: Path, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    test = done.parent / "test.jsonl"
    test.write_text(test.read_text().replace("of 201", "of 2010"))
    before = len(served.bodies)
    assert run(done) == 0
    assert "words: its data is not that of the last run; nothing measured on the old is used" in capsys.readouterr().err
    assert len(served.bodies) - before == 12 + 2 + 30
    assert run(done) == 0
    assert "not that of the last run" not in capsys.readouterr().err


def test_another_fit_does_not_continue_the_rows_of_the_first(tmp_path: Path, embedded: LoadedModel) -> None:
    def fitted(*demos: dict[str, str]) -> Fitted:
        program = Classify(["text"], "label", [])
        program.predictors()[0].demos = list(demos)
        return Fitted(program, embedded.lm, Spent())

    assert not save_fitted(tmp_path, fitted())
    append_rows(tmp_path / "rows.jsonl", [make_row(0, 1.0)])
    assert not save_fitted(tmp_path, fitted())
    assert (tmp_path / "rows.jsonl").exists()
    assert save_fitted(tmp_path, fitted({"text": "a", "label": "b"}))
    (aside,) = tmp_path.glob("rows.jsonl*")
    assert aside.name != "rows.jsonl"


def test_a_corrupt_adapter_is_named(tmp_path: Path, embedded: LoadedModel) -> None:
    weights = tmp_path / "fit" / "best"
    weights.mkdir(parents=True)
    (weights / "adapter_model.safetensors").write_bytes(bytes(100))
    save_fitted(tmp_path, Fitted(Classify(["text"], "label", []), embedded.lm, Spent(), artifact=weights))
    check_fitted(tmp_path)
    (weights / "adapter_model.safetensors").write_bytes(bytes(99))
    with pytest.raises(UserError, match="program or weights are not those that were fitted"):
        check_fitted(tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "best/../../x", "link"])
def test_no_name_in_an_artifact_leads_out_of_its_folder(tmp_path: Path, embedded: LoadedModel, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UserError, match="leads out of the folder"):
        inside(tmp_path, name)
    save_fitted(tmp_path, Fitted(Classify(["text"], "label", []), embedded.lm, Spent()))
    facts = json.loads((tmp_path / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps(facts | {"artifact": name}))
    with pytest.raises(UserError, match="leads out of the folder"):
        check_fitted(tmp_path)


def test_a_clock_that_goes_backwards_does_not_mislead(tmp_path: Path) -> None:
    for n, name in enumerate(("first", "second")):
        result = make_result(make_cell("zero_shot", seed=n), right(3, 5))
        save_result(tmp_path, result)
        append_rows(tmp_path / "cells" / result.key / "rows.jsonl", list(result.rows))
        save_result(tmp_path, result)
        record(tmp_path, Experiment(name, (), (), ()), [result.key])
        # The clock is set back by a day after each run.
        os.utime(tmp_path / "comparisons" / f"{name}.json", (1e9 - 86_400 * n, 1e9 - 86_400 * n))
    assert read_recorded(tmp_path).experiment == "second"
    assert load_result(tmp_path, "key-zero_shot-1") is not None
