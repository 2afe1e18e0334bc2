"""MLflow away, slow or full: the run ends in time, the rows stay here, `crossover sync` sends them once."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from openai_server import openai_server
from processes import ended, start
from remote_experiment import first_word, write_remote
from tracking_server import tracking_server

from crossover.eval.cli.main import main
from crossover.eval.store.lock import holding
from crossover.eval.tracking import background
from crossover.eval.tracking.addresses import artifacts_uri
from crossover.eval.tracking.pending import pending_cells, pending_runs
from crossover.eval.tracking.sync import send_cells
from crossover.eval.tracking.tracker import Tracker
from crossover.models.jsonl import write_json


@pytest.fixture
def store(tmp_path: Path, database: Path) -> Path:
    """Return a store that holds MLflow's database and nothing else."""
    store = tmp_path / "mlruns"
    store.mkdir()
    shutil.copy(database, store)
    return store


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and never answer, as a server does that is far too slow."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def runs_of(store: Path) -> tuple[list[str], list[str]]:
    """Return the cells and the parents that MLflow holds as finished."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert {r.info.status for r in found} == {"FINISHED"}
    cells = [r.data.tags["crossover.cell"] for r in found if "crossover.cell" in r.data.tags]
    return sorted(cells), [r.info.run_id for r in found if "crossover.cell" not in r.data.tags]


def test_what_could_not_be_sent_is_sent_later_once(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(background, "WAIT_SECONDS", 1.0)
    with openai_server(first_word) as served, silent_server() as slow:
        flags = ["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q", "--tracking-uri"]
        start = time.monotonic()
        assert main([*flags, slow, "--only", "zero_shot"]) == 0
        assert time.monotonic() - start < 60
        assert "MLflow: still busy after 1 s; the rows are in the store" in capsys.readouterr().err
        assert main([*flags, "http://127.0.0.1:9", "--json"]) == 0
        out, err = capsys.readouterr()
        assert "send them later: crossover sync" in err
        assert [a["mlflow_run_id"] for a in json.loads(out)["arms"]] == ["", ""]
        assert main(["sync", "--store", str(store)]) == 0
        assert capsys.readouterr().out == "2 cells sent to MLflow\n"
        first = runs_of(store)
        assert first[0] == sorted(f.name for f in store.glob("cells/*"))
        assert len(first[1]) == 2
        assert main(["sync", "--store", str(store)]) == 0
        assert "nothing is waiting" in capsys.readouterr().out
        assert main([*flags[:-1], "--json"]) == 0
    ids = [a["mlflow_run_id"] for a in json.loads(capsys.readouterr().out)["arms"]]
    assert all(ids)
    assert runs_of(store) == first


def test_the_next_run_sends_what_waits(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with openai_server(first_word) as served:
        flags = ["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]
        assert main([*flags, "--tracking-uri", "http://user:hunter2-secret@127.0.0.1:9"]) == 0
        assert "hunter2" not in capsys.readouterr().err
        assert main(flags) == 0
    assert len(runs_of(store)[0]) == 2
    assert len(list(store.glob("cells/*/tracked.json"))) == 2


def test_a_full_database_leaves_the_rows_here(tmp_path: Path, store: Path) -> None:
    (store / "mlflow.db").write_bytes(b"no database, and no room to make one")
    with openai_server(first_word) as served:
        assert main(["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]) == 0
    assert not list(store.glob("cells/*/tracked.json"))
    (store / "mlflow.db").unlink()
    assert ended(start(tmp_path, tmp_path / "said", "sync", "--store", str(store))) == 0
    assert (tmp_path / "said.out").read_text() == "2 cells sent to MLflow\n"
    assert len(list(store.glob("cells/*/tracked.json"))) == 2


def test_a_damaged_mark_is_named_and_stops_nothing(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = store / "unfinished" / "x.json"
    mark.parent.mkdir()
    mark.write_text('{"experiment": "wor')
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        assert main(["run", str(file), "--store", str(store), "-q"]) == 0
    what = f"{mark}: damaged; delete it"
    assert f"MLflow: {what}" in capsys.readouterr().err
    assert main(["sync", "--store", str(store)]) == 2
    assert f"error: {what}" in capsys.readouterr().err


@pytest.mark.parametrize("ends", ["run", "sync", "run of other settings"])
def test_a_process_that_died_before_its_verdict_leaves_nothing_open(tmp_path: Path, store: Path, ends: str) -> None:
    with openai_server(first_word) as served:
        flags = ["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]
        assert main([*flags, "--tracking-uri", "none"]) == 0
        # All that a run does until its last cell is sent, and nothing of what comes then.
        tracker = Tracker(store)
        (run,) = pending_runs(store, tracker.uri)
        assert send_cells(tracker, store, run, {}) == 2
        assert pending_cells(store, run.cells, tracker.uri) == []
        parent = tracker.parent(run.experiment, run.params)
        assert tracker.client.get_run(parent).info.status == "RUNNING"
        last = {"sync": ["sync", "--store", str(store)], "run": flags}.get(ends, [*flags, "--only", "zero_shot"])
        assert main(last) == 0
    parents = runs_of(store)[1]
    assert parent in parents
    assert len(parents) == (2 if ends == "run of other settings" else 1)
    assert pending_runs(store, tracker.uri) == []
    told = {a.path for a in tracker.client.list_artifacts(parent)}
    assert ("comparison.json" in told) == (ends != "run of other settings")


def test_another_tracking_store_gets_the_cells_too(tmp_path: Path, store: Path, database: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(database, other)
    with openai_server(first_word) as served:
        flags = ["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]
        assert main(flags) == 0
        first = runs_of(store)
        assert main([*flags, "--tracking-uri", f"sqlite:///{other}/mlflow.db"]) == 0
        assert runs_of(other)[0] == first[0]
        assert main(flags) == 0
    assert runs_of(store) == first


def test_the_cells_of_a_living_run_are_left_to_it(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        assert main(["run", str(file), "--store", str(store), "-q", "--tracking-uri", "none"]) == 0
    with holding(store, [f.name for f in store.glob("cells/*")], "words"):
        assert main(["sync", "--store", str(store)]) == 0
    out, err = capsys.readouterr()
    assert "0 cells sent to MLflow" in out
    assert "'words' is being run already" in err
    assert main(["sync", "--store", str(store)]) == 0
    assert capsys.readouterr().out == "1 cells sent to MLflow\n"


def test_a_store_of_the_last_version_is_understood(tmp_path: Path, store: Path) -> None:
    with openai_server(first_word) as served:
        flags = ["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q", "--tracking-uri", "none"]
        assert main(flags) == 0
    tracker = Tracker(store)
    (run,) = pending_runs(store, tracker.uri)
    run.files[0].unlink()
    facts = {"experiment": run.experiment, "params": run.params, "prices": asdict(run.prices)}
    for key in run.cells:
        # It left a mark in each cell, and one record of the experiment for each tracking store.
        write_json(store / "cells" / key / "unsent.json", facts)
    write_json(store / "unfinished" / "1-a.json", facts | {"uri": tracker.uri})
    write_json(store / "unfinished" / "1-b.json", facts | {"uri": "http://127.0.0.1:9"})
    assert main(["sync", "--store", str(store)]) == 0
    cells, parents = runs_of(store)
    assert (cells, len(parents)) == (sorted(run.cells), 1)
    assert not list(store.glob("cells/*/unsent.json"))
    assert [f.name for f in (store / "unfinished").iterdir()] == ["1-b.json"]


def test_what_was_deleted_in_mlflow_is_sent_again_once(
    tmp_path: Path, store: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word) as served:
        assert main(["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]) == 0
    first, again = runs_of(store), ["sync", "--store", str(store)]
    client = Tracker(store).client
    losses = {
        "a cell": lambda: client.delete_run(json.loads(next(store.glob("cells/*/tracked.json")).read_text())["run_id"]),
        "the parent": lambda: client.delete_run(runs_of(store)[1][0]),
        "the database": lambda: shutil.copy(database, store),
    }
    for lost, lose in losses.items():
        lose()
        capsys.readouterr()
        assert main(again) == 0, lost
        assert "cells sent to MLflow" in capsys.readouterr().out
        assert runs_of(store)[0] == first[0], lost
        assert len(runs_of(store)[1]) == 1, lost
        assert main(again) == 0
        assert "nothing is waiting" in capsys.readouterr().out, lost


def test_an_experiment_deleted_in_mlflow_is_named_with_the_remedy_and_blocks_no_other(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        flags = ["run", str(file), "--store", str(store), "-q"]
        assert main(flags) == 0
        client = Tracker(store).client
        identity = client.get_experiment_by_name("words").experiment_id
        client.delete_experiment(identity)
        capsys.readouterr()
        assert main([*flags, "--set", "methods=[{few_shot: {demos: 1}}]"]) == 0
        assert f"mlflow experiments restore -x {identity}`, or name yours otherwise" in capsys.readouterr().err
        other = ["--set", "name=other", "--set", "methods=[{few_shot: {demos: 2}}]", "--tracking-uri", "none"]
        assert main([*flags, *other]) == 0
    assert main(["sync", "--store", str(store)]) == 2
    assert "experiment 'words' was deleted there" in capsys.readouterr().err
    found = client.search_runs([client.get_experiment_by_name("other").experiment_id])
    assert sum("crossover.cell" in r.data.tags for r in found) == 1
    client.restore_experiment(identity)
    assert main(["sync", "--store", str(store)]) == 0


def check_shown(uri: str) -> None:
    """Check that a tracking store holds all that MLflow's pages show of the run of the openings."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("openings").experiment_id
    runs = {r.data.tags["mlflow.runName"]: r for r in client.search_runs([experiment])}
    assert set(runs) == {"openings", "zero_shot", "retrieved_demos demos=3", "sft epochs=1 rank=4"}
    parent, winner = runs["openings"], runs["retrieved_demos demos=3"]
    assert parent.data.tags["verdict"] == "USE retrieved_demos demos=3"
    assert winner.data.tags["verdict"] == "chosen"
    files = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", "comparison.json", "comparison.txt"}
    assert "training/loss" in runs["sft epochs=1 rank=4"].data.metrics
    traces = client.search_traces(locations=[experiment], run_id=winner.info.run_id, max_results=100)
    assert len(traces) == 50
    assert {s.name for s in traces[0].data.spans} == {"retrieved_demos demos=3", "model", "parse"}
    model = next(s for s in traces[0].data.spans if s.name == "model")
    assert traces[0].info.request_preview in model.inputs["messages"][-1]["content"]
    assert len(client.search_datasets([experiment])) == 1
    prompt = client.get_prompt_version_by_alias("openings.openings.instructions", "winner")
    assert prompt.template
    assert client.get_model_version_by_alias("openings.openings", "winner").run_id == winner.info.run_id


@pytest.mark.slow
def test_a_tracking_server_holds_all_that_the_store_holds(openings_run: Path, tmp_path: Path) -> None:
    check_shown(f"sqlite:///{openings_run}/mlruns/mlflow.db")
    shutil.copytree(openings_run / "mlruns", tmp_path / "mlruns")
    with tracking_server(tmp_path) as uri:
        assert main(["sync", "--store", str(tmp_path / "mlruns"), "--tracking-uri", uri]) == 0
        check_shown(uri)
        assert main(["ui", "--store", str(tmp_path / "mlruns"), "--tracking-uri", uri]) == 0


def test_artifacts_follow_a_store_that_was_moved_or_copied(tmp_path: Path, store: Path) -> None:
    with openai_server(first_word) as served:
        assert main(["run", str(write_remote(tmp_path, served.url)), "--store", str(store), "-q"]) == 0
    copy = tmp_path / "elsewhere" / "its copy"
    shutil.copytree(store, copy)
    store.rename(tmp_path / "gone")
    assert main(["sync", "--store", str(copy)]) == 0
    from mlflow.artifacts import download_artifacts

    client, (parent,) = Tracker(copy).client, runs_of(copy)[1]
    assert runs_of(copy)[0] == sorted(f.name for f in copy.glob("cells/*"))
    for run in client.search_runs([client.get_run(parent).info.experiment_id]):
        assert run.info.artifact_uri.startswith(f"{artifacts_uri(copy)}/words/{run.info.run_id}/")
        kept = "comparison.json" if run.info.run_id == parent else "rows.json"
        assert json.loads(Path(download_artifacts(f"{run.info.artifact_uri}/{kept}")).read_text())
