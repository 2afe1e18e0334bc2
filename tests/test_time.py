"""A call takes no longer than its timeout, whatever its provider does, and no wait outlasts the run."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from openai_server import openai_server
from processes import UNTRACKED, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.models.engine import hook_of
from crossover.models.limits import Stopped, UsageLimits
from crossover.models.load import load_model
from crossover.models.retries import Retries
from crossover.models.spec import ModelSpec

PROMPTLY = 300.0
"""Seconds that a loaded processor may take for what takes it a moment."""


def remote(url: str, *, timeout: float = 20.0, first_wait: float = 0.01) -> dspy.LM:
    """Return a model after another one has answered, so that all it needs is imported."""
    load_model(ModelSpec("openai/gpt-4o-mini", api_base=url)).lm("text: hello")
    lm = load_model(ModelSpec("openai/gpt-4o-mini", api_base=url, timeout=timeout)).lm
    retries = hook_of(lm, Retries)
    assert retries is not None
    retries.connection = replace(retries.connection, first_wait=first_wait)
    return lm


def test_a_drip_of_bytes_is_no_answer() -> None:
    with openai_server(first_word, ["", "drip"]) as served:
        lm = remote(served.url, timeout=2)
        start = time.monotonic()
        with pytest.raises(dspy.LMError, match="no whole answer within 2 s"):
            lm("text: hello")
        assert 1.9 < time.monotonic() - start < PROMPTLY


def test_a_wait_longer_than_the_timeout_is_not_waited_for() -> None:
    with openai_server(first_word, ["", "429", "429"], retry_after="3600") as served:
        lm = remote(served.url)
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(dspy.LMError, match="asks to wait 3600 s, longer than `timeout`, 20 s"):
                lm("text: hello")
        assert time.monotonic() - start < PROMPTLY
        assert len(served.bodies) == 3


def test_no_attempt_begins_after_the_timeout() -> None:
    with openai_server(first_word, ["", *["500"] * 99]) as served:
        lm = remote(served.url, timeout=1, first_wait=0.9)
        start = time.monotonic()
        with pytest.raises(dspy.LMError):
            lm("text: hello")
        assert time.monotonic() - start < PROMPTLY
        assert len(served.bodies) < 7


@pytest.mark.parametrize("by", ["minutes", "Ctrl-C"])
def test_the_end_of_the_run_cuts_a_wait(by: str) -> None:
    with openai_server(first_word, ["", *["429"] * 99], retry_after="600") as served:
        lm = remote(served.url, timeout=1000)
        limits = UsageLimits(minutes=1 / 60 if by == "minutes" else None)
        ended: list[BaseException] = []

        def call() -> None:
            try:
                limits.limited(lm)("text: hello")
            except BaseException as e:
                ended.append(e)

        thread = threading.Thread(target=call)
        thread.start()
        wait_for(lambda: len(served.bodies) == 2 or not thread.is_alive())
        if by == "Ctrl-C":
            limits.stop("Ctrl-C")
        thread.join(PROMPTLY)
    assert [type(e) for e in ended] == [Stopped]
    # On a busy machine the minutes may be over before the call is sent.
    assert len(served.bodies) <= 2


def test_refusals_for_ever_end_with_a_stated_number_of_tries_and_no_latency_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, ["429"] * 99, retry_after="0") as served:
        file = write_remote(tmp_path, served.url, test=2, methods="[zero_shot]")
        file.write_text(file.read_text().replace("max_tokens: 8", "max_tokens: 8, timeout: 60"))
        assert main(["run", str(file), "--store", str(tmp_path / "mlruns"), "-q", *UNTRACKED]) == 4
        assert len(served.bodies) == 2 * 6
    assert "given up after 6 tries" in " ".join(capsys.readouterr().out.split())
