"""Finished cells under load: closed and open loops, one arm and several, a server's or the model itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from openai_server import openai_server

from crossover.eval.analysis.load import summarize_load
from crossover.eval.cli.main import main
from crossover.eval.run.load_test import server_of
from crossover.eval.store.loads import LoadLevel, LoadRequest, read_loads, save_load
from crossover.eval.store.recorded import read_recorded
from crossover.models.errors import UserError
from crossover.models.spec import ModelSpec


@pytest.fixture
def store(openings_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run's store, which the test may write to."""
    for name in ("cells", "comparisons"):
        shutil.copytree(openings_run / "mlruns" / name, tmp_path / "mlruns" / name)
    return tmp_path / "mlruns"


@pytest.fixture
def keys(store: Path) -> list[str]:
    return [r.key for r in read_recorded(store).results]


def asked(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> list[dict[str, Any]]:
    """Run `crossover load` and return the levels that it measured."""
    capsys.readouterr()
    assert main(["load", *argv, "--json"]) == code
    return list(json.loads(capsys.readouterr().out)) if code == 0 else []


def test_users_and_rates_of_one_arm_and_of_all(
    store: Path, keys: list[str], openings_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, _, tuned = keys
    with openai_server(lambda model, messages: "billing and more", word_seconds=0.0) as served:
        flags = ["--api-base", served.url, "--model", "bare", "--model", "tuned", "--requests", "6"]
        levels = asked(capsys, bare, tuned, *flags, "--concurrency", "2", "--rate", "500", "--store", str(store))
    assert [(v["cells"], v["loop"], v["load"]) for v in levels] == [
        ([bare], "closed", 2),
        ([bare], "open", 500),
        ([bare, tuned], "closed", 2),
        ([bare, tuned], "open", 500),
    ]
    assert [(v["answered"], v["failed"]) for v in levels] == [(6, 0)] * 4
    for level in levels:
        assert 0 < level["first_p50"]["mean"] <= level["p50"]["mean"] <= level["p95"]["mean"] <= level["p99"]["mean"]
        assert level["tokens_per_second"] == pytest.approx(3 * level["per_second"])
    # One request of each arm before anything is timed; half of the last twelve go to each.
    assert sum(body["model"] == "tuned" for body in served.bodies) == 1 + 6
    assert all(body["stream"] for body in served.bodies)
    page = tmp_path / "page.html"
    assert main(["report", str(openings_run / "openings.yaml"), "--store", str(store), "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Under load" in text
    assert "2 arms in turn" in text


def test_a_served_model_is_asked_under_the_name_of_its_cell(
    store: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server(lambda model, messages: "billing", ["", "", "401"], word_seconds=0.0) as served:
        flags = ["--api-base", served.url, "--requests", "3", "--concurrency", "1", "--store", str(store)]
        (level,) = asked(capsys, keys[2], *flags)
    assert {body["model"] for body in served.bodies} == {keys[2]}
    assert (level["answered"], level["failed"]) == (2, 1)
    (kept,) = read_loads(store, keys)
    assert sum("Auth" in r.failure for r in kept.requests) == 1
    assert summarize_load(kept).answered == 2


def test_nothing_is_timed_where_the_first_request_fails(
    store: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with openai_server("", ["401"]) as served:
        asked(capsys, keys[0], "--api-base", served.url, "--store", str(store), code=2)
    assert f"error: {keys[0]}: the first request failed: " in capsys.readouterr().err
    assert not (store / "load").exists()


def test_a_model_that_runs_here_is_asked_with_its_adapter(
    store: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    levels = asked(capsys, keys[0], keys[2], "--requests", "4", "--concurrency", "2", "--store", str(store))
    assert [(len(v["cells"]), v["answered"], v["failed"]) for v in levels] == [(1, 4, 0), (2, 4, 0)]
    assert all(v["first_p50"] for v in levels)


def test_wrong_levels_are_refused(store: Path, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--rate", "0"), ("--rate", "fast"), ("--concurrency", "1.5")):
        asked(capsys, keys[0], flag, value, "--store", str(store), code=2)
        assert f"{flag} {value}: not numbers above 0" in capsys.readouterr().err


def test_who_answers_is_told() -> None:
    here, api = ModelSpec("smollm2"), ModelSpec("openai/gpt-4o")
    own = ModelSpec("hosted_vllm/m", api_base="http://127.0.0.1:8000/v1")
    assert server_of([here, here], "", "2 CPUs") == "2 CPUs"
    assert server_of([here, api, own], "", "2 CPUs") == "2 CPUs, the API of openai, http://127.0.0.1:8000/v1"
    assert server_of([here, api], "http://127.0.0.1:1/v1", "2 CPUs") == "http://127.0.0.1:1/v1"


def test_levels_are_kept_and_read_back(tmp_path: Path) -> None:
    requests = (LoadRequest("a", 0.5, 0.1, 3, ""), LoadRequest("b", 0.7, None, 0, "Timeout: late"))
    level = LoadLevel("intents", ("a", "b"), "open", 2.5, "http://127.0.0.1:1/v1", 4.0, requests)
    files = [save_load(tmp_path, level) for _ in range(2)]
    assert [f.name for f in files] == ["1.jsonl", "2.jsonl"]
    assert read_loads(tmp_path, {"a", "b", "c"}) == [level, level]
    assert read_loads(tmp_path, {"a"}) == []
    summary = summarize_load(level)
    assert (summary.answered, summary.failed, summary.per_second, summary.tokens_per_second) == (1, 1, 0.25, 0.75)
    files[0].write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_loads(tmp_path, {"a", "b"})
