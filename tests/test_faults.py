"""What can happen to a store: each fault is named, and nothing damaged or outdated is used in silence."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from factories import make_row
from openai_server import Messages, Served, openai_server
from openings import write_openings
from processes import FORKS, UNTRACKED, command, ended, start, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.eval.run.latency import latency_requests
from crossover.eval.store.cells import check_fitted, inside, load_result, save_fitted
from crossover.eval.store.lock import holding
from crossover.eval.store.recorded import read_recorded
from crossover.eval.store.result import append_rows, read_rows
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.usage import Usage
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Fitted


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


def test_a_verdict_is_printed_even_if_it_cannot_be_kept(done: Path) -> None:
    argv = ["run", str(done), "--store", str(done.parent / "mlruns"), "--set", "needs={min_score: 0.01}", *UNTRACKED]
    room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (400, 400))
    command = [sys.executable, "-W", "ignore", "-m", "crossover.eval.cli.main", *argv]
    ran = subprocess.run(command, cwd=done.parent, capture_output=True, text=True, timeout=300, preexec_fn=room)
    assert ran.returncode == 0, ran.stderr
    assert "zero_shot" in ran.stdout
    assert "File too large" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
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


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_run_that_is_ended_has_kept_every_row_that_was_answered(tmp_path: Path, signals: list[int]) -> None:
    """One answer never comes, so that no later row could have carried the earlier ones to the disk."""
    released = threading.Event()

    def answer(model: str, messages: Messages) -> str:
        if "of 205" in messages[-1]["content"]:
            released.wait()
        return first_word(model, messages)

    def answered() -> list[str]:
        return [line for file in tmp_path.glob("mlruns/cells/*/rows.jsonl") for line in file.open()]

    with openai_server(answer) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        process = start(tmp_path, tmp_path / "said", "run", str(file), "-q", "-j", "2", *UNTRACKED)
        wait_for(lambda: len(answered()) == 11)
        for n, number in enumerate(signals):
            assert process.pid is not None
            os.kill(process.pid, number)
            wait_for(lambda n=n: n or "Ctrl-C" in (tmp_path / "said.err").read_text() or not process.is_alive())
        process.join()
        assert len(answered()) == 11
        before = len(served.bodies)
        released.set()
        assert run(file) == 0
        assert len(served.bodies) - before == 1 + 2 + latency_requests()[0]


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("verb", ["report", "init", "init of data", "index", "export"])
def test_a_verb_that_finds_no_room_leaves_what_was_there(
    done: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder, store = done.parent, str(done.parent / "mlruns")
    (folder / "corpus.jsonl").write_text("".join(f'{{"id": "{n}", "text": "fact {n}"}}\n' for n in range(99)))
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"question {n} of it,kind{n % 2}\n" for n in range(40)))
    (folder / "report.html").write_text("the old report")
    argv = {
        "report": ["report", str(done), "--store", store, "-o", str(folder / "report.html")],
        "init": ["init", str(folder / "new")],
        "init of data": ["init", str(folder / "rows.csv"), "--yes"],
        "index": ["index", str(folder / "corpus.jsonl"), "-q", "--store", str(folder / "other")],
        "export": ["export", "winner", str(folder / "out"), "--store", store],
    }[verb]
    if verb == "export":
        argv[1] = next((folder / "mlruns" / "cells").iterdir()).name
    capsys.readouterr()
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    for size in (0, 100, 400):
        with room(size):
            assert main(argv) == 2
        said = capsys.readouterr().err
        assert "File too large" in said or "No space left" in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
    assert main(argv) == 0


TRAINED = "[sft: {epochs: 2, rank: 4, bf16: false, checkpoint_minutes: 0}]"


def test_a_checkpoint_that_found_no_room_is_named(tmp_path: Path) -> None:
    """The weights fit, and the optimizer's state does not, of which torch does not say why."""
    file = write_openings(tmp_path, TRAINED, test=12)
    argv = ["run", str(file), "--store", str(tmp_path / "mlruns"), "-q", *UNTRACKED]
    process = FORKS.Process(target=short_of_room, args=(300_000, str(tmp_path), argv))
    process.start()
    assert ended(process) == 2
    assert "free some space, and run again, which goes on from there" in (said := (tmp_path / "said.err").read_text())
    assert "could not be fitted" not in said


@contextmanager
def disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Put a small disk of its own under a folder; yield what gives it other options."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount can make a small disk")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_training_goes_on_when_the_disk_has_room_again_and_is_read_from_a_locked_one(
    tmp_path: Path, database: Path
) -> None:
    file, store = write_openings(tmp_path, TRAINED, test=12), tmp_path / "mlruns"

    def tried(*flags: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of a run."""
        code = ended(start(tmp_path, tmp_path / "said", "run", str(file), "-q", "--json", *flags))
        return code, (tmp_path / "said.out").read_text(), (tmp_path / "said.err").read_text()

    with disk(store) as remount:
        for size in ("300k", "1m"):
            remount(f"size={size}")
            code, _, said = tried(*UNTRACKED)
            assert code == 2
            assert "mlruns: No space left on device; free some space, and run again" in said
        remount("size=50m")
        shutil.copy(database, store / "mlflow.db")
        code, told, _ = tried()
        assert code == 0
        remount("ro")
        code, again, said = tried()
        assert (code, again) == (0, told)
        assert "Read-only file system; make it writable, or name another folder with --store" in said
        code, _, said = tried("--seeds", "1")
        assert code == 2
        assert "Traceback" not in said
        assert "Read-only file system; make it writable" in said


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


def test_a_torn_row_is_measured_again_and_not_paid_again(
    tmp_path: Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_remote(tmp_path, served.url, methods="[zero_shot]")
    assert run(file, "--max-calls", "6", "-j", "1") == 2
    (rows,) = tmp_path.glob("mlruns/cells/*/rows.jsonl")
    os.truncate(rows, rows.stat().st_size - 9)
    assert run(file, "-j", "1") == 0
    assert f"{rows}: the last line was torn by a crash; it is cut off and measured again" in capsys.readouterr().err
    assert sorted(r.id for r in read_rows(rows)) == [f"test{n}" for n in range(200, 212)]
    assert len(served.bodies) == 12 + 2 + latency_requests()[0]


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
    assert len(served.bodies) - before == 12 + 2 + latency_requests()[0]
    assert run(done) == 0
    assert "not that of the last run" not in capsys.readouterr().err


def test_another_fit_does_not_continue_the_rows_of_the_first(tmp_path: Path, small: LoadedModel) -> None:
    def fitted(*demos: dict[str, str]) -> Fitted:
        program = Classify(["text"], "label", [])
        program.predictors()[0].demos = list(demos)
        return Fitted(program, small.lm, Usage())

    assert not save_fitted(tmp_path, fitted())
    append_rows(tmp_path / "rows.jsonl", [make_row(0, 1.0)])
    assert not save_fitted(tmp_path, fitted())
    assert (tmp_path / "rows.jsonl").exists()
    assert save_fitted(tmp_path, fitted({"text": "a", "label": "b"}))
    (aside,) = tmp_path.glob("rows.jsonl*")
    assert aside.name != "rows.jsonl"


def test_a_corrupt_adapter_is_named(tmp_path: Path, small: LoadedModel) -> None:
    weights = tmp_path / "fit" / "best"
    weights.mkdir(parents=True)
    (weights / "adapter_model.safetensors").write_bytes(bytes(100))
    save_fitted(tmp_path, Fitted(Classify(["text"], "label", []), small.lm, Usage(), artifact=weights))
    check_fitted(tmp_path)
    (weights / "adapter_model.safetensors").write_bytes(bytes(99))
    with pytest.raises(UserError, match="program or weights are not those that were fitted"):
        check_fitted(tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "best/../../x", "link"])
def test_no_name_in_an_artifact_leads_out_of_its_folder(tmp_path: Path, small: LoadedModel, name: str) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UserError, match="leads out of the folder"):
        inside(tmp_path, name)
    save_fitted(tmp_path, Fitted(Classify(["text"], "label", []), small.lm, Usage()))
    facts = json.loads((tmp_path / "fit.json").read_text())
    (tmp_path / "fit.json").write_text(json.dumps(facts | {"artifact": name}))
    with pytest.raises(UserError, match="leads out of the folder"):
        check_fitted(tmp_path)


def test_a_clock_that_goes_backwards_misleads_nobody(
    tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store, hours = write_remote(tmp_path, served.url, methods="[zero_shot]"), tmp_path / "mlruns", count()
    # An hour back, whenever somebody looks.
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))
    for n, name in enumerate(("first", "second")):
        assert run(file, "--set", f"name={name}", "--limit", str(12 - n)) == 0
        for written in store.rglob("*.json"):
            if written.stat().st_mtime > 1.5e9:
                os.utime(written, (1e9 - 86_400 * n, 1e9 - 86_400 * n))
    assert next(hours) > 2
    for cell in store.glob("cells/*"):
        assert all(row.seconds >= 0 for row in read_rows(cell / "rows.jsonl"))
        result = load_result(store, cell.name)
        assert result is not None
        assert min(result.fit.seconds, result.serve_seconds, *result.latency.seconds) >= 0
    asked = len(served.bodies)
    assert read_recorded(store).experiment == "second"
    assert run(file, "--set", "name=first", "--limit", "12") == 0
    assert len(served.bodies) == asked
    assert read_recorded(store).experiment == "first"


@pytest.mark.parametrize("verb", ["sync", "recommend"])
def test_a_key_read_from_a_file_leads_nowhere_else(done: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    store, victim = done.parent / "mlruns", done.parent / "victim"
    (cell,) = store.glob("cells/*")
    shutil.copytree(cell, victim)
    before = {f: f.read_bytes() for f in victim.rglob("*") if f.is_file()}
    summary = cell / "result.json"
    whole = summary.read_text()
    summary.write_text(whole.replace(f'"key": "{cell.name}"', '"key": "../../victim"'))
    assert main([verb, "--store", str(store)]) == 2
    assert "damaged" in capsys.readouterr().err
    summary.write_text(whole)
    for record in (*store.glob("comparisons/*"), *store.glob("unfinished/*")):
        record.write_text(record.read_text().replace(cell.name, "../../victim"))
    assert main([verb, "--store", str(store)]) == 2
    assert "'../../victim' is no key of a cell" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in victim.rglob("*") if f.is_file()} == before
