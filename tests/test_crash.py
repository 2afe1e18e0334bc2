"""Kill -9 at random moments: what was paid for is kept, and the end is as if nothing had happened."""

import json
import random
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai_server import Messages, Served, asked_fields, in_chat_frame, openai_server
from processes import UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

from eval.tracking.tracker import Tracker

METHODS = "[zero_shot, {few_shot: {demos: 2}}, {bootstrap: {bootstrapped: 1, labelled: 2}}]"
THREADS, KILLS = 2, 3


def timeless(text: str) -> dict[str, Any]:
    """Return `--json` without what no two runs share: times, and the names that MLflow gave."""
    data: dict[str, Any] = json.loads(text)
    for arm in data["arms"]:
        for name in ("latency_ms", "retrieval_ms", "mlflow_run_id", "mlflow_run_ids"):
            del arm[name]
    return data


def question(body: dict[str, Any]) -> str:
    return json.dumps(body["messages"])


@dataclass
class Scene:
    """An experiment, its server, and how a run of it ends that nobody disturbs."""

    file: Path
    served: Served
    database: Path
    """An empty MLflow store: making one takes longer than the run."""
    expected: dict[str, Any]
    asked: Counter[str]
    seconds: float

    def run(self, folder: Path) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "mlruns").exists():
            (folder / "mlruns").mkdir()
            shutil.copy(self.database, folder / "mlruns" / "mlflow.db")
        return start(folder, folder / "said", "run", str(self.file), "-j", str(THREADS), "-q", "--json")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Return the scene, played once without a kill."""
    folder = tmp_path_factory.mktemp("crash")

    def answer(model: str, messages: Messages) -> str:
        time.sleep(0.004)
        return first_word(model, messages)

    Tracker(folder / "empty").client.search_experiments()
    with openai_server(answer) as served:
        file = write_remote(folder, served.url, methods=METHODS)
        made = Scene(file, served, folder / "empty" / "mlflow.db", {}, Counter(), 0.0)
        for name in ("warm", "reference"):
            before, began = len(served.bodies), time.monotonic()
            assert ended(made.run(folder / name)) == 0, (folder / name / "said.err").read_text()
            made.seconds = time.monotonic() - began
        made.expected = timeless((folder / "reference" / "said.out").read_text())
        assert made.expected == timeless((folder / "warm" / "said.out").read_text())
        made.asked = Counter(question(b) for b in served.bodies[before:])
        yield made


def disturbed(scene: Scene, folder: Path, seed: int) -> None:
    """Kill a run a few times at random moments, let it end, and hold what came of it against the undisturbed one."""
    draw, before = random.Random(seed), len(scene.served.bodies)
    kills = 0
    for _ in range(KILLS):
        process = scene.run(folder)
        process.join(draw.uniform(0.0, scene.seconds))
        kills += process.exitcode is None
        process.kill()
        process.join()
    assert ended(scene.run(folder)) == 0, (folder / "said.err").read_text()
    assert timeless((folder / "said.out").read_text()) == scene.expected
    for cell in (folder / "mlruns" / "cells").iterdir():
        ids = [json.loads(line)["id"] for line in (cell / "rows.jsonl").read_text().splitlines()]
        assert sorted(ids) == sorted(f"test{n}" for n in range(200, 212))
        assert not (cell / "serving.jsonl").exists()
    again = Counter(question(b) for b in scene.served.bodies[before:]) - scene.asked
    # Asked again: what was under way when the process died, and two requests an arm to warm up before timing goes on.
    assert again.total() <= kills * (THREADS + 2 * 3), again
    assert again.total() - sum(again[q] for q in warm_ups(again)) <= kills * THREADS, again
    assert tracked(folder / "mlruns") == Counter(c.name for c in (folder / "mlruns" / "cells").iterdir())


def warm_ups(questions: Counter[str]) -> list[str]:
    """Return the questions that a warm-up asks: the first two of the test split, in each arm's prompt."""
    first = ("kind0 of 200", "kind1 of 201")
    return [q for q in questions if any(f in json.loads(q)[-1]["content"] for f in first)]


def tracked(store: Path) -> Counter[str]:
    """Return how often MLflow holds each cell."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert {r.info.status for r in found} == {"FINISHED"}
    return Counter(r.data.tags["crossover.cell"] for r in found if "crossover.cell" in r.data.tags)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_run_ends_as_if_nothing_had_happened(scene: Scene, tmp_path: Path, seed: int) -> None:
    disturbed(scene, tmp_path, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5, 60))
def test_kills_by_the_dozen(scene: Scene, tmp_path: Path, seed: int) -> None:
    disturbed(scene, tmp_path, seed)


SEARCHES = {
    "mipro": "{mipro: {candidates: 3, trials: 3, bootstrapped: 1, labelled: 1}}",
    "gepa": "{gepa: {minibatch: 2}}",
}
IDEAS = ("Answer with the first word of the text.", "Answer with the first letter of the text.", "Answer.")


def proposing(model: str, messages: Messages) -> str:
    """Answer as a teacher whose ideas follow from what it is shown, and as a student that needs some time."""
    time.sleep(0.02)
    if model != "gpt-4o":
        return first_word(model, messages)
    idea = IDEAS[zlib.crc32(question({"messages": messages}).encode()) % len(IDEAS)]
    return in_chat_frame({f: idea for f in asked_fields(messages)})


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_a_search_that_is_killed_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    with openai_server(proposing) as served:
        teacher = f'teacher: {{name: openai/gpt-4o, api_base: "{served.url}", max_tokens: 300}}\n'
        file = write_remote(
            tmp_path, served.url, methods=f"[{SEARCHES[name]}]", more=f"{teacher}budget: {{metric_calls: 40}}"
        )

        def run(folder: str) -> Any:
            place = tmp_path / folder
            place.mkdir(exist_ok=True)
            return start(place, place / "said", "run", str(file), "-j", str(THREADS), "-q", "--json", *UNTRACKED)

        def results(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
            (result,) = (tmp_path / folder).glob("mlruns/cells/*/result.json")
            said = timeless((tmp_path / folder / "said.out").read_text())
            return said, json.loads(result.read_text())["fit"]

        assert ended(run("whole")) == 0, (tmp_path / "whole" / "said.err").read_text()
        asked = Counter(question(b) for b in served.bodies)
        said, fit = results("whole")
        assert fit["calls"] > 20
        before = len(served.bodies)
        killed = run("killed")
        wait_for(lambda: len(served.bodies) - before > fit["calls"] // 2)
        killed.kill()
        killed.join()
        (answers,) = (tmp_path / "killed").glob("mlruns/cells/*/answers.jsonl")
        assert 0 < answers.read_text().count("\n") < fit["calls"]
        assert ended(run("killed")) == 0, (tmp_path / "killed" / "said.err").read_text()
        again = Counter(question(b) for b in served.bodies[before:]) - asked
    # Asked twice: what was under way when the process died. Spent is the same, to the cent.
    assert again.total() <= THREADS, again
    said_again, fit_again = results("killed")
    assert said_again == said
    assert {k: v for k, v in fit_again.items() if k != "seconds"} == {k: v for k, v in fit.items() if k != "seconds"}


def test_fresh_starts_over_and_deletes_nothing(scene: Scene, tmp_path: Path) -> None:
    assert ended(scene.run(tmp_path)) == 0
    store = tmp_path / "mlruns"
    rows = {f.parent.name: f.read_bytes() for f in store.glob("cells/*/rows.jsonl")}
    before = len(scene.served.bodies)
    process = start(tmp_path, tmp_path / "said", "run", str(scene.file), "-q", "--json", "--fresh", "-j", "2")
    assert ended(process) == 0, (tmp_path / "said.err").read_text()
    assert timeless((tmp_path / "said.out").read_text()) == scene.expected
    assert Counter(question(b) for b in scene.served.bodies[before:]) == scene.asked
    assert {f.parent.name: f.read_bytes() for f in store.glob("aside/*/rows.jsonl")} == {
        f"{key}-1": data for key, data in rows.items()
    }
    assert set(tracked(store).values()) == {2}


def test_an_amended_file_runs_the_difference_alone(scene: Scene, tmp_path: Path) -> None:
    assert ended(scene.run(tmp_path)) == 0
    before = len(scene.served.bodies)
    text = scene.file.read_text().replace("[zero_shot,", "[zero_shot, {few_shot: {demos: 3}},")
    for split in ("train", "val", "test"):
        text = text.replace(f": {split}.jsonl", f": {scene.file.parent}/{split}.jsonl")
    text = text.replace(", {bootstrap: {bootstrapped: 1, labelled: 2}}", "")
    (tmp_path / "more.yaml").write_text(text + "seeds: [0, 1]\n")
    cells = {f.name for f in (tmp_path / "mlruns" / "cells").iterdir()}
    process = start(tmp_path, tmp_path / "said", "run", str(tmp_path / "more.yaml"), "-q", "-j", "2", *UNTRACKED)
    assert ended(process) == 0, (tmp_path / "said.err").read_text()
    new = {f.name for f in (tmp_path / "mlruns" / "cells").iterdir()} - cells
    # Two seeds of three demonstrations, and the second seed of two; zero-shot has no seeds.
    assert len(new) == 3
    assert len(scene.served.bodies) - before == 3 * (12 + 2 + 30)
