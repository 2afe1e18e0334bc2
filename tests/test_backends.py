"""Cells on workers of Ray and Slurm are what they are in a local run, whichever worker ends on the way."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from crashing import summaries, timeless
from openai_server import Messages, Served, openai_server
from processes import UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main

METHODS = "[zero_shot, {few_shot: {demos: 1}}, {few_shot: {demos: 2}}, {few_shot: {demos: 3}}]"
ROWS, THREADS = 12, 2
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
        self.printed, self.stored = timeless((folder / "local.out").read_text()), summaries(folder / "local")

    def run(self, name: str, *flags: str, store: str = "", **environment: str) -> BaseProcess:
        argv = ["run", str(self.file), "-j", str(THREADS), "--json", "--store", store or name, *flags, *UNTRACKED]
        return start(self.folder, self.folder / name, *argv, **environment)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()

    def check(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Hold the store of a run on workers against the local one: nothing lost, doubled or different."""
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
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # On Linux, Ray takes 127.0.0.1 for the machine's address in the network, unless it is told that there is none.
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    monkeypatch.setenv(*next(iter(alone.items())))
    from ray.cluster_utils import Cluster

    loopback = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **loopback})
    try:
        nodes = [cluster.add_node(num_cpus=1, **loopback) for _ in range(2)]
        scene.gate.close_after(FREE)
        run = scene.run("away", "--backend", "ray", RAY_ADDRESS=cluster.address, **alone)
        # More than one worker asks at once: both are at work.
        wait_for(lambda: scene.gate.waiting > THREADS or not run.is_alive(), 120)
        assert run.is_alive(), scene.said("away")
        cluster.remove_node(nodes[0], allow_graceful=False)
        scene.gate.opened.set()
        assert ended(run) == 0, scene.said("away")
    finally:
        cluster.shutdown()
    scene.check("away", capsys)
    asked = len(scene.served.bodies)
    assert ended(scene.run("again", store="away")) == 0
    assert len(scene.served.bodies) == asked, "a cell that is finished under Ray is not finished here"


@pytest.mark.slow
def test_a_pre_empted_job_is_queued_again_and_goes_on(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.gate.close_after(FREE)
    run = scene.run("jobs", "--backend", "slurm")
    wait_for(lambda: scene.gate.waiting > 1 or not run.is_alive(), 120)
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


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--backend", "rya"], "no such backend; use local, ray, ray://HOST:PORT or slurm"),
        (["--backend", "ray", "--max-calls", "9"], "limits of dollars, calls or tokens hold one process"),
        (["--backend", "slurm", "--set", "racing=true"], "a race reads all arms side by side"),
    ],
)
def test_what_no_backend_can_do_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    file = write_remote(tmp_path, "http://127.0.0.1:9/v1")
    assert main(["run", str(file), "--store", str(tmp_path / "mlruns"), "-q", *flags]) == 2
    said = capsys.readouterr().err
    assert f"error: {flags[0]} {flags[1]}: " in said
    assert why in said
    assert not (tmp_path / "mlruns" / "cells").exists()
