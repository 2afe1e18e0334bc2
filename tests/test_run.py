"""A whole experiment through the command line: real model, real training steps, real MLflow store."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import pytest
import tiny
from factories import task_with_corpus
from processes import UNTRACKED

from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import plan
from crossover.eval.experiment.splits import sample, train_pool
from crossover.eval.run.audit import audit
from crossover.eval.run.loading import prepare
from crossover.eval.store.result import append_rows, read_rows
from crossover.models.load import LoadedModel
from crossover.models.usage import Usage
from crossover.programs.modules.classify import Classify
from crossover.programs.score import Row, score_examples
from crossover.programs.task import FitFacts, Fitted

EXPERIMENT = """
version: 1
name: intents
tasks:
  - name: intents
    program: classify
    data: {{train: train.jsonl, val: val.jsonl, test: test.jsonl}}
    fields: {{text: input, label: output}}
models: [{model}]
methods:
  - zero_shot
  - few_shot: {{demos: 2}}
  - retrieved_demos: {{demos: 2}}
  - sft: {{epochs: 1, rank: 4}}
{more}
"""


def write_experiment(folder: Path, intents: list[dspy.Example]) -> Path:
    splits = {"train": intents[::2], "val": intents[1::4], "test": intents[3::4]}
    for name, examples in splits.items():
        lines = [json.dumps({"text": f"{e['text']} please", "label": e["label"]}) for e in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    file = folder / "intents.yaml"
    file.write_text(EXPERIMENT.format(model=tiny.model(max_tokens=8), more=""))
    return file


@pytest.fixture
def experiment(tmp_path: Path, intents: list[dspy.Example]) -> Path:
    return write_experiment(tmp_path, intents)


class Tracked(NamedTuple):
    """A finished run that MLflow knows of, in a store that began empty."""

    file: Path
    store: Path
    text: str


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, intents: list[dspy.Example]) -> Tracked:
    folder, text = tmp_path_factory.mktemp("tracked"), io.StringIO()
    file, store = write_experiment(folder, intents), folder / "mlruns"
    with contextlib.redirect_stdout(text):
        assert main(["run", str(file), "--store", str(store), "--no-progress"]) == 0
    return Tracked(file, store, text.getvalue())


def run(experiment: Path, store: Path, *flags: str) -> int:
    return main(["run", str(experiment), "--store", str(store), "--no-progress", *UNTRACKED, *flags])


def test_a_run_ends_in_table_verdict_and_json(tracked: Tracked, capsys: pytest.CaptureFixture[str]) -> None:
    file, store, text = tracked
    for arm in ("zero_shot", "few_shot demos=2", "retrieved_demos demos=2", "sft epochs=1 rank=4"):
        assert arm in text
    assert "crossover ui" in text
    rows_before = {f: f.read_bytes() for f in store.glob("cells/*/*") if f.is_file()}
    assert main(["run", str(file), "--store", str(store), "--no-progress", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {f: f.read_bytes() for f in store.glob("cells/*/*") if f.is_file()} == rows_before
    assert len(list(store.glob("cells/*/tracked.json"))) == 4
    assert not list(store.glob("unfinished/*"))
    assert data["schema_version"] == 2
    assert len(data["arms"]) == 4
    assert len(data["contrasts"]) == 6
    assert all(a["score"]["n"] + a["score"]["failed"] == 6 and a["mlflow_run_id"] for a in data["arms"])
    for arm in data["arms"]:
        labels = arm["labels"]
        assert {y: (x["train"], x["test"]) for y, x in labels.items()} == {
            "close_account": (4, 2),
            "exchange_rate": (2, 2),
            "refund_late": (2, 2),
        }
        assert sum(x["score"] for x in labels.values()) / 3 == pytest.approx(arm["score"]["mean"], abs=1e-5)
    assert data["verdict"][0]["confidence"] == "abstain"
    assert main(["run", str(file), "--store", str(store), "--no-progress", "--details"]) == 0
    assert "rare labels  other labels" in capsys.readouterr().out


def test_every_cell_is_a_run_in_mlflow(tracked: Tracked) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked.store}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("intents").experiment_id])
    children = [r for r in found if "mlflow.parentRunId" in r.data.tags]
    assert (len(found), len(children)) == (5, 4)
    sft = next(r for r in children if r.data.params["method"] == "sft")
    assert {"accuracy", "accuracy_low", "cost_usd_per_1k", "latency_p95_ms", "detail/failed"} <= set(sft.data.metrics)
    names = {a.path for a in client.list_artifacts(sft.info.run_id)}
    assert len(names) >= 3
    assert {r.info.status for r in found} == {"FINISHED"}


def test_an_interrupted_cell_goes_on_from_its_rows(experiment: Path, store: Path) -> None:
    assert run(experiment, store, "--only", "zero_shot") == 0
    cell = next(store.glob("cells/*"))
    lines = (cell / "rows.jsonl").read_text().splitlines(keepends=True)
    (cell / "result.json").unlink()
    (cell / "rows.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    assert run(experiment, store, "--only", "zero_shot") == 0
    again = (cell / "rows.jsonl").read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert sorted(json.loads(x)["id"] for x in again) == sorted(json.loads(x)["id"] for x in lines)


@pytest.mark.parametrize("lost", [("result.json",), ("result.json", "pace.jsonl")])
def test_a_cell_that_was_killed_after_its_last_row_has_its_serving_time(
    experiment: Path, store: Path, lost: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def price() -> float:
        capsys.readouterr()
        assert run(experiment, store, "--only", "zero_shot", "--json") == 0
        return float(json.loads(capsys.readouterr().out)["arms"][0]["cost_usd"]["per_1k_requests"])

    before = price()
    for name in lost:
        next(store.glob(f"cells/*/{name}")).unlink()
    assert price() == pytest.approx(before, rel=0.01 if len(lost) == 1 else 0.9)


def test_retrieval_recall_is_reported(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rag.yaml"
    file.write_text(f"version: 1\ntasks: [stdlib_rag]\nmodels: [{tiny.model(max_tokens=4)}]\nmethods: [zero_shot]\n")
    assert run(file, store, "--limit", "8", "--details") == 0
    assert "passages, retrieved by bm25 k=3: recall " in capsys.readouterr().out


def test_the_first_limit_stops_the_run_and_says_so(
    experiment: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(experiment, store, "--max-minutes", "0") == 2
    assert "no cell was measured before the limit of 0 minutes" in capsys.readouterr().err


def test_a_gate_fails_with_1_and_says_why(experiment: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(experiment, store, "--only", "zero_shot", "--fail-under", "1.0") == 1
    assert "gate failed: intents: best score" in capsys.readouterr().err


def test_a_dead_tracking_server_does_not_kill_the_run(
    experiment: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    flags = [
        "run",
        str(experiment),
        "--store",
        str(store),
        "--only",
        "zero_shot",
        "--tracking-uri",
        "http://127.0.0.1:9",
    ]
    assert main(flags) == 0
    assert "tracking is off for this run" in capsys.readouterr().err


def row(identity: str) -> Row:
    return Row(identity, 1.0, "", 1, 0, 1, 1, 0.1, 0.0, {"label": "x"})


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, [row("a"), row("b")])
    with file.open("a") as f:
        f.write('{"id": "c", "sco')
    assert [r.id for r in read_rows(file)] == ["a", "b"]
    append_rows(file, [row("c")])
    assert [r.id for r in read_rows(file)] == ["a", "b", "c"]


def test_failures_are_typed_rows_never_zeros(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    def undecided(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        if gold["id"] == "1":
            raise ValueError("cannot tell")
        return float("nan") if gold["id"] == "2" else 1.0

    long = intents[3].copy(text="word " * 6000)
    rows = list(score_examples(Classify(["text"], "label", []), [*intents[:3], long], undecided))
    failures = {r.id: r.failure.partition(":")[0] for r in rows}
    assert failures == {"0": "", "1": "metric", "2": "metric", "3": "lm"}
    assert [r.score for r in sorted(rows, key=lambda r: r.id)] == [1.0, None, None, None]


def test_train_pools_are_nested() -> None:
    task = task_with_corpus()
    pools = [[e["id"] for e in train_pool(task, n, 0)] for n in (1, 2, 4)]
    assert pools[2][:2] == pools[1]
    assert pools[1][:1] == pools[0]
    assert any([e["id"] for e in train_pool(task, 4, s)] != pools[2] for s in (1, 2, 3))


def test_the_audit_finds_what_is_unfair(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    program = Classify(["text"], "label", [])
    program.predictors()[0].demos = [{"text": intents[5]["text"], "label": "card_lost"}]
    leaky = Fitted(program, spoken.lm, Usage(), facts=FitFacts(logit_change=0.0, zero_shot=True))
    assert audit(leaky, intents[4:], spoken) == [
        "1 demonstrations are test questions",
        "zero-shot shows demonstrations",
        "training did not change what the model makes of a prompt",
    ]


def test_a_limit_draws_from_the_whole_file_and_nests() -> None:
    examples = [dspy.Example(id=f"{label}-{n}", label=label) for label in "abcd" for n in range(50)]
    few, more = sample(examples, 20), sample(examples, 60)
    assert len(few) == 20
    assert {e["label"] for e in few} == set("abcd")
    assert [e for e in more if e in few] == few
    assert sample(examples, None) == examples


def test_a_cell_that_cannot_be_fitted_is_told_and_the_others_are_measured(
    experiment: Path, store: Path, intents: list[dspy.Example], capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"text": "nothing that it could answer", "label": "hard to guess"}
    (experiment.parent / "train.jsonl").write_text(json.dumps(row) + "\n")
    own = ("--set", "methods=[zero_shot, {sft: {targets: self, attempts: 1}}]")
    assert run(experiment, store, *own, "--json") == 4
    data = json.loads(capsys.readouterr().out)
    assert [a["method"] for a in data["arms"]] == ["zero_shot"]
    (failure,) = data["failures"]
    assert failure.startswith("intents, sft attempts=1 targets=self, seed 0 could not be fitted: none of 1 train")
    assert run(experiment, store, *own, "--only", "sft") == 2
    assert f"error: {failure}" in capsys.readouterr().err
    # A stage of which nothing came cannot run either; one that has fitted some of its cells is done in part.
    stage = ["finetune", str(experiment), "--store", str(store), "--no-progress"]
    assert main([*stage, *own]) == 2
    both = own[1].replace("}}]", "}}, {sft: {epochs: 1, rank: 4}}]")
    assert main([*stage, "--set", both]) == 4
    assert f"error: {failure}" in capsys.readouterr().err


def test_a_training_whose_rows_are_all_too_long_stops_the_run_before_anything_is_measured(
    experiment: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"text": "card " * 5000, "label": "card_lost"}
    (experiment.parent / "train.jsonl").write_text(json.dumps(long) + "\n")
    assert run(experiment, store, "--only", "zero_shot,sft") == 2
    why = "all 1 training rows exceed the model's context of 4096 tokens; shorten them"
    assert f"error: intents, sft epochs=1 rank=4: {why}" in capsys.readouterr().err
    assert not list(store.glob("cells/*"))


def test_a_method_that_cannot_be_is_refused_before_anything_is_spent(
    experiment: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.write_text(experiment.read_text().replace("sft: {epochs: 1, rank: 4}", "sft: {adapter: qlora}"))
    assert run(experiment, store) == 2
    assert "'qlora' needs CUDA and bitsandbytes, and" in capsys.readouterr().err
    assert not list(store.glob("cells/*/rows.jsonl"))


@pytest.mark.slow
def test_other_tasks_are_scored_before_and_after_a_training(
    experiment: Path, store: Path, intents: list[dspy.Example], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is trained to say one word forgets a task that it knew how to do from its prompt."""
    for name in ("train", "val", "test"):
        rows = [{"text": f"{name} {n}", "label": "yes"} for n in range(60)]
        (experiment.parent / f"other-{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    text = experiment.read_text().replace("sft: {epochs: 1, rank: 4}", "sft: {epochs: 8, rank: 4}")
    experiment.write_text(
        text + "retention:\n  - name: other\n    program: classify\n    fields: {text: input, label: output}\n"
        "    data: {train: other-train.jsonl, val: other-val.jsonl, test: other-test.jsonl}\n"
    )
    assert run(experiment, store, "--only", "sft", "--dry-run") == 0
    # Plain and with demonstrations, before the training and after it.
    assert re.search(r"^other .* retention +240 ", capsys.readouterr().out, re.MULTILINE)
    assert run(experiment, store, "--only", "zero_shot,sft", "--json") == 0
    cells = [json.loads(f.read_text()) for f in store.glob("cells/*/result.json")]
    notes = {c["cell"]["method"]["name"]: c["notes"] for c in cells}
    assert "retention" not in notes["zero_shot"]
    kept = notes["sft"]["retention"][0]
    assert (kept["task"], kept["n"]) == ("other", 60)
    assert kept["low"] <= kept["after"] - kept["before"] <= kept["high"]
    assert kept["gain_before"] > 0.5
    assert len(list(store.glob("retention/*.json"))) == 2
    # Other data of the other task asks for another training's notes, and nothing else.
    other = experiment.parent / "other-test.jsonl"
    other.write_text(other.read_text().replace("yes", "no"))
    found, _ = read_experiment(experiment)
    assert found is not None
    keys = prepare(found, store=store)
    assert {c.method.name: keys.of(c) in {f["key"] for f in cells} for c in plan(found) if c.method.name in notes} == {
        "zero_shot": True,
        "sft": False,
    }


@pytest.mark.slow
def test_stages_come_to_what_a_run_comes_to(
    experiment: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(experiment), "--store", str(store)]
    assert main(["eval", *names]) == 2
    assert f"no cell of intents is fitted in {store}; run `compile` or `finetune` first" in capsys.readouterr().err
    assert main(["compile", *names, "--only", "few_shot", "--no-progress"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"intents  {tiny.NAME}  few_shot demos=2, seed=0: ")
    assert (Path(line.split()[-1]) / "program.json").exists()
    assert main(["finetune", *names]) == 0
    done = capsys.readouterr()
    assert [x.split("  ")[2][:4] for x in done.out.splitlines()] == ["sft "]
    assert "training step" in done.err
    # Neither zero_shot nor retrieved_demos was fitted, and what was trained is not trained again.
    assert main(["eval", *names, "--json"]) == 0
    done = capsys.readouterr()
    arms = {a["method"]: a["score"]["mean"] for a in json.loads(done.out)["arms"]}
    assert set(arms) == {"few_shot", "sft"}
    assert "training step" not in done.err
    assert main(["finetune", *names]) == 0
    assert capsys.readouterr().out == "1 already finished\n"
    assert run(experiment, tmp_path / "whole", "--json") == 0
    whole = {a["method"]: a["score"]["mean"] for a in json.loads(capsys.readouterr().out)["arms"]}
    assert {m: whole[m] for m in arms} == arms


def test_a_stage_without_cells_or_out_of_time_says_so(
    experiment: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(experiment), "--store", str(store)]
    assert main(["finetune", *names, "--only", "few_shot"]) == 2
    assert "intents has no method that adapts in weights" in capsys.readouterr().err
    assert main(["compile", *names, "--max-minutes", "0"]) == 2
    assert "3 cells are left for the next time" in capsys.readouterr().err
