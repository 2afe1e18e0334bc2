"""Kill -9 in the middle of a search: it goes on where it was, to the same end at the same price."""

import json
import math
import threading
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from crashing import question, timeless
from openai_server import Messages, asked_fields, in_chat_frame, openai_server
from processes import UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

THREADS = 2
SEARCHES = {
    "mipro": "{mipro: {candidates: 3, trials: 3, bootstrapped: 1, labelled: 1}}",
    "gepa": "{gepa: {minibatch: 2}}",
}
METRIC_CALLS = {"mipro": 200, "gepa": 28}
"""GEPA ends itself at its budget; MIPRO is broken off there, with one call of each thread more or less under way."""
IDEAS = ("Answer with the first word of the text.", "Answer with the first letter of the text.", "Answer.")


def proposing(model: str, messages: Messages) -> str:
    """Answer as a teacher whose ideas follow from what it is shown, and as a student."""
    if model != "gpt-4o":
        return first_word(model, messages)
    idea = IDEAS[zlib.crc32(question({"messages": messages}).encode()) % len(IDEAS)]
    return in_chat_frame({f: idea for f in asked_fields(messages)})


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_a_search_that_is_killed_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    most, killed_now = math.inf, threading.Event()

    def held(model: str, messages: Messages) -> str:
        if len(served.bodies) > most:
            killed_now.wait()
        return proposing(model, messages)

    with openai_server(held) as served:
        teacher = f'teacher: {{name: openai/gpt-4o, api_base: "{served.url}", max_tokens: 300}}\n'
        budget = f"budget: {{metric_calls: {METRIC_CALLS[name]}}}"
        file = write_remote(tmp_path, served.url, methods=f"[{SEARCHES[name]}]", more=teacher + budget)

        def run(folder: str) -> Any:
            place = tmp_path / folder
            place.mkdir(exist_ok=True)
            return start(place, place / "said", "run", str(file), "-j", str(THREADS), "-q", "--json", *UNTRACKED)

        def results(folder: str) -> tuple[str, dict[str, Any]]:
            (result,) = (tmp_path / folder).glob("mlruns/cells/*/result.json")
            said = timeless((tmp_path / folder / "said.out").read_text())
            return said, json.loads(result.read_text())["fit"]

        assert ended(run("whole")) == 0, (tmp_path / "whole" / "said.err").read_text()
        asked = Counter(question(b) for b in served.bodies)
        said, fit = results("whole")
        assert fit["calls"] > 14
        before = len(served.bodies)
        most = before + fit["calls"] // 2
        killed = run("killed")
        wait_for(lambda: len(served.bodies) > most)
        killed.kill()
        killed.join()
        killed_now.set()
        (answers,) = (tmp_path / "killed").glob("mlruns/cells/*/answers.jsonl")
        assert 0 < answers.read_text().count("\n") < fit["calls"]
        assert ended(run("killed")) == 0, (tmp_path / "killed" / "said.err").read_text()
        again = Counter(question(b) for b in served.bodies[before:]) - asked
    # Asked twice: what was under way when the process died. Spent is the same, to the cent.
    assert again.total() <= THREADS, again
    said_again, fit_again = results("killed")
    assert said_again == said
    assert {k: v for k, v in fit_again.items() if k != "seconds"} == {k: v for k, v in fit.items() if k != "seconds"}
