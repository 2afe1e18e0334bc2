"""Limits hold before each call, at its worst; a stopped run says that its table is partial and goes on later."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import pytest
from openai_server import Messages, openai_server
from processes import UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.eval.run.latency import latency_requests
from crossover.models.limits import Stopped, UsageLimits
from crossover.models.load import LoadedModel, load_model
from crossover.models.price import api_price
from crossover.models.spec import ModelSpec
from crossover.models.usage import Usage

REQUESTS, _ = latency_requests()
ALL = 2 * (12 + 2 + REQUESTS)
"""Calls of the experiment: test, warm-up and timed requests of two arms."""


def run(file: Path, *flags: str) -> int:
    return main(["run", str(file), "--store", str(file.parent / "mlruns"), "-q", *UNTRACKED, *flags])


def test_a_stopped_run_is_partial_and_the_next_one_pays_for_the_rest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url)
        page = tmp_path / "page.html"
        assert run(file, "--max-calls", "20", "-j", "4", "-o", str(page)) == 4
        assert len(served.bodies) == 20
        out, err = capsys.readouterr()
        assert out.startswith("PARTIAL: stopped by 20 calls; 1 of 2 cells are scored\n")
        assert "crossover ui" not in out
        assert (f"warning: {page}: not written: " in err, page.exists()) == (True, False)
        assert run(file, "--max-calls", "10", "-j", "4", "--json") == 4
        partial = json.loads(capsys.readouterr().out)["partial"]
        assert partial == {"stopped": "10 calls", "cells": 2, "planned": 2}
        assert run(file, "--json") == 0
        assert json.loads(capsys.readouterr().out)["partial"] is None
    # Two resumed passes warmed the connection of the two arms up again.
    assert ALL <= len(served.bodies) <= ALL + 2 * 4


def test_dollars_and_tokens_are_never_exceeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, test=40)
        for number, flags in enumerate((["--max-usd", "0.00003"], ["--max-tokens", "400"])):
            before = len(served.bodies)
            assert run(file, *flags, "--set", f"name=n{number}", "-j", "8") in (2, 4)
            asked = served.bodies[before:]
            words = [sum(len(m["content"].split()) for m in b["messages"]) for b in asked]
            usd = sum(
                api_price({"openai/gpt-4o-mini": {"prompt_tokens": w, "completion_tokens": 1}}) or 0 for w in words
            )
            assert 3 < len(asked) < 40
            assert usd <= 0.00003 if number == 0 else sum(words) + len(words) <= 400
    assert "$3e-05" in capsys.readouterr().err


def test_a_limit_too_small_to_start_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url)
        assert run(file, "--max-tokens", "9") == 2
        assert "no cell was measured before the limit of 9 tokens" in capsys.readouterr().err
    assert served.bodies == []


def test_what_has_no_price_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        file.write_text(file.read_text().replace("gpt-4o-mini", "house-model"))
        assert run(file, "--max-usd", "1") == 0
    assert "openai/house-model has no known price: the limit in dollars cannot hold it" in capsys.readouterr().err


def test_a_call_waits_for_those_under_way_to_cost_less_than_their_worst() -> None:
    limits = UsageLimits(tokens=100)
    limits.enter(Usage(1, 90))
    waiting = threading.Thread(target=limits.enter, args=(Usage(1, 60),))
    waiting.start()
    time.sleep(0.05)  # in which a call that does not wait would be let in
    assert waiting.is_alive()
    limits.leave(Usage(1, 90), Usage(1, 40))
    wait_for(lambda: not waiting.is_alive())
    limits.leave(Usage(1, 60), Usage(1, 60))
    with pytest.raises(Stopped, match="100 tokens"):
        limits.enter(Usage(1, 1))


def test_a_local_model_is_held_to_its_calls(small: LoadedModel) -> None:
    limits = UsageLimits(calls=3, tokens=10_000)
    lm = limits.limited(small.lm)
    assert limits.limited(lm) is lm

    def ask(n: int) -> bool:
        try:
            lm(f"text: {n}")
        except Stopped:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 3
    assert limits.used.calls == 3
    assert 0 < limits.used.tokens < 10_000
    assert limits.used.usd == 0


def test_time_is_checked_before_a_call(small: LoadedModel) -> None:
    lm = UsageLimits(minutes=0).limited(small.lm)
    with pytest.raises(Stopped, match="0 minutes"):
        lm("text: hello")


def test_refused_calls_cost_nothing_but_are_calls() -> None:
    with openai_server(first_word, ["401"]) as served:
        model = load_model(ModelSpec("openai/gpt-4o-mini", api_base=served.url))
        limits = UsageLimits(usd=1)
        lm = limits.limited(model.lm)
        with pytest.raises(dspy.LMError):
            lm("text: hello")
    assert (limits.used.calls, limits.used.usd) == (1, 0.0)


def test_ctrl_c_finishes_what_is_under_way(tmp_path: Path) -> None:
    go_on = threading.Event()

    def held(model: str, messages: Messages) -> str:
        if len(served.bodies) > 4:
            go_on.wait()
        return first_word(model, messages)

    with openai_server(held) as served:
        file = write_remote(tmp_path, served.url)
        process = start(tmp_path, tmp_path / "said", "run", str(file), "-j", "2", "-q", *UNTRACKED)
        wait_for(lambda: len(served.bodies) > 5 and len(served.bodies) - served.answered == 2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: "finishing what is under way" in (tmp_path / "said.err").read_text())
        asked = len(served.bodies)
        assert asked < 12
        go_on.set()
        assert ended(process) == 130
        (rows,) = tmp_path.glob("mlruns/cells/*/rows.jsonl")
        assert rows.read_text().count("\n") == asked == served.answered


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    let_go = threading.Event()

    def never(model: str, messages: Messages) -> str:
        if len(served.bodies) > 2:
            let_go.wait()
        return first_word(model, messages)

    with openai_server(never) as served:
        file = write_remote(tmp_path, served.url)
        process = start(tmp_path, tmp_path / "said", "run", str(file), "-j", "2", "-q", *UNTRACKED)
        wait_for(lambda: len(served.bodies) > 2 and len(served.bodies) - served.answered == 2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: "once more ends at once" in (tmp_path / "said.err").read_text())
        os.kill(process.pid, signal.SIGINT)
        assert ended(process) == 130
        # Two requests are still under way, and nobody waited for their answers.
        assert len(served.bodies) - served.answered == 2
        let_go.set()
