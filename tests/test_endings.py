"""How an answer ended is counted and named, and a server's manners are met once and said."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai_server import Served, openai_server
from processes import UNTRACKED
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.models.load import load_model
from crossover.models.spec import ModelSpec

Body = dict[str, Any]


def ended(finish: str = "stop", **message: Any) -> Callable[[Body], Body]:
    """Return a shape whose answers end so, with these parts of the message."""

    def shaped(body: Body) -> Body:
        (choice,) = body["choices"]
        return body | {"choices": [choice | {"finish_reason": finish, "message": choice["message"] | message}]}

    return shaped


def measured(
    folder: Path, served: Served, capsys: pytest.CaptureFixture[str], code: int = 0, *, rows: int = 12
) -> tuple[Body, str, list[Body]]:
    """Run zero_shot, and return the arm, the table in one line, and the rows."""
    file = write_remote(folder, served.url, methods="[zero_shot]", test=rows)
    argv = ["run", str(file), "--store", str(folder / "mlruns"), "-q", "-j", "1", *UNTRACKED]
    assert main([*argv, "--json"]) == code
    shown = json.loads(capsys.readouterr().out)
    assert main([*argv, "--allow-partial"]) == 0
    (file,) = folder.glob("mlruns/cells/*/rows.jsonl")
    table = " ".join(capsys.readouterr().out.split())
    return shown["arms"][0], table, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("shape", "ending", "words"),
    [
        (ended("length", content="[[ ## la"), "length", "12 of zero_shot's 12 answers were cut at `max_tokens`"),
        (ended("length", content=""), "length", "were cut at `max_tokens`: a higher `max_tokens` lets them end"),
        (ended(content=None, refusal="I cannot help"), "refusal", "12 of zero_shot's 12 answers are refusals"),
        (ended(content=None), "empty", "12 of zero_shot's 12 answers are empty"),
        (ended(content=None, reasoning_content="it may be"), "reasoning", "are reasoning without an answer"),
    ],
)
def test_an_answer_that_is_not_whole_is_the_models_and_named(
    shape: Callable[[Body], Body], ending: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, shaped=shape) as served:
        arm, table, rows = measured(tmp_path, served, capsys)
    assert (arm["score"]["mean"], arm["score"]["unparsed"], arm["score"]["failed"]) == (0.0, 12, 0)
    assert arm["endings"] == {ending: 12}
    assert words in table
    assert {r["ending"] for r in rows} == {ending}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (ended("content_filter", content=""), "content_filter: the provider's filter withheld the answer"),
        (lambda body: body | {"choices": []}, "the answer holds no choices"),
    ],
)
def test_an_answer_that_the_provider_withholds_is_a_failure(
    shape: Callable[[Body], Body], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, shaped=shape) as served:
        arm, table, _ = measured(tmp_path, served, capsys, code=4, rows=3)
    assert (arm["score"]["n"], arm["score"]["failed"]) == (0, 3)
    assert reason in table


def test_reasoning_in_the_answer_is_no_part_of_it() -> None:
    with openai_server(first_word, shaped=ended(content="<think>hm</think>\n\nyes")) as served:
        assert load_model(ModelSpec("openai/served", api_base=served.url)).lm("text: a")[0].strip() == "yes"


def test_an_own_server_is_sent_the_name_that_all_know() -> None:
    with openai_server(first_word) as served:
        load_model(ModelSpec("openai/served", api_base=served.url, max_tokens=7)).lm("text: a")
    assert served.bodies[0]["max_tokens"] == 7
    assert "max_completion_tokens" not in served.bodies[0]


def test_instructions_move_into_the_users_turn_once_and_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, refuses="system") as served:
        arm, _, _ = measured(tmp_path, served, capsys)
    assert arm["score"]["failed"] == 0
    assert arm["warnings"] == ["the server refuses a system turn: the instructions stand in the user's turn"]
    refused = [b for b in served.bodies if b["messages"][0]["role"] == "system"]
    assert len(refused) == 1
    head = refused[0]["messages"][0]["content"]
    assert all(b["messages"][0]["content"].startswith(head) for b in served.bodies[1:])


def test_requests_that_are_refused_together_all_move_their_instructions() -> None:
    with openai_server(first_word, refuses="system") as served:
        lm = load_model(ModelSpec("openai/served", api_base=served.url)).lm
        together = threading.Barrier(8)

        def ask(n: int) -> str:
            together.wait()
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"text: {n}"}]
            return str(lm(messages=messages)[0])

        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(ask, range(8)))) == 8
    assert sum(b["messages"][0]["role"] == "system" for b in served.bodies) <= 8


@pytest.mark.parametrize("manner", ["stream", "stream silently"])
def test_without_streams_latency_is_that_of_whole_answers(
    manner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(first_word, refuses=manner) as served:
        arm, _, _ = measured(tmp_path, served, capsys)
    assert arm["latency_ms"]["p50"] > 0
    assert arm["latency_ms"]["first_token_p50"] is None
    (warning,) = arm["warnings"]
    assert warning.startswith("the server does not stream: latency is that of whole answers")
    assert sum(bool(b.get("stream")) for b in served.bodies) == 1
