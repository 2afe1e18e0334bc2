"""Measure what tracking adds to a run on a provider's model, against a server on loopback.

A shared machine is noisy: runs with and without tracking come in pairs, the order of each drawn, and the interval is
that of the mean over pairs. Processor time stands beside wall time: what else the machine does hardly moves it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from section import write_section

from crossover.eval.analysis.stats import mean_interval
from crossover.eval.tracking.tracker import Tracker

METHODS = "[zero_shot, {few_shot: {demos: 2}}, {few_shot: {demos: 4}}, {retrieved_demos: {demos: 2}}]"
MOST = 0.05
TESTS = Path(__file__).parent.parent / "tests"
KINDS = {"untracked": "none", "tracked": "", "first": ""}
"""Runs by what they add: nothing, a run in a database that is there, and the making of one."""

LOADED = (
    "crossover.eval.run.run",
    "crossover.eval.report.page",
    "crossover.finetune.training.sft_training",
    "crossover.models.local",
)
"""Modules that a run of a local model loads, tracked or not."""


@dataclass(frozen=True)
class Cost:
    """What one run took, in seconds."""

    wall: float
    processor: float


def of_tests(name: str) -> ModuleType:
    """Return a module of the tests, which are no package."""
    found = util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    sys.modules[name] = module = util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def processor_seconds(arguments: list[str]) -> float:
    """Return the processor time of one command in a process that has loaded what a run loads without tracking."""
    code = (
        "import importlib, sys, time\n"
        "for name in sys.argv[1].split():\n"
        "    importlib.import_module(name)\n"
        "from crossover.eval.cli.main import main\n"
        "start = time.process_time()\n"
        "code = main(sys.argv[2:])\n"
        "print(time.process_time() - start)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, " ".join(LOADED), *arguments]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
    return float(out.split()[-1])


def timed(arguments: list[str]) -> Cost:
    """Return what one command in a process of its own took."""
    command = [sys.executable, "-m", "crossover.eval.cli.main", *arguments]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime)


def prepared(folder: Path, kind: str, database: Path) -> Path:
    """Return an empty store, with MLflow's database where the run is to find one."""
    folder.mkdir()
    if kind == "tracked":
        shutil.copy(database, folder / "mlflow.db")
    return folder


@contextmanager
def provider(answer_seconds: float) -> Iterator[Any]:
    """Serve a model that takes so long for every answer."""
    server, experiment = of_tests("openai_server"), of_tests("remote_experiment")

    def answer(model: str, messages: Any) -> str:
        time.sleep(answer_seconds)
        return str(experiment.first_word(model, messages))

    with server.openai_server(answer) as served:
        yield lambda folder, rows: experiment.write_remote(folder, served.url, methods=METHODS, test=rows)


def measured(flags: argparse.Namespace) -> dict[str, list[Cost]]:
    """Run every kind once a repeat, in an order drawn anew."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name, provider(flags.answer_seconds) as write:
        folder = Path(name)
        Tracker(folder / "empty")
        file = write(folder, flags.rows)
        for n in range(flags.repeats):
            for kind in draw.sample(list(KINDS), len(KINDS)):
                store = prepared(folder / f"{kind}-{n}", kind, folder / "empty" / "mlflow.db")
                uri = ["--tracking-uri", KINDS[kind]] if KINDS[kind] else []
                costs[kind].append(timed(["run", str(file), "--store", str(store), "-q", "-j", "4", *uri]))
                print(f"{kind} {costs[kind][-1]}", file=sys.stderr)
                shutil.rmtree(store)
    return costs


def sending(store: Path) -> str:
    """Return what sending a finished store to an empty database takes, of the time that its run took, in words."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "mlruns"
        # Without what MLflow holds of it, so that all is sent.
        shutil.copytree(store, copy, ignore=shutil.ignore_patterns("mlflow.db", "artifacts", "tracked.json"))
        processor = processor_seconds(["sync", "--store", str(copy)])
        results = [json.loads(file.read_text(encoding="utf-8")) for file in copy.glob("cells/*/result.json")]
        latencies = [sum(r["latency"]["seconds"]) + sum(r["latency"].get("cold", ())) for r in results]
        took = sum(r["fit"]["seconds"] + r["serve_seconds"] for r in results) + sum(latencies)
        client = Tracker(copy).client
        experiments = [e.experiment_id for e in client.search_experiments()]
        traces = len(client.search_traces(locations=experiments, max_results=5000, include_spans=False))
    return (
        f"Sending {len(results)} cells with {traces} traces to an empty database takes {processor:.0f} s of "
        f"processor time, {processor / took:.1%} of the {took:.0f} s that fitting and measuring them took, in a "
        f"process that has loaded what a run loads (`python benchmarks/tracking.py --store {store}`)."
    )


def added(costs: dict[str, list[Cost]], kind: str, what: str) -> tuple[float, float, float]:
    """Return the share by which a kind of run takes longer than one that is not tracked, with its interval."""
    plain, other = (np.array([vars(c)[what] for c in costs[k]]) for k in ("untracked", kind))
    # Of the run's wall time, either: processor time beside a wait for the provider is no delay, and at most this one.
    found = mean_interval((other - plain) / np.mean([c.wall for c in costs["untracked"]]))
    return found.mean, found.low, found.high


def sentence(costs: dict[str, list[Cost]], kind: str) -> str:
    """Return what a kind of run adds, in words."""
    wall, processor = (added(costs, kind, what) for what in ("wall", "processor"))
    told = [f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in (wall, processor)]
    return f"{told[0]} of wall time and {told[1]} of processor time"


def main() -> int:
    """Measure, write what tracking adds, and fail where it is more than a run may be slowed by."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--answer-seconds", type=float, default=0.1)
    parser.add_argument("--store", type=Path, help="Measure what sending this finished store takes, and nothing else.")
    flags = parser.parse_args()
    if flags.store:
        write_section("sending", sending(flags.store), TESTS.parent / "docs" / "mlflow.md")
        return 0
    costs = measured(flags)
    whole = np.mean([c.wall for c in costs["untracked"]])
    what = f"4 cells of {flags.rows} examples at {1000 * flags.answer_seconds:.0f} ms an answer ({whole:.0f} s)"
    text = (
        f"Tracking adds {sentence(costs, 'tracked')} to a run of {what}, and the first run of a store, which makes "
        f"MLflow's database, {sentence(costs, 'first')}; means over {flags.repeats} runs of each kind side by side, "
        f"with 95 % intervals, all as shares of the untracked wall time "
        f"(`python benchmarks/tracking.py --repeats {flags.repeats}`, which fails where the interval of the wall time "
        f"lies above {MOST:.0%})."
    )
    write_section("tracking", text)
    return 1 if added(costs, "tracked", "wall")[1] > MOST else 0


if __name__ == "__main__":
    raise SystemExit(main())
