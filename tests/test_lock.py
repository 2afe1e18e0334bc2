"""Two runs never write the same cells: the second says who does."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from openai_server import Messages, openai_server
from processes import FORKS, UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.run.latency import latency_requests
from crossover.eval.store.lock import holding
from crossover.models.errors import UserError


def hold(store: str) -> None:
    with holding(Path(store), ["a", "b"], "held"):
        signal.pause()


def test_the_second_run_says_who_holds_the_cells(tmp_path: Path) -> None:
    refused = threading.Event()

    def held(model: str, messages: Messages) -> str:
        refused.wait()
        return first_word(model, messages)

    with openai_server(held) as served:
        file = write_remote(tmp_path, served.url)
        first = start(tmp_path, tmp_path / "first", "run", str(file), "-j", "2", "-q", *UNTRACKED)
        wait_for(lambda: served.bodies)
        second = start(tmp_path, tmp_path / "second", "run", str(file), "--only", "zero_shot", "-q", *UNTRACKED)
        assert ended(second) == 2
        refused.set()
        said = (tmp_path / "second.err").read_text()
        who = f"(pid {first.pid} on {socket.gethostname()}, since "
        assert f"error: 'words' is being run already {who}" in said
        assert "measures 1 of the same cells; wait for it" in said
        assert ended(first) == 0
    assert len(served.bodies) == 2 * (12 + 2 + latency_requests()[0])


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    owner = FORKS.Process(target=hold, args=(str(tmp_path),))
    owner.start()
    wait_for(lambda: list(tmp_path.glob("locks/*.json")))
    with pytest.raises(UserError, match=f"pid {owner.pid} on"), holding(tmp_path, ["b", "c"], "other"):
        pass
    with holding(tmp_path, ["c"], "other"):
        assert len(list(tmp_path.glob("locks/*.json"))) == 2
    owner.kill()
    owner.join()
    with holding(tmp_path, ["a"], "next"):
        (mine,) = tmp_path.glob("locks/*.json")
        assert json.loads(mine.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.glob("locks/*.json"))


def test_what_an_earlier_machine_left_is_stale(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    left = {"pid": os.getpid(), "host": "elsewhere", "since": "then", "experiment": "old", "cells": ["a"]}
    (tmp_path / "locks" / "1-1.json").write_text(json.dumps(left))
    with (
        holding(tmp_path, ["a"], "next"),
        pytest.raises(UserError, match="'next' is being run already"),
        holding(tmp_path, ["a"], "again"),
    ):
        pass
