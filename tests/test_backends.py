"""Cells on workers of Ray and Slurm are what they are in a local run, whichever worker ends on the way."""

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from crashing import question, summaries, timeless
from openai_server import Messages, Served, openai_server
from openings import write_openings
from processes import UNTRACKED, ended, start, wait_for
from ray_nodes import ALONE, ray_nodes
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import plan
from crossover.eval.run.backends.worker import Job, Outcome, score_cell
from crossover.eval.run.context import RunContext
from crossover.eval.run.progress import Progress
from crossover.eval.store.timings import read_timed

METHODS = "[zero_shot, {few_shot: {demos: 1}}, {few_shot: {demos: 2}}, {few_shot: {demos: 3}}]"
ROWS, THREADS, FIRST_OF_TEST = 12, 2, 200
FREE = 8
"""Answers before questions wait: too few for a cell to be done, so that each worker has questions that wait."""


class Gate:
    """A model that can be made to keep questions waiting, after a number of answers, until it is opened."""

    def __init__(self) -> None:
        self.left, self.waiting = 10**9, 0
        self.opened, self.lock = threading.Event(), threading.Lock()

    def close_after(self, answers: int) -> None:
        self.left, self.waiting = answers, 0
        self.opened.clear()

    def __call__(self, model: str, messages: Messages) -> str:
        with self.lock:
            self.left -= 1
            waits = self.left < 0
            self.waiting += waits
        if waits:
            self.opened.wait()
        return first_word(model, messages)


class Scene:
    """An experiment at a gated server, and what a local run makes of it."""

    def __init__(self, folder: Path, gate: Gate, served: Served) -> None:
        self.folder, self.gate, self.served = folder, gate, served
        self.file = write_remote(folder, served.url, methods=METHODS)
        # A question waits until workers have started that import everything.
        patient = self.file.read_text().replace("max_tokens: 8", "max_tokens: 8, timeout: 600")
        self.file.write_text(patient)
        assert ended(self.run("local")) == 0, self.said("local")
        self.timed, self.asked = streamed(served.bodies), len(served.bodies)
        self.printed, self.stored = timeless((folder / "local.out").read_text()), summaries(folder / "local")

    def run(self, name: str, *flags: str, store: str = "", **environment: str) -> BaseProcess:
        argv = ["run", str(self.file), "-j", str(THREADS), "--json", "--store", store or name, *flags, *UNTRACKED]
        return start(self.folder, self.folder / name, *argv, **environment)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()

    def rows(self, name: str) -> int:
        return sum(f.read_text().count("\n") for f in (self.folder / name).glob("cells/*/rows.jsonl"))

    def check(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Hold a run on workers against the local one: nothing lost or doubled, and arms timed in the same order."""
        # Only requests that are timed are streamed; the run makes them one by one, so that arms take turns.
        assert streamed(self.served.bodies[self.asked :]) == self.timed
        store = self.folder / name
        for file in store.glob("cells/*/rows.jsonl"):
            ids = Counter(json.loads(line)["id"] for line in file.read_text().splitlines())
            assert len(ids) == ids.total() == ROWS
        assert summaries(store) == self.stored
        assert timeless((self.folder / f"{name}.out").read_text()) == self.printed
        found = []
        for each in ("local", name):
            assert main(["recommend", "--json", "--store", str(self.folder / each)]) == 0
            found.append(timeless(capsys.readouterr().out))
        assert found[0] == found[1]


def streamed(bodies: list[dict[str, Any]]) -> list[str]:
    return [question(b) for b in bodies if b.get("stream")]


def asks_test(body: dict[str, Any]) -> bool:
    return int(body["messages"][-1]["content"].split()[-1]) >= FIRST_OF_TEST


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    gate = Gate()
    with openai_server(gate) as served:
        yield Scene(tmp_path, gate, served)
        gate.opened.set()


@pytest.mark.slow
def test_a_ray_node_dies_and_its_cells_are_measured_elsewhere(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    with ray_nodes(2) as cluster:
        scene.gate.close_after(FREE)
        run = scene.run("away", "--backend", "ray", RAY_ADDRESS=cluster.address, **ALONE)
        # More than one worker asks at once: both are at work.
        wait_for(lambda: scene.gate.waiting > THREADS or not run.is_alive())
        assert run.is_alive(), scene.said("away")
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        scene.gate.opened.set()
        assert ended(run) == 0, scene.said("away")
    scene.check("away", capsys)
    asked = len(scene.served.bodies)
    assert ended(scene.run("again", store="away")) == 0
    assert len(scene.served.bodies) == asked, "a cell that is finished under Ray is not finished here"


@pytest.mark.slow
def test_a_pre_empted_job_is_queued_again_and_goes_on(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.gate.close_after(FREE)
    run = scene.run("jobs", "--backend", "slurm:local")
    wait_for(lambda: scene.gate.waiting > 1 or not run.is_alive())
    assert run.is_alive(), scene.said("jobs")
    begun = next((scene.folder / "jobs" / "cells").glob("*/program.json")).parent.name
    log = scene.folder / "jobs" / "slurm" / f"{begun}.err"
    # A local job is numbered by its controller, whose one child does the work.
    (task,) = psutil.Process(int(log.readlink().name.partition("_")[0])).children()
    task.send_signal(signal.SIGUSR2)
    wait_for(lambda: "Caught signal SIGUSR2" in log.read_text(), 60)
    scene.gate.opened.set()
    assert ended(run) == 0, scene.said("jobs")
    scene.check("jobs", capsys)
    assert "Requeued job" in log.with_suffix(".out").read_text()
    assert {f.stem for f in log.parent.glob("*.out") if f.is_symlink()} == set(scene.stored)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ray", "slurm:local"])
def test_ctrl_c_ends_the_workers_and_keeps_their_rows(scene: Scene, backend: str) -> None:
    scene.gate.close_after(FREE)
    run = scene.run("away", "--backend", backend)
    wait_for(lambda: (scene.gate.waiting > 1 and scene.rows("away") > 0) or not run.is_alive())
    assert run.pid is not None
    assert run.is_alive(), scene.said("away")
    workers = psutil.Process(run.pid).children(recursive=True)
    if backend == "ray":
        assert_loopback_alone(workers)
    os.kill(run.pid, signal.SIGINT)
    assert ended(run) == 130, scene.said("away")
    said = scene.said("away")
    assert said.count("Ctrl-C") == 1
    assert "Traceback" not in said
    gone, alive = psutil.wait_procs(workers, 60)
    assert gone
    assert not alive
    scene.gate.opened.set()
    rows = scene.rows("away")
    assert 0 < rows <= FREE
    # A local run goes on from these rows.
    before = len(scene.served.bodies)
    assert ended(scene.run("again", store="away")) == 0
    scored = [b for b in scene.served.bodies[before:] if not b.get("stream") and asks_test(b)]
    # An answer that came as the workers ended may lie there without its row.
    assert 4 * ROWS - FREE <= len(scored) <= 4 * ROWS - rows
    assert summaries(scene.folder / "away") == scene.stored


def test_a_worker_times_a_cell_that_nobody_began(tmp_path: Path) -> None:
    store, quiet = tmp_path / "mlruns", Progress(enabled=False)
    with openai_server(first_word, word_seconds=0.0) as served:
        experiment, _ = read_experiment(write_remote(tmp_path, served.url))
        assert experiment is not None
        context, cell = RunContext.of(experiment, store=store, threads=THREADS, progress=quiet), plan(experiment)[0]
        job, key = Job("run", experiment, store, THREADS), context.keys.of(cell)
        first, again = score_cell(job, key, cell), score_cell(job, key, cell)
        other = score_cell(job, "another", cell)
    assert first.part is not None
    assert first.part.seconds > 0
    assert again == Outcome(key, "")
    assert "has other data, weights or code than the machine of the run" in other.failure


@pytest.mark.slow
def test_weights_that_a_worker_trained_are_timed_by_the_run(tmp_path: Path) -> None:
    trained = "[zero_shot, sft: {epochs: 2, rank: 4, bf16: false}]"
    file = write_openings(tmp_path, trained, test=12, more="prices: {machine_hour_usd: 0}\n")
    for name, backend in (("here", "local"), ("away", "slurm:local")):
        argv = ["run", str(file), "--json", "--store", name, "--backend", backend, *UNTRACKED]
        assert ended(start(tmp_path, tmp_path / name, *argv)) == 0, (tmp_path / f"{name}.err").read_text()
    stored = [summaries(tmp_path / name) for name in ("here", "away")]
    for cell in (cell for each in stored for cell in each.values()):
        # A worker's process has not read the prompts of another cell before.
        del cell["fit"]["cached_tokens"]
    assert stored[0] == stored[1]
    assert timeless((tmp_path / "away.out").read_text()) == timeless((tmp_path / "here.out").read_text())
    said = (tmp_path / "away.err").read_text()
    assert "training step" not in said, "the run trained again what a worker had trained"
    assert len(read_timed(tmp_path / "away")) == 1


@pytest.mark.slow
def test_a_limit_of_minutes_ends_the_workers(scene: Scene) -> None:
    scene.gate.close_after(0)
    run = scene.run("away", "--backend", "slurm:local", "--max-minutes", "0.2")
    assert run.pid is not None
    process = psutil.Process(run.pid)
    wait_for(lambda: not run.is_alive() or process.children())
    workers = process.children(recursive=True) if run.is_alive() else []
    assert ended(run) == 2
    assert "no cell was measured before the limit of 0.2 minutes" in scene.said("away")
    _, alive = psutil.wait_procs(workers, 60)
    assert not alive
    scene.gate.opened.set()
    assert ended(scene.run("again", store="away")) == 0
    assert summaries(scene.folder / "away") == scene.stored


def assert_loopback_alone(processes: list[psutil.Process]) -> None:
    """Check by `ss` that every port that the processes listen on is one of 127.0.0.1."""
    listed = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    pids = {f"pid={p.pid}," for p in processes}
    addresses = [line.split()[3] for line in listed if any(pid in line for pid in pids)]
    assert addresses
    # The second is how a socket of both families shows the first.
    assert {a.rpartition(":")[0] for a in addresses} <= {"127.0.0.1", "[::ffff:127.0.0.1]"}


LEAVE_OUT = "leave it out, or use --backend local"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["rya"], "no such backend; use local, ray, ray://HOST:PORT, slurm or slurm:local"),
        (["slurm"], "no sbatch here; run it where jobs are submitted, or use --backend local"),
        (
            ["ray", "--max-calls", "9"],
            f"the limit of 9 calls is counted in one process; {LEAVE_OUT}",
        ),
        (
            ["ray", "--max-usd", "0.5"],
            f"the limit of 0.5 usd is counted in one process; {LEAVE_OUT}",
        ),
        (
            ["slurm:local", "--set", "racing=true"],
            "racing drops arms in one process; leave out `racing: true`, or use --backend local",
        ),
    ],
)
def test_what_no_backend_can_do_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], why: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = write_remote(tmp_path, "http://127.0.0.1:9/v1")
    assert main(["run", str(file), "--store", str(tmp_path / "mlruns"), "-q", "--backend", *flags]) == 2
    assert capsys.readouterr().err == f"error: --backend {flags[0]}: {why}\n"
    assert not (tmp_path / "mlruns" / "cells").exists()
