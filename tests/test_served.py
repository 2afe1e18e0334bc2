"""The path to a provider, against `transformers serve` with the small model: nothing of it is scripted."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny
from model_server import PRICED, UNPRICED, model_server
from openai_server import openai_server
from openings import write_openings
from processes import UNTRACKED

from crossover.eval.cli.main import main
from crossover.eval.run.latency import latency_requests
from crossover.eval.store.rows import read_table
from crossover.models.load import load_model
from crossover.models.price import api_price
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.score import score_examples

SHARE = 0.3
"""Of the calls that meet a fault."""
QUICK = ("429", "500", "half", "garbage")
NEVER = "invoice test 3 "
"""Begins the one test question that the proxy always refuses."""
FRAME = "prompt_format: plain, max_tokens: 8"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(tmp_path_factory.mktemp("served")) as url:
        yield url


def experiment(folder: Path, models: str, methods: str) -> Path:
    """Write an experiment of 16 test questions on the given models."""
    file = write_openings(folder, methods, test=16, more="budget: {metric_calls: 20}\n")
    text = file.read_text().replace(f"models: [{tiny.model(max_tokens=8)}]", f"models: {models}")
    assert models in text
    file.write_text(text)
    return file


def run(file: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    """Run the experiment and return its arms."""
    capsys.readouterr()
    argv = ["run", str(file), "--store", str(file.parent / "mlruns"), "-q", "-j", "4", "--json", *UNTRACKED]
    assert main(argv) == code
    return list(json.loads(capsys.readouterr().out)["arms"])


def rows(file: Path, arm: dict[str, Any]) -> list[Any]:
    return sorted(read_table(file.parent / "mlruns" / "cells" / arm["id"] / "rows.jsonl"), key=lambda r: r.id)


def tokens(row: Any) -> dict[str, int]:
    return {"prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens}


@pytest.mark.slow
def test_a_served_model_scores_what_it_scores_here(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = f'{{name: openai/{PRICED}, api_base: "{address}", {FRAME}}}'
    file = experiment(tmp_path, f'[{served}, {{name: "{tiny.NAME}", {FRAME}}}]', "[retrieved_demos: {demos: 3}]")
    arms = run(file, capsys)
    there, here = (rows(file, arm) for arm in arms)
    assert [(r.output, r.score, r.failure) for r in there] == [(r.output, r.score, r.failure) for r in here]
    assert len({r.output["label"] for r in here}) > 1
    assert sum(r.score for r in here) > 0
    # Equal counts: the prompt went through the same chat template.
    assert [tokens(r) for r in there] == [tokens(r) for r in here]
    assert [r.usd for r in there] == [api_price({f"openai/{PRICED}": tokens(r)}) for r in there]
    usd = 1000 * sum(r.usd for r in there) / 16
    assert arms[0]["cost_usd"]["per_1k_requests"] == pytest.approx(usd, abs=1e-6)
    assert usd > 0
    for arm in arms:
        assert arm["latency_ms"]["n"] == latency_requests()[0]
        assert 0 < arm["latency_ms"]["first_token_p50"] <= arm["latency_ms"]["p50"]


def test_a_served_model_without_a_price_is_unpriced(address: str) -> None:
    model = load_model(ModelSpec(f"openai/{UNPRICED}", prompt_format="plain", api_base=address, max_tokens=4))
    question = dspy.Example(id="1", text="refund please", label="money").with_inputs("text")
    with dspy.context(lm=model.lm, adapter=model.prompt_format):
        (row,) = score_examples(Classify(["text"], "label", []), [question], lambda *_: 1.0, price=model.price)
    assert (row.score, row.usd, row.completion_tokens) == (1.0, None, 4)


@pytest.mark.slow
def test_a_run_through_faults_completes_and_pays_for_nothing_twice(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSOVER_LATENCY_REQUESTS", "30")  # enough requests to meet every fault
    draw = random.Random(0)
    faults = [draw.choice(QUICK) if draw.random() < SHARE else "" for _ in range(2000)]
    faults[6] = faults[20] = "hang"
    with openai_server(address, faults, refused=NEVER, hang=1) as proxy:
        served = f'{{name: openai/{PRICED}, api_base: "{proxy.url}", timeout: 60, {FRAME}}}'
        file = experiment(tmp_path, f"[{served}]", "[bootstrap: {bootstrapped: 2, labelled: 4}]")
        (arm,) = run(file, capsys, 4)
        asked = len(proxy.bodies)
        (again,) = run(file, capsys, 4)
        assert again["score"] == arm["score"]
        # What was refused is asked once more, and nothing else is.
        assert ["test-3" if NEVER in str(body) else body for body in proxy.bodies[asked:]] == ["test-3"]
    assert set(proxy.faults) == {*QUICK, "hang", "401"}
    assert len(proxy.faults) > 0.2 * asked
    scored = rows(file, arm)
    assert [r.id for r in scored if r.failure.startswith("lm: LMAuthError")] == ["test-3"]
    assert (arm["score"]["n"], arm["score"]["failed"]) == (15, 1)
    # Streams are asked for latency alone; all else that was answered in full is charged, and once. What broke off or
    # could not be read may have been paid for, and is charged as an estimate.
    fit = json.loads((file.parent / "mlruns" / "cells" / arm["id"] / "result.json").read_text())["fit"]
    assert len(proxy.usages) == fit["calls"] + 15
    for name in ("prompt_tokens", "completion_tokens"):
        answered = sum(u[name] for u in proxy.usages)
        broken = sum(fault in ("half", "garbage", "hang") for fault in proxy.faults)
        longest = max(16, *(u[name] for u in proxy.usages))
        assert answered <= fit[name] + sum(tokens(r)[name] for r in scored) <= answered + broken * longest
