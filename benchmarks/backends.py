"""Cells on Ray workers: how much faster more of them are, and what is left of a run whose workers die.

`python benchmarks/backends.py speed|kills [--write]` runs, on Ray nodes of one processor on 127.0.0.1:
`speed`: cells at a model that takes 200 ms a call, with 1, 2 and 4 workers;
`kills`: 200 cells at a model that answers at once, with 4 workers of which two are killed, held against a local run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from crashing import timeless
from openai_server import Messages, openai_server
from ray_nodes import ALONE, ray_nodes
from remote_experiment import first_word, write_remote
from section import markdown_table, write_section

SCALE = Path(__file__).parent.parent / "docs" / "scale.md"
SECONDS, CALLS_AT_ONCE = 0.2, 2
CELLS, QUESTIONS, WORKERS = 16, 60, (1, 2, 4)
MANY, ROWS, KILLED_AT = 200, 12, (50, 100)
SETTINGS = ALONE | {"CROSSOVER_LATENCY_REQUESTS": "1", "OPENAI_API_KEY": "none"}


class Clock:
    """A model that takes its time, and notes when it answered, and whether all workers asked at once then."""

    def __init__(self, seconds: float) -> None:
        """Take so many seconds for each answer."""
        self.seconds, self.lock = seconds, threading.Lock()
        self.expect(0, 0)

    def expect(self, answers: int, at_once: int) -> None:
        """Begin anew: so many answers are those of accuracy passes, and so many questions wait when all workers ask."""
        self.answers, self.at_once, self.answered, self.waiting = answers, at_once, 0, 0
        self.times = list[tuple[float, bool]]()

    def __call__(self, model: str, messages: Messages) -> str:
        """Answer a question."""
        with self.lock:
            self.waiting += 1
        time.sleep(self.seconds)
        with self.lock:
            self.answered += 1
            if self.answered <= self.answers:
                self.times.append((time.perf_counter(), self.waiting >= self.at_once))
            self.waiting -= 1
        return first_word(model, messages)

    def rate(self) -> float:
        """Return the answers a second from the first moment at which all workers asked to the last one."""
        together = [n for n, (_, all_ask) in enumerate(self.times) if all_ask]
        first, last = together[0], together[-1]
        return (last - first) / (self.times[last][0] - self.times[first][0])


def command(*arguments: str) -> list[str]:
    """Return a command of crossover."""
    return [sys.executable, "-m", "crossover.eval.cli.main", *arguments]


def run_on(file: Path, store: Path, address: str) -> "subprocess.Popen[bytes]":
    """Start the experiment in a store, on the cluster at an address, or locally where that is empty."""
    flags = ["-j", str(CALLS_AT_ONCE), "--tracking-uri", "none", "--backend", "ray" if address else "local", "-q"]
    log = store.with_suffix(".log").open("wb")
    argv = command("run", str(file), "--store", str(store), *flags)
    return subprocess.Popen(argv, env=os.environ | {"RAY_ADDRESS": address}, stdout=log, stderr=log)


def wait(process: "subprocess.Popen[bytes]", store: Path) -> None:
    """Wait for a run to end well."""
    if process.wait():
        raise SystemExit(store.with_suffix(".log").read_text())


def on_cluster(file: Path, store: Path, workers: int, during: Callable[[Any], None] = lambda cluster: None) -> None:
    """Run the experiment on a cluster of so many nodes, while something happens to it."""
    with ray_nodes(workers) as cluster:
        process = run_on(file, store, cluster.address)
        during(cluster)
        wait(process, store)


def experiment(folder: Path, url: str, *, cells: int, questions: int) -> Path:
    """Write an experiment of so many cells: few-shot prompts of one to four demonstrations, over seeds."""
    methods = "[" + ", ".join(f"{{few_shot: {{demos: {n}}}}}" for n in range(1, 5)) + "]"
    more = f"compare: all\nseeds: {list(range(cells // 4))}"
    return write_remote(folder, url, methods=methods, test=questions, more=more)


def efficiency(folder: Path) -> str:
    """Return a table of the calls a second that 1, 2 and 4 workers make of the same cells."""
    model, rows, alone = Clock(SECONDS), list[tuple[str, ...]](), 0.0
    with openai_server(model) as served:
        file = experiment(folder, served.url, cells=CELLS, questions=QUESTIONS)
        for n in WORKERS:
            model.expect(CELLS * QUESTIONS, n * CALLS_AT_ONCE)
            on_cluster(file, folder / f"store{n}", n)
            alone = alone or model.rate()
            rows.append((str(n), f"{model.rate():.1f}", f"{model.rate() / n / alone:.2f}"))
            sys.stderr.write(f"{rows[-1]}\n")
    return (
        f"{CELLS} cells of {QUESTIONS} questions, a model that takes {1000 * SECONDS:.0f} ms a call, "
        f"{CALLS_AT_ONCE} calls at once for each worker; calls a second while all workers are at work, "
        "efficiency against one worker (`python benchmarks/backends.py speed`):\n\n"
    ) + markdown_table(("workers", "calls a second", "efficiency"), rows)


def after_kills(folder: Path) -> str:
    """Kill two of four workers under a run, and return in what it differs from a local one."""
    local, away = folder / "local", folder / "away"

    def kill(cluster: Any) -> None:
        for done, node in zip(KILLED_AT, list(cluster.worker_nodes)[:2], strict=True):
            while sum(1 for _ in away.glob("cells/*/rows.jsonl")) < done:
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)

    with openai_server(first_word, word_seconds=0.0) as served:
        file = experiment(folder, served.url, cells=MANY, questions=ROWS)
        wait(run_on(file, local, ""), local)
        on_cluster(file, away, 4, kill)
    counts = [Counter(json.loads(line)["id"] for line in f.open()) for f in away.glob("cells/*/rows.jsonl")]
    whole = sum(len(ids) == ids.total() == ROWS for ids in counts)
    found = [
        timeless(
            subprocess.run(command("recommend", "--json", "--store", str(s)), capture_output=True, text=True).stdout
        )
        for s in (local, away)
    ]
    same = "what it says" if found[0] == found[1] else "NOT what it says"
    return (
        f"{MANY} cells of {ROWS} rows on 4 workers, two of them killed (`kill -9`) when {KILLED_AT[0]} and "
        f"{KILLED_AT[1]} cells had rows: {whole} cells have each row once, and `recommend --json` says, byte for "
        f"byte but for latencies, {same} after a local run (`python benchmarks/backends.py kills`)."
    )


PARTS = {"speed": efficiency, "kills": after_kills}


def main() -> None:
    """Measure a part, print it, and write it into docs/scale.md if asked to."""
    os.environ.update(SETTINGS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--write", action="store_true", help="write the result into docs/scale.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = PARTS[asked.part](Path(name) / asked.part)
    sys.stdout.write(f"{text}\n")
    if asked.write:
        write_section(f"workers-{asked.part}", text, SCALE)


if __name__ == "__main__":
    main()
