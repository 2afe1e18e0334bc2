"""Experiments that are killed while they run, and what has to come of them all the same."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import unified_diff
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from openai_server import Served
from processes import ended, start

from crossover.eval.run.latency import timed_questions

THREADS = 2
TIMES = ("latency_ms", "retrieval_ms", "mlflow_run_id", "mlflow_run_ids")
"""Keys of an arm in `--json` that no two runs share: what was timed, and the names that MLflow gave."""
RESULT_TIMES = ("latency", "serve_seconds", "rows_sha256", "mlflow_run_id", "finished_on")
"""Keys of a cell's summary that no two runs share; the rows hold the seconds of each answer."""
NOTE_TIMES = ("resumed_from_step", "replayed_calls")
"""Notes that tell of the interruption itself."""

Moment = Callable[[Path], bool]
"""Tells, of the folder of a run, whether the time has come."""


def timeless(text: str) -> str:
    """Return `--json` without the values that no two runs share."""
    data = json.loads(text)
    for arm in data["arms"]:
        arm.update(dict.fromkeys(TIMES))
    return json.dumps(data, indent=1)


def summaries(store: Path) -> dict[str, Any]:
    """Return what the store says of each cell, without times: what fitting spent, its notes, the rows by their id."""
    found = {}
    for file in store.glob("cells/*/result.json"):
        data = json.loads(file.read_text())
        for name in RESULT_TIMES:
            del data[name]
        data["fit"]["seconds"] = 0
        data["notes"] = {k: v for k, v in data["notes"].items() if k not in NOTE_TIMES}
        rows = [json.loads(line) | {"seconds": 0} for line in file.with_name("rows.jsonl").read_text().splitlines()]
        found[file.parent.name] = data | {"rows": sorted(rows, key=lambda row: str(row["id"]))}
    return found


def tracked(store: Path, experiment: str) -> Counter[str]:
    """Return how often MLflow holds each cell; no run of the experiment stands open."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert {r.info.status for r in found} == {"FINISHED"}
    return Counter(r.data.tags["crossover.cell"] for r in found if "crossover.cell" in r.data.tags)


def question(body: dict[str, Any]) -> str:
    return json.dumps(body["messages"])


@dataclass
class Scene:
    """An experiment, its server where it has one, and how a run of it ends that nobody disturbs."""

    file: Path
    database: Path
    """An empty MLflow store: making one takes longer than the run."""
    served: Served = field(default_factory=lambda: Served(""))
    name: str = "words"
    expected: str = ""
    summaries: dict[str, Any] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    warm_up: tuple[str, ...] = ()
    """Texts of the test examples that an arm is warmed up with before it is timed."""
    seconds: float = 0.0
    sending: float = 0.0
    """Of the seconds, those from the first finished cell on, in which MLflow is told."""

    def play(self, folder: Path) -> None:
        """Run once without a kill, and keep what came of it."""
        before, began, written = len(self.served.bodies), time.monotonic(), 0.0
        process = self.run(folder)
        while process.is_alive():
            process.join(0.01)
            written = written or (time.monotonic() if made("cells/*/result.json")(folder) else 0.0)
        assert process.exitcode == 0, self.said(folder)
        self.seconds, self.sending = time.monotonic() - began, time.monotonic() - written
        self.expected, self.summaries = timeless(self.out(folder)), summaries(folder / "mlruns")
        test: Any = [json.loads(line) for line in (self.file.parent / "test.jsonl").read_text().splitlines()]
        ids = sorted(row["id"] for row in test)
        assert all([r["id"] for r in cell["rows"]] == ids for cell in self.summaries.values())
        self.warm_up = tuple(str(e.get("text")) for e in timed_questions(test, 1, seed=0, seeds=[0])[1])
        self.asked = Counter(question(b) for b in self.served.bodies[before:])

    def run(self, folder: Path, *flags: str) -> BaseProcess:
        """Start a run in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "mlruns").exists():
            (folder / "mlruns").mkdir()
            shutil.copy(self.database, folder / "mlruns" / "mlflow.db")
        # What an earlier process said must not be taken for this one's word.
        (folder / "said.err").unlink(missing_ok=True)
        argv = ["run", str(self.file), "-j", str(THREADS), "--json", *flags]
        return start(folder, folder / "said", *argv)

    def said(self, folder: Path) -> str:
        return (folder / "said.err").read_text()

    def out(self, folder: Path) -> str:
        return (folder / "said.out").read_text()

    def killed(self, folder: Path, moment: Moment, delay: float = 0.0) -> bool:
        """Run until the moment and a little longer, kill, and return whether the run was not over by then."""
        process = self.run(folder)
        while process.is_alive() and not moment(folder):
            process.join(0.002)
        process.join(delay)
        early = process.is_alive()
        process.kill()
        process.join()
        return early

    def held(self, folder: Path, before: int, kills: int) -> None:
        """Let a run end that was killed, and hold what came of it against the undisturbed one."""
        assert ended(self.run(folder)) == 0, self.said(folder)
        store = folder / "mlruns"
        changed = list(unified_diff(self.expected.splitlines(), timeless(self.out(folder)).splitlines(), lineterm=""))
        assert not changed, "\n".join(changed)
        assert summaries(store) == self.summaries
        assert not list(store.glob("cells/*/serving.jsonl"))
        again = Counter(question(b) for b in self.served.bodies[before:]) - self.asked
        warm_up = sum(n for q, n in again.items() if json.loads(q)[-1]["content"].endswith(self.warm_up))
        # Asked again: what was under way when the process died, and two requests an arm to warm up before timing.
        assert again.total() - warm_up <= kills * THREADS, again
        assert again.total() <= kills * (THREADS + 2 * len(self.summaries)), again
        assert tracked(store, self.name) == Counter(list(self.summaries))


def made(pattern: str) -> Moment:
    """Return the moment at which the store holds such a file."""
    return lambda folder: any((folder / "mlruns").glob(pattern))


def asked(served: Served, n: int) -> Moment:
    """Return the moment at which the server has been asked so many times from now on."""
    before = len(served.bodies)
    return lambda folder: len(served.bodies) - before >= n


def told(part: str) -> Moment:
    """Return the moment at which the run tells something."""
    return lambda folder: (folder / "said.err").exists() and part in (folder / "said.err").read_text()


def at_once(folder: Path) -> bool:
    """Be the moment at which the run starts."""
    return True
