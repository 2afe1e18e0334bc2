"""What a provider charges is counted whatever it says, and no limit is exceeded by its own count."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from openai_server import Served, openai_server
from processes import UNTRACKED
from remote_experiment import first_word, write_remote

from crossover.eval.cli.main import main
from crossover.models.engine import hook_of
from crossover.models.last_answer import last_answer, recorded
from crossover.models.limits import UsageLimits
from crossover.models.load import load_model
from crossover.models.price import api_price
from crossover.models.retries import Retries
from crossover.models.spec import ModelSpec

MODEL = "openai/gpt-4o-mini"


def with_usage(usage: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a shape whose answers have that usage, or none at all."""
    return lambda body: {k: v for k, v in body.items() if k != "usage"} | ({} if usage is None else {"usage": usage})


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -5, "completion_tokens": 2, "total_tokens": -3},
        {"prompt_tokens": 10**300, "completion_tokens": 2, "total_tokens": 10**300},
    ],
)
def test_tokens_that_cannot_be_are_counted_here_and_priced(usage: object) -> None:
    with openai_server(lambda model, messages: "two words", shaped=with_usage(usage)) as served:
        limits = UsageLimits(usd=1)
        lm = recorded(limits.limited(load_model(ModelSpec(MODEL, api_base=served.url)).lm))
        with last_answer() as answers:
            assert lm("how many tokens are there in this text") == ["two words"]
    assert answers.tokens_estimated
    assert 8 <= limits.used.prompt_tokens <= 20
    assert limits.used.completion_tokens == 2
    counts = {"prompt_tokens": limits.used.prompt_tokens, "completion_tokens": 2}
    assert limits.used.usd == pytest.approx(api_price({MODEL: counts}))


def test_an_honest_count_is_taken_as_it_is() -> None:
    with openai_server(lambda model, messages: "two words") as served:
        limits = UsageLimits()
        lm = recorded(limits.limited(load_model(ModelSpec(MODEL, api_base=served.url)).lm))
        with last_answer() as answers:
            lm("three words here")
    assert not answers.tokens_estimated
    assert (limits.used.prompt_tokens, limits.used.cached_tokens, limits.used.completion_tokens) == (3, 1, 2)


def test_a_retry_is_a_call() -> None:
    with openai_server(first_word, ["500"] * 99) as served:
        limits = UsageLimits(calls=3)
        lm = limits.limited(load_model(ModelSpec(MODEL, api_base=served.url)).lm)
        retries = hook_of(lm, Retries)
        assert retries is not None
        with pytest.raises(BaseException, match="3 calls"):
            lm("text: hello")
    assert (len(served.bodies), limits.used.calls) == (3, 3)


def test_an_answer_that_cannot_be_read_is_charged_to_its_row_and_to_the_limits() -> None:
    with openai_server(first_word, ["garbage"] * 99) as served:
        limits = UsageLimits(usd=1)
        lm = limits.limited(load_model(ModelSpec(MODEL, api_base=served.url, max_tokens=8)).lm)
        with dspy.track_usage() as tracker, pytest.raises(dspy.LMError):
            lm("text: hello")
    assert limits.used.calls == len(tracker.usage_data[MODEL]) == len(served.bodies) == 3
    assert limits.used.completion_tokens == 3 * 8


def run(file: Path, *flags: str) -> int:
    return main(["run", str(file), "--store", str(file.parent / "mlruns"), "-q", *UNTRACKED, *flags])


def paid(served: Served) -> float:
    return sum(api_price({MODEL: u}) or 0.0 for u in served.charged)


@pytest.mark.parametrize("usage", ["honest", None])
def test_no_limit_is_exceeded_by_the_providers_count_through_faults(
    tmp_path: Path, usage: str | None, record_property: Callable[[str, object], None]
) -> None:
    draw = random.Random(3)
    faults = [draw.choice(["429", "500", "half", "garbage"]) if draw.random() < 0.3 else "" for _ in range(600)]
    shaped: Callable[[dict[str, Any]], dict[str, Any]] = (lambda body: body) if usage else with_usage(None)
    with openai_server(first_word, faults, shaped=shaped) as served:
        file = write_remote(tmp_path, served.url, test=300, methods="[zero_shot]")
        assert run(file, "--max-usd", "0.0005", "-j", "16") in (2, 4)
        assert 0.0001 < paid(served) <= 0.0005
        before = len(served.bodies)
        assert run(file, "--max-calls", "50", "-j", "16") in (2, 4)
        assert len(served.bodies) - before == 50
        record_property("tries", len(served.bodies))


def test_estimated_tokens_are_marked_and_priced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openai_server(first_word, shaped=with_usage(None)) as served:
        file = write_remote(tmp_path, served.url, methods="[zero_shot]")
        assert run(file, "--json") == 0
        (arm,) = json.loads(capsys.readouterr().out)["arms"]
        assert arm["tokens_estimated"] is True
        assert arm["tokens"]["prompt"] > 100
        assert arm["cost_usd"]["per_1k_requests"] > 0
        assert run(file) == 0
        assert "  ~" in capsys.readouterr().out
    (rows,) = tmp_path.glob("mlruns/cells/*/rows.jsonl")
    assert all(json.loads(line)["tokens_estimated"] for line in rows.read_text().splitlines())
