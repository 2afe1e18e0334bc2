"""Tracking writes a real sqlite store: a parent for the experiment, a child for each cell, from any thread."""

import json
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
import tiny
from factories import make_cell, make_result, right, task_with_corpus
from processes import FORKS, wait_for
from served_ui import served_ui, start_ui

from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.cost import cost_of
from crossover.eval.cli.main import main
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.result import Result
from crossover.eval.tracking.addresses import registered_name, store_uri
from crossover.eval.tracking.comparison import log_comparison
from crossover.eval.tracking.logged import metric_name, rows_table
from crossover.eval.tracking.overview import description, parent_metrics, run_tags
from crossover.eval.tracking.registry import register_instructions
from crossover.eval.tracking.traces import Request, log_dataset, log_traces
from crossover.eval.tracking.tracker import Tracker, TrackingError
from crossover.models.errors import UserError
from crossover.models.usage import Usage
from crossover.programs.task import Task

RESULTS = [
    make_result(make_cell("zero_shot"), [*right(12, 58), None, None]),
    make_result(make_cell("sft"), right(40, 60), fit=Usage(seconds=90, train_tokens=5)),
]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Tracker:
    """Return a tracker on a store of its own."""
    store = tmp_path_factory.mktemp("tracking")
    shutil.copy(database, store)
    return Tracker(store)


@pytest.fixture(scope="module")
def parent(tracker: Tracker) -> str:
    """Return the parent run of an experiment."""
    return tracker.parent("intents", {"seeds": (0,), "note": "x" * 9000})


def make_store(folder: str) -> None:
    Tracker(Path(folder))


@pytest.mark.slow
def test_a_database_that_was_being_made_when_the_process_died_is_made_anew(tmp_path: Path) -> None:
    process = FORKS.Process(target=make_store, args=(str(tmp_path),))
    process.start()
    wait_for(lambda: any(f.stat().st_size for f in tmp_path.glob("mlflow.db.*.part")))
    process.kill()
    process.join()
    assert not (tmp_path / "mlflow.db").exists()
    Tracker(tmp_path).parent("words", {})
    assert [f.name for f in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_the_same_experiment_keeps_its_parent_run(tracker: Tracker, parent: str) -> None:
    params = {"seeds": (0,), "note": "x" * 9000}
    assert tracker.parent("intents", params) == parent
    assert tracker.parent("intents", params | {"seeds": (1,)}) != parent


def test_a_cell_is_a_child_with_params_metrics_rows_and_program(tracker: Tracker, parent: str, tmp_path: Path) -> None:
    (tmp_path / "fit" / "best").mkdir(parents=True)
    (tmp_path / "fit" / "best" / "adapter_config.json").write_text("{}")
    (tmp_path / "program.json").write_text('{"demos": []}')
    run_id = tracker.result(parent, RESULTS[0], cost_of(RESULTS[0], Prices()), tmp_path)
    run = tracker.client.get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["crossover.cell"] == RESULTS[0].key
    assert run.data.params["method"] == "zero_shot"
    metrics = run.data.metrics
    assert (metrics["detail/n"], metrics["detail/failed"], metrics["accuracy"]) == (58, 2, 0.2069)
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    plain = {"accuracy", "accuracy_low", "accuracy_high", "cost_usd_per_1k", "latency_p95_ms", "fit_usd"}
    assert {name for name in metrics if "/" not in name} == plain
    artifacts = {a.path for a in tracker.client.list_artifacts(run_id)}
    assert artifacts == {"rows.json", "notes.json", "program", "weights"}
    assert {run.data.tags[t] for t in ("task", "method", "model", "size", "seed")} == {
        "intents",
        "zero_shot",
        tiny.NAME,
        "all",
        "0",
    }
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["intents"]


def test_logging_a_cell_again_keeps_its_run(tracker: Tracker, parent: str, tmp_path: Path) -> None:
    cost = cost_of(RESULTS[1], Prices())
    first = tracker.result(parent, RESULTS[1], cost, tmp_path)
    assert tracker.result(parent, RESULTS[1], cost, tmp_path) == first


def test_a_dropped_arm_that_is_read_to_the_end_gets_a_new_run(tracker: Tracker, tmp_path: Path) -> None:
    parent, cost = tracker.parent("races", {}), cost_of(RESULTS[0], Prices())
    dropped = make_result(make_cell("zero_shot"), right(4, 20))
    dropped.dropped = {"after": 20, "of": 60, "by": ["x"]}
    first = tracker.result(parent, dropped, cost, tmp_path)
    assert tracker.client.get_run(first).data.tags["dropped"] == "after 20 of 60"
    assert tracker.result(parent, dropped, cost, tmp_path) == first
    whole = tracker.result(parent, make_result(make_cell("zero_shot"), right(12, 60)), cost, tmp_path)
    assert whole != first
    assert tracker.client.get_run(first).info.lifecycle_stage == "deleted"
    assert tracker.client.get_run(whole).data.metrics["detail/n"] == 60


def test_threads_log_side_by_side(tracker: Tracker, tmp_path: Path) -> None:
    parent = tracker.parent("threads", {})
    results = [make_result(make_cell("few_shot", seed=s), right(30 + s, 60)) for s in range(6)]
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda r: tracker.result(parent, r, cost_of(r, Prices()), tmp_path), results))
    scores = [tracker.client.get_run(i).data.metrics["accuracy"] for i in ids]
    assert scores == [pytest.approx((30 + s) / 60, abs=1e-4) for s in range(6)]


def test_the_verdict_lies_in_the_parent_and_names_the_runs(tracker: Tracker, parent: str, tmp_path: Path) -> None:
    results = [make_result(make_cell(m), right(n, 60)) for m, n in (("zero_shot", 12), ("few_shot", 40))]
    comparison = compare(results, needs=Needs(), prices=Prices(), experiment="intents")
    runs = {r.key: tracker.result(parent, r, cost_of(r, Prices()), tmp_path) for r in results}
    log_comparison(tracker, parent, comparison, runs)
    tracker.finish(parent)
    data = tracker.client.get_run(parent).data
    assert {k: data.tags[k] for k in ("winner", "verdict", "confidence")} == {
        "winner": "few_shot",
        "verdict": "USE few_shot",
        "confidence": "moderate",
    }
    assert data.tags["mlflow.note.content"].startswith(
        "## USE few\\_shot\n\nConfidence: **moderate**. few\\_shot scores"
    )
    assert data.metrics["winner/accuracy"] == data.metrics["accuracy/few_shot"] == 0.6667
    assert data.metrics["accuracy/zero_shot"] == 0.2
    shown = [tracker.client.get_run(i).data.tags for i in runs.values()]
    assert [(t["mlflow.runName"], t["verdict"]) for t in shown] == [
        ("zero_shot", "not chosen"),
        ("few_shot", "chosen"),
    ]
    file = tracker.client.download_artifacts(parent, "comparison.json")
    assert json.loads(Path(file).read_text())["experiment"] == "intents"
    assert tracker.client.get_run(parent).info.status == "FINISHED"


def test_runs_and_description_of_several_tasks_begin_with_what_is_cut_last() -> None:
    results = [
        make_result(replace(make_cell(m), task=task), right(n, 60))
        for task in ("first", "second")
        for m, n in (("zero_shot", 12), ("few_shot", 40))
    ]
    comparison = compare(results, needs=Needs(), prices=Prices(), experiment="both")
    tags = [t for arm in comparison.arms for t in run_tags(arm, comparison)]
    assert len({t["mlflow.runColor"] for t in tags}) == 4
    names = ["first: zero_shot", "first: few_shot", "second: zero_shot", "second: few_shot"]
    assert [t["mlflow.runName"] for t in tags] == names
    first, second, *_ = description(comparison).splitlines()
    assert first == "- **USE few\\_shot** for first (confidence: moderate)"
    assert second == "- **USE few\\_shot** for second (confidence: moderate)"
    assert "accuracy/few_shot second" in parent_metrics(comparison)


def test_an_example_is_a_trace_of_what_was_read_asked_and_said(tracker: Tracker, parent: str, tmp_path: Path) -> None:
    test = [dspy.Example(id=f"e{i}", question=f"q{i}", answer="x").with_inputs("question") for i in range(60)]
    task = task_with_corpus(test=test)
    result = replace(make_result(make_cell("few_shot", seed=9), right(40, 60)), split_sha256=task.split_sha256())
    run_id = tracker.result(parent, result, cost_of(result, Prices()), tmp_path, task=task)
    rows = json.loads(Path(tracker.client.download_artifacts(run_id, "rows.json")).read_text())
    assert rows["columns"][:4] == ["question", "gold", "answer", "score"]
    assert rows["data"][0][:4] == ["q0", "x", "x", 1.0]

    def asked(result: Result, task: Task, examples: Sequence[dspy.Example]) -> list[Request]:
        return [Request(["a passage"], [{"role": "user", "content": f"asked {e['question']}"}]) for e in examples]

    for _ in range(2):
        log_traces(tracker, run_id, result, task, asked)
    experiment = tracker.experiment_of(parent)
    traces = tracker.client.search_traces(locations=[experiment], run_id=run_id, max_results=100)
    assert len(traces) == 50
    trace, number = traces[0], traces[0].info.client_request_id.removeprefix("e")
    assert [(s.name, s.span_type) for s in trace.data.spans] == [
        ("few_shot", "CHAIN"),
        ("retrieval", "RETRIEVER"),
        ("model", "CHAT_MODEL"),
        ("parse", "PARSER"),
    ]
    assert trace.data.spans[2].inputs == {"messages": [{"role": "user", "content": f"asked q{number}"}]}
    score = float(int(number) < 40)
    assert {a.name: a.value for a in trace.info.assessments} == {"score": score, "expected_response": "x"}
    for _ in range(2):
        log_dataset(tracker, parent, "intents", task, result.split_sha256)
    (dataset,) = tracker.client.search_datasets([experiment])
    assert dataset.name == f"intents.{task.name}.test.{result.split_sha256[:8]}"


def test_instructions_are_versions_of_one_prompt(
    tracker: Tracker, parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [make_result(make_cell("few_shot", seed=seed), right(40, 60)) for seed in (20, 21, 22)]
    runs = [tracker.result(parent, r, cost_of(r, Prices()), tmp_path) for r in results]
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        instructions = dict(zip(runs, ("Label it.", "Label {{it}} well.", "Label it."), strict=True))
        register_instructions(tracker, "intents.instructions", parent, instructions, winner=runs[1])
    winner = tracker.client.get_prompt_version_by_alias("intents.instructions", "winner")
    assert (winner.version, winner.template) == (2, "Label { {it}} well.")
    linked = [json.loads(tracker.client.get_run(i).data.tags["mlflow.linkedPrompts"])[0]["version"] for i in runs]
    assert linked == ["1", "2", "1"]
    assert list(tmp_path.iterdir()) == []


def _readable(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:  # the process has ended since
        return False


def asked(url: str, body: bytes | None = None, **headers: str) -> int:
    """Return the status of a request."""
    headers |= {"Content-Type": "application/json"} if body else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code


def test_a_killed_ui_leaves_no_server_behind(tracker: Tracker) -> None:
    ui, address = start_ui(Path(tracker.uri.removeprefix("sqlite:///")).parent)
    with ui:
        assert asked(f"{address}/health") == 200
        ui.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=2)


def test_the_ui_serves_the_store_and_ends_on_ctrl_c(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(tracker.uri.removeprefix("sqlite:///")).parent
    with served_ui(store) as address:
        with urllib.request.urlopen(f"{address}/health") as answer:
            assert answer.status == 200
        port = address.rpartition(":")[2]
        for host in ("evil.example", "10.evil.example", "localhost:1", f"10.0.0.1:{port}"):
            assert asked(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", Host=host) == 403
        for origin in ("http://localhost:3000", "http://127.0.0.1", "https://evil.example", "null"):
            assert asked(f"{address}/api/2.0/mlflow/experiments/create", b'{"name": "x"}', Origin=origin) == 403
        assert asked(f"{address}/api/2.0/mlflow/experiments/create", b'{"name": "own"}', Origin=address) == 200
        assert asked(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", Host=f"localhost:{port}") == 200
        assert main(["ui", "--port", port, "--store", str(store)]) == 2
        assert f"error: port {port} cannot be used: Address already in use; try --port" in capsys.readouterr().err
        lists = [f.read_text() for f in Path("/proc").glob("[0-9]*/cmdline") if _readable(f)]
        assert not any(f"sqlite:///{store}" in line for line in lists)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{address}/health", timeout=2)


def test_a_method_over_train_sizes_is_a_curve_of_steps(tracker: Tracker) -> None:
    parent = tracker.parent("curves", {})
    results = [make_result(make_cell("few_shot", size=n), right(20 + n, 60)) for n in (4, 16)]
    comparison = compare(results, needs=Needs(), prices=Prices(), experiment="curves")
    for _ in range(2):
        log_comparison(tracker, parent, comparison, {})
    experiment = tracker.client.get_run(parent).info.experiment_id
    (run,) = tracker.client.search_runs([experiment], "tags.`crossover.kind` = 'curve'")
    found = {m.step: m.value for m in tracker.client.get_metric_history(run.info.run_id, "learning/accuracy")}
    assert found == {4: 0.4, 16: 0.6}


def test_names_of_any_kind_stay_apart_and_inside_the_store(tracker: Tracker) -> None:
    inside = Path(tracker.uri.removeprefix("sqlite:///")).parent / "artifacts"
    names = ("../../x", "a/b", "a b", "a-b", "müll: a/b #1 %20", "漢" * 120, 'it\'s "quoted" `so`?', ".", "%2e%2e")
    parents = {name: tracker.parent(name, {}) for name in names}
    for name, run in parents.items():
        tracker.client.log_text(run, name, "name.txt")
    found = {f.read_text(): f.relative_to(inside).parts[0] for f in inside.rglob("name.txt")}
    assert len(set(found.values())) == len(names)
    for name, run in parents.items():
        assert Path(tracker.client.download_artifacts(run, "name.txt")).read_text() == name
        assert re.fullmatch(r"[\w.-]+", registered_name(name, "task"))


@pytest.mark.parametrize(
    ("name", "plain"), [("sft rank=8", "sft rank 8"), ("./a//b", "-a--b"), ("漢", "other"), ("..", "other")]
)
def test_a_name_becomes_a_part_of_the_name_of_a_metric(name: str, plain: str) -> None:
    assert metric_name(name, "other") == plain


def test_the_curve_of_a_task_with_quotes_in_its_name_is_one_run(tracker: Tracker) -> None:
    cells = [replace(make_cell("few_shot", size=size), task='it\'s "odd"') for size in (8, 16)]
    comparison = compare([make_result(c, right(30, 60)) for c in cells], needs=Needs(), prices=Prices(), experiment="q")
    parent = tracker.parent("quoted", {})
    for _ in range(2):
        log_comparison(tracker, parent, comparison, {})
    runs = tracker.client.search_runs([tracker.client.get_run(parent).info.experiment_id])
    assert len(runs) == 2


@pytest.mark.parametrize("name", ["a?b", "%2e%2e", "a#b"])
def test_a_store_that_a_uri_would_misread_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="name another folder by --store"):
        store_uri(Path(name), None)


def test_rows_are_columns_of_equal_length() -> None:
    table = rows_table(RESULTS[0], None)
    assert list(table)[:2] == ["answer", "score"]
    assert {len(column) for column in table.values()} == {60}
    assert table["output"][0] == '{"label": "x"}'
    assert table["failure"][-1] == "lm: LMServerError: busy"


def test_nothing_is_said_while_the_store_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Tracker(tmp_path / "other").parent("quiet", {})
    assert [
        r.name for r in caplog.records if r.levelno >= logging.INFO and r.name.startswith(("mlflow", "alembic"))
    ] == []


def test_a_server_that_does_not_answer_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="Max retries exceeded"):
        Tracker(tmp_path, "http://127.0.0.1:9").parent("x", {})


def test_the_flag_wins_over_the_environment_over_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert store_uri(tmp_path, None) == "http://tracking:5000"
    assert store_uri(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"
