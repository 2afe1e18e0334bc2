"""Measure what tracking adds to the time of a run on a provider's model, against a server on loopback."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openai_server import Messages, openai_server
from remote_experiment import first_word, write_remote
from section import write_section

METHODS = "[zero_shot, {few_shot: {demos: 2}}, {few_shot: {demos: 4}}, {retrieved_demos: {demos: 2}}]"
MOST = 0.03


def seconds(file: Path, store: Path, *flags: str) -> float:
    """Return the wall time of one run in a process of its own."""
    command = [sys.executable, "-m", "eval.cli", "run", str(file), "--store", str(store), "-q", "-j", "4", *flags]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    return time.perf_counter() - start


def main() -> int:
    """Run with and without tracking in turn, and write by how much the medians differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--answer-seconds", type=float, default=0.1)
    flags = parser.parse_args()

    def answer(model: str, messages: Messages) -> str:
        time.sleep(flags.answer_seconds)
        return first_word(model, messages)

    times: dict[str, list[float]] = {"tracked": [], "untracked": []}
    with tempfile.TemporaryDirectory() as folder, openai_server(answer) as served:
        file = write_remote(Path(folder), served.url, methods=METHODS, test=flags.rows)
        for n in range(flags.repeats):
            for name, more in (("untracked", ["--tracking-uri", "none"]), ("tracked", [])):
                times[name].append(seconds(file, Path(folder) / f"{name}-{n}", *more))
                print(f"{name} {times[name][-1]:.1f} s", file=sys.stderr)
    tracked, untracked = (statistics.median(times[n]) for n in ("tracked", "untracked"))
    slower = tracked / untracked - 1
    what = f"4 cells of {flags.rows} examples at {1000 * flags.answer_seconds:.0f} ms an answer"
    figures = f"{tracked:.1f} s against {untracked:.1f} s, medians of {flags.repeats}"
    command = f"`PYTHONPATH=tests python benchmarks/tracking.py`, which fails above {MOST:.0%}"
    text = f"Tracking, MLflow's sqlite store made anew, adds {100 * slower:.1f} % to a run of {what}: {figures}"
    write_section("tracking", f"{text} ({command}).")
    print(json.dumps(times))
    return 0 if slower <= MOST else 1


if __name__ == "__main__":
    raise SystemExit(main())
