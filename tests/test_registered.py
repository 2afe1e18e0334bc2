"""The winner is a model that MLflow loads in a process that knows nothing of this project, and answers as it did."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.run.loading import load_tasks
from crossover.eval.store.cells import cell_folder
from crossover.eval.store.recorded import read_recorded
from crossover.eval.store.result import Result, read_rows
from crossover.eval.tracking.package import NotPortableError, copy_package, write_package
from crossover.eval.tracking.registry import register, requirements, unregister
from crossover.eval.tracking.tracker import Tracker
from crossover.models.spec import ModelSpec
from crossover.programs.task import Task

ROOT = Path(__file__).parent.parent
SECRET = "sk-keep-me-out-of-the-model"
LOAD = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import crossover.eval.tracking.package
assert crossover.__file__.endswith("/code/crossover/__init__.py"), crossover.__file__
assert not crossover.__file__.startswith(sys.argv[2]), crossover.__file__
print("ANSWERS", json.dumps(model.predict(json.loads(sys.argv[3]))))
import ast
used = {s for n, m in list(sys.modules.items()) if n.split(".")[0] == "crossover" and getattr(m, "__file__", None)
        for s in ast.parse(open(m.__file__, encoding="utf-8").read()).body}
names = {a.name for s in used if isinstance(s, ast.Import) for a in s.names}
names |= {s.module for s in used if isinstance(s, ast.ImportFrom) and s.module and not s.level}
print("IMPORTS", json.dumps(sorted({n.split(".")[0] for n in names})))
"""


@pytest.fixture(scope="module")
def tracker(openings_run: Path) -> Tracker:
    return Tracker(openings_run / "mlruns")


def result_of(openings_run: Path, method: str) -> Result:
    return next(r for r in read_recorded(openings_run / "mlruns").results if r.cell.method.name == method)


def task_of(openings_run: Path) -> Task:
    experiment, _ = read_experiment(openings_run / "openings.yaml")
    assert experiment is not None
    return load_tasks(experiment.tasks)[0]["openings"]


def answers(uri: str, store: Path, folder: Path, questions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return what a fresh process answers, in another folder and without this project on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LOAD, uri, str(ROOT), json.dumps(questions)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    given, _, imports = ran.stdout.rpartition("ANSWERS ")[2].partition("IMPORTS ")
    assert lacking(json.loads(imports)) == set()
    found: list[dict[str, Any]] = json.loads(given)
    return found


def lacking(imports: list[str]) -> set[str]:
    """Return the packages of imports that an environment with a registered model's requirements does not have."""
    told, left = set[str](), [Requirement(r) for r in requirements()]
    while left:
        one = left.pop()
        if canonicalize_name(one.name) not in told and (one.marker is None or one.marker.evaluate({"extra": ""})):
            told.add(canonicalize_name(one.name))
            left += [Requirement(r) for r in metadata.requires(one.name) or ()]
    known = metadata.packages_distributions()
    needed = {canonicalize_name(known[n][0]) for n in imports if n in known} - {"crossover"}
    return needed - told


@pytest.mark.slow
def test_the_winner_answers_as_the_arm_did(openings_run: Path, tracker: Tracker, tmp_path: Path) -> None:
    winner = tracker.client.get_model_version_by_alias("openings.openings", "winner")
    result = result_of(openings_run, "retrieved_demos")
    assert (winner.tags["crossover.cell"], winner.run_id) == (result.key, result.mlflow_run_id)
    asked = {str(e["id"]): {"text": e["text"]} for e in task_of(openings_run).test}
    rows = [r for r in read_rows(cell_folder(openings_run / "mlruns", result.key) / "rows.jsonl") if not r.failure][:8]
    again = answers("models:/openings.openings@winner", openings_run / "mlruns", tmp_path, [asked[r.id] for r in rows])
    assert again == [r.output for r in rows]


@pytest.mark.slow
def test_a_fine_tuned_arm_travels_with_its_adapter(openings_run: Path, tracker: Tracker, tmp_path: Path) -> None:
    result = result_of(openings_run, "sft")
    arm, code, work, elsewhere = (tmp_path / n for n in ("arm", "code", "work", "elsewhere"))
    for part in (code, work, elsewhere):
        part.mkdir()
    write_package(openings_run / "mlruns", result, arm, task=task_of(openings_run))
    assert (arm / "adapter" / "adapter_model.safetensors").exists()
    register(tracker, "tuned", result.mlflow_run_id, arm, code=[str(copy_package(code))], work=work)
    asked = {str(e["id"]): {"text": e["text"]} for e in task_of(openings_run).test}
    rows = [r for r in result.rows if not r.failure][:8]
    again = answers("models:/tuned@winner", openings_run / "mlruns", elsewhere, [asked[r.id] for r in rows])
    assert again == [r.output for r in rows]
    untuned = {r.id: r.output for r in result_of(openings_run, "zero_shot").rows}
    assert again != [untuned[r.id] for r in rows], "the adapter changes nothing here: the test cannot tell"


def test_the_model_says_what_it_scored_and_what_it_takes_and_gives(openings_run: Path, tracker: Tracker) -> None:
    from mlflow.models import get_model_info

    about = tracker.client.get_registered_model("openings.openings").description
    assert about.startswith("**retrieved_demos demos=3**")
    assert "per 1,000 requests" in about
    assert 'mlflow.pyfunc.load_model("models:/openings.openings@winner")' in about
    assert "model.predict([{'text': '…'}])  # → [{'label': …}]" in about
    version = tracker.client.get_model_version_by_alias("openings.openings", "winner")
    signature = get_model_info(tracker.client.download_artifacts(version.run_id, "model")).signature
    assert (signature.inputs.input_names(), signature.outputs.input_names()) == (["text"], ["label", "failure"])


def test_the_model_holds_no_pickle(openings_run: Path, tracker: Tracker) -> None:
    folder = Path(tracker.client.download_artifacts(result_of(openings_run, "retrieved_demos").mlflow_run_id, "model"))
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert {"recipe.json", "program.json", "registered.py"} <= {f.name for f in files}
    assert [f.name for f in files if f.suffix in (".pkl", ".pickle", ".bin", ".pt")] == []


def test_an_api_model_travels_without_its_key(
    openings_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    result = result_of(openings_run, "zero_shot")
    spec = ModelSpec("openai/small", api_base="http://127.0.0.1:9/v1", api_key="${MY_KEY}")
    result = replace(result, cell=replace(result.cell, model=spec))
    write_package(openings_run / "mlruns", result, tmp_path, task=task_of(openings_run))
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert "${MY_KEY}" in (tmp_path / "recipe.json").read_text()
    assert [f.name for f in files if SECRET.encode() in f.read_bytes()] == []


def test_a_winner_is_registered_once_and_unmarked_when_the_verdict_abstains(
    openings_run: Path, tracker: Tracker, tmp_path: Path
) -> None:
    result = result_of(openings_run, "retrieved_demos")
    winner = tracker.client.get_model_version_by_alias("openings.openings", "winner")
    (tmp_path / "recipe.json").write_text(json.dumps({"cell": result.key}))
    again = register(tracker, "openings.openings", result.mlflow_run_id, tmp_path, code=[], work=tmp_path)
    assert again == str(winner.version)
    assert len(tracker.client.search_model_versions("name='openings.openings'")) == 1
    unregister(tracker, "openings.openings")
    assert tracker.client.get_registered_model("openings.openings").aliases == {}
    unregister(tracker, "never.registered")
    # Other tests read the same store.
    tracker.client.set_registered_model_alias("openings.openings", "winner", again)


def test_the_mark_follows_a_verdict_that_only_other_needs_change(openings_run: Path, tmp_path: Path) -> None:
    store = shutil.copytree(openings_run / "mlruns", tmp_path / "mlruns")

    def marked(*flags: str) -> list[tuple[str, str]]:
        assert main(["run", str(openings_run / "openings.yaml"), "--store", str(store), "--no-progress", *flags]) == 0
        client, name = Tracker(store).client, "openings.openings"
        versions = client.get_registered_model(name).aliases.values()
        found = [client.get_model_version(name, v) for v in versions]
        return [(v.tags["crossover.cell"], v.description) for v in found]

    def costs() -> list[float]:
        client = Tracker(store).client
        (experiment,) = [e for e in client.search_experiments() if e.name == "openings"]
        runs = client.search_runs([experiment.experiment_id], order_by=["tags.`crossover.cell`"])
        return [r.data.metrics["cost_usd_per_1k"] for r in runs if "crossover.cell" in r.data.tags]

    key = result_of(openings_run, "retrieved_demos").key
    [(first, text)] = marked()
    cheap = costs()
    assert first == key
    [(same, dearer)] = marked("--set", "prices={machine_hour_usd: 50}")
    assert (same, dearer != text) == (key, True)
    # So are those of each cell, which the charts show.
    assert costs() == pytest.approx([100 * usd for usd in cheap], rel=0.01)
    assert marked("--set", "needs={min_score: 0.99}") == []
    assert marked() == [(key, text)]
    # The runs of all cells are below the newest verdict.
    client = Tracker(store).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "openings"]
    runs = client.search_runs([experiment.experiment_id])
    parents = {r.data.tags["mlflow.parentRunId"] for r in runs if "crossover.cell" in r.data.tags}
    newest = max(
        (r for r in runs if "verdict" in r.data.tags and "crossover.cell" not in r.data.tags),
        key=lambda r: r.info.end_time,
    )
    assert parents == {newest.info.run_id}


def test_what_cannot_travel_says_why(openings_run: Path, tmp_path: Path) -> None:
    task = replace(task_of(openings_run), program=lambda: task_of(openings_run).program())
    with pytest.raises(NotPortableError, match="made in place"):
        write_package(openings_run / "mlruns", result_of(openings_run, "zero_shot"), tmp_path, task=task)
    assert not list(tmp_path.iterdir())
