"""The path to a provider, against a real server on loopback: retries, limit, prices, keys, failures."""

import json
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from openai_server import WORD_SECONDS, Messages, asked_fields, obedient_student, openai_server

from crossover.eval.cli.main import main
from crossover.models.api_keys import expanded, redact, redact_all, reference
from crossover.models.concurrency import AdaptiveLimit
from crossover.models.engine import hook_of
from crossover.models.first_token import timing_first_token
from crossover.models.load import LoadedModel, load_model
from crossover.models.price import api_price, price_source
from crossover.models.retries import UNREADABLE, Retries, retry_after
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.score import score_examples

KEY = "sk-test-4f1d9a77c0ffee"
PASSWORD = "seven!"
"""Short, and of a variable whose name tells nothing."""
FAULTS = ["", "429", "", "500", "", "half", "", "garbage", "hang", ""]


def first_word(model: str, messages: Messages) -> str:
    return obedient_student(messages)


def remote(url: str, *, timeout: float = 20.0, **options: Any) -> LoadedModel:
    """Return a model whose retries do not wait long; `options` are those of a connection."""
    model = load_model(ModelSpec("openai/gpt-4o-mini", prompt_format="plain", api_base=url, timeout=timeout))
    retries = retries_of(model.lm)
    retries.connection = replace(retries.connection, first_wait=0.01, **options)
    return model


def retries_of(lm: dspy.LM) -> Retries:
    found = hook_of(lm, Retries)
    assert found is not None
    return found


def exact(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return float(gold.label == pred.label)


def questions(n: int) -> list[dspy.Example]:
    return [dspy.Example(id=str(i), text=f"word{i} of many", label=f"word{i}").with_inputs("text") for i in range(n)]


def test_every_fault_is_retried_and_nothing_is_paid_twice() -> None:
    with openai_server(first_word, FAULTS) as served:
        model = remote(served.url)
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            rows = list(
                score_examples(Classify(["text"], "label", []), questions(12), exact, price=model.price, threads=4)
            )
        assert [r.failure for r in rows] == [""] * 12
        assert {r.score for r in rows} == {1.0}
        assert served.answered == 12
        assert len(served.bodies) == 12 + len([f for f in FAULTS if f])
        # What broke off or cannot be read may have been charged; a refusal is not.
        assert sum(r.calls for r in rows) == 12 + len([f for f in FAULTS if f in ("half", "garbage", "hang")])
        assert retries_of(model.lm).limit.limit < 8


def test_a_stream_tells_when_the_answer_began_and_is_tried_again_while_nothing_came() -> None:
    with openai_server(lambda model, messages: "four words in all", ["429", "500", "hang", ""]) as served:
        model = remote(served.url)
        lm, engine = timing_first_token(model.lm)
        with dspy.context(lm=lm, adapter=model.prompt_format):
            for _ in range(2):
                start = time.perf_counter()
                said = Classify(["text"], "label", [])(text="anything")
                seconds = time.perf_counter() - start
        assert said.label == "four words in all"
        assert engine.streams
        assert engine.began is not None
        assert seconds - (engine.began - start) > 2 * WORD_SECONDS
        assert served.answered == 2
        assert all(b["stream"] for b in served.bodies)
        assert lm.history[-1]["usage"]["completion_tokens"] == 4


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with openai_server(lambda model, messages: "four words in all", ["half"] * 9) as served:
        model = remote(served.url)
        lm, _ = timing_first_token(model.lm)
        with (
            dspy.context(lm=lm, adapter=model.prompt_format),
            pytest.raises(dspy.LMError, match="peer closed connection"),
        ):
            Classify(["text"], "label", [])(text="anything")
        # Each may have been charged, so that there are fewer attempts than after refusals.
        assert len(served.bodies) == 1 + UNREADABLE


@pytest.mark.parametrize(
    ("fault", "kind", "times", "charged"),
    [
        ("401", "LMAuthError", 1, 0),
        ("429", "LMRateLimitError", 3, 0),
        ("hang", "LMTimeoutError", 1, 1),
        ("500", "LMServerError", 3, 0),
        ("half", "LMServerError", 3, 3),
        ("garbage", "LMServerError", 3, 3),
    ],
)
def test_a_failure_that_stays_is_a_typed_row(fault: str, kind: str, times: int, charged: int) -> None:
    with openai_server(first_word, [fault] * 9, hang=9) as served:
        model = remote(served.url, retries=2, timeout=1.0 if fault == "hang" else 20.0)
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            rows = list(score_examples(Classify(["text"], "label", []), questions(1), exact, price=model.price))
        assert rows[0].failure.startswith(f"lm: {kind}")
        assert (rows[0].score, rows[0].calls) == (None, charged)
        assert bool(rows[0].usd) == bool(charged)
        assert ("given up after" in rows[0].failure) == (times > 1)
        assert len(served.bodies) == times


def test_nobody_asks_again_before_the_time_that_a_refusal_names() -> None:
    with openai_server(first_word, ["429"]) as served:
        model = remote(served.url)
        start = time.monotonic()
        model.lm("text: hello")
        # Retry-After is 0.2 seconds, and the backoff by itself a hundredth at most.
        assert time.monotonic() - start > 0.2
        assert retries_of(model.lm).limit._closed_until - start > 0.2
        assert len(served.bodies) == 2


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
        ("nan", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        pytest.param(format_datetime(datetime.now(UTC) + timedelta(days=1)), 80_000, 86_400, id="tomorrow"),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(said: str, low: float, high: float) -> None:
    class Refusal(Exception):
        litellm_response_headers = {"retry-after": said}  # noqa: RUF012

    error = lm15.RateLimitError("too many")
    error.__cause__ = Refusal()
    assert low <= retry_after(error) <= high


def test_a_second_call_of_a_users_own_format_is_counted_and_priced() -> None:
    def answer(model: str, messages: Messages) -> str:
        return "no marker" if asked_fields(messages) else '{"label": "word0"}'

    with openai_server(answer) as served:
        model = remote(served.url)
        # DSPy's own chat format asks again in JSON where it cannot read an answer; ours do not.
        with dspy.context(lm=model.lm, adapter=dspy.ChatAdapter()):
            (row,) = score_examples(Classify(["text"], "label", []), questions(1), exact, price=model.price)
        assert (row.score, row.calls, len(served.bodies)) == (1.0, 2, 2)
        for name in ("prompt_tokens", "completion_tokens"):
            assert getattr(row, name) == sum(u[name] for u in served.usages)
        assert row.usd == pytest.approx(sum(api_price({"openai/gpt-4o-mini": u}) or 0 for u in served.usages))


def test_an_unreadable_answer_is_counted_once_and_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    with openai_server(lambda model, messages: "no field at all") as served:
        for adapter in ("chat", "json"):
            model = load_model(ModelSpec("openai/gpt-4o-mini", prompt_format=adapter, api_base=served.url))
            before = len(served.bodies)
            with dspy.context(lm=model.lm, adapter=model.prompt_format):
                rows = list(score_examples(Classify(["text"], "label", []), questions(1), exact, price=model.price))
            assert (rows[0].unparsed, rows[0].score, rows[0].failure) == (True, 0.0, "")
            assert rows[0].raw == "no field at all"
            assert rows[0].calls == len(served.bodies) - before == 1
            assert rows[0].usd is not None
            assert rows[0].usd > 0


def test_cached_tokens_cost_less() -> None:
    counts = {"prompt_tokens": 1000, "completion_tokens": 100}
    cached = counts | {"prompt_tokens_details": {"cached_tokens": 800}}
    written = counts | {"prompt_tokens_details": {"cache_creation_tokens": 800}}
    for name in ("openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"):
        plain, read = api_price({name: counts}), api_price({name: cached})
        assert plain is not None
        assert read is not None
        assert read < plain
    write = api_price({"anthropic/claude-sonnet-4-5": written})
    assert write == pytest.approx(200 * 3e-6 + 800 * 1.25 * 3e-6 + 100 * 15e-6)
    assert "LiteLLM" in price_source("openai/gpt-4o-mini")


def test_an_unknown_price_leaves_a_row_unpriced() -> None:
    with openai_server(first_word) as served:
        model = load_model(ModelSpec("openai/house-model", prompt_format="plain", api_base=served.url))
        with dspy.context(lm=model.lm, adapter=model.prompt_format):
            (row,) = score_examples(Classify(["text"], "label", []), questions(1), exact, price=model.price)
        assert (row.score, row.usd) == (1.0, None)
        assert row.prompt_tokens > 0


def test_the_limit_grows_by_one_a_round_and_halves_once_a_burst() -> None:
    limit = AdaptiveLimit(4)
    began = [limit.enter(1) for _ in range(4)]
    for _ in began:
        limit.answered()
    assert 4.8 < limit.limit < 5
    began = [limit.enter(1) for _ in range(4)]
    assert limit.enter(0.01) is None
    for start in began:
        assert start is not None
        limit.refused(start)
    assert 2.4 < limit.limit < 2.5


def test_no_more_requests_are_under_way_than_the_limit_allows() -> None:
    under_way, most, lock = 0, 0, threading.Lock()

    def watched(model: str, messages: Messages) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.02)
        with lock:
            under_way -= 1
        return "yes"

    with openai_server(watched) as served:
        lm = remote(served.url).lm
        retries_of(lm).limit = AdaptiveLimit(2, most=2)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda n: lm(f"question {n}")[0], range(10))) == ["yes"] * 10
    assert most == 2


def test_a_provider_key_never_goes_to_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with openai_server(first_word) as served:
        load_model(ModelSpec("openai/gpt-4o-mini", api_base=served.url)).lm("text: hello")
        assert served.keys == ["Bearer no-key"]
        load_model(ModelSpec("openai/gpt-4o-mini", api_base=served.url, api_key="${OPENAI_API_KEY}")).lm("text: hello")
        assert served.keys[1] == f"Bearer {KEY}"


def experiment(folder: Path, url: str, key: str = "${HOUSE_API_KEY}") -> Path:
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        rows = [
            {"id": f"{split}{n}", "text": f"word{n} of many", "label": f"word{n % 4}"} for n in range(start, start + 12)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = folder / "remote.yaml"
    file.write_text(f"""
version: 1
tasks:
  - {{name: words, program: classify, data: {{train: train.jsonl, val: val.jsonl, test: test.jsonl}},
     fields: {{id: id, text: input, label: output}}}}
models: [{{name: openai/gpt-4o-mini, prompt_format: plain, api_base: "{url}", api_key: "{key}"}}]
teacher: {{name: openai/gpt-4o, api_base: "{url}", api_key: "{key}", max_tokens: 500}}
methods: [zero_shot, copro: {{breadth: 2, depth: 1}}]
budget: {{metric_calls: 30, usd: 1}}
""")
    return file


@pytest.mark.slow
def test_no_key_stands_anywhere_after_a_run(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOUSE_API_KEY", KEY)
    monkeypatch.setenv("DOOR", PASSWORD)

    def echo(model: str, messages: Messages) -> str:
        return f"{first_word(model, messages)} {KEY} {PASSWORD}" if "word203" in str(messages) else "word1"

    outputs = [tmp_path / f"report{suffix}" for suffix in (".html", ".md", ".json", ".csv", ".xml", ".txt")]
    with openai_server(echo, ["", "", "401", "401", "500"]) as served:
        file = experiment(tmp_path, served.url.replace("//", "//user:${DOOR}@"))
        flags = [x for o in outputs for x in ("-o", str(o))]
        assert main(["run", str(file), "--store", str(store), "--details", *flags]) == 4
        sent = b64encode(f"user:{PASSWORD}".encode()).decode()
        assert set(served.keys) == {f"Basic {sent}"}
    shown = capsys.readouterr()
    # The table marks the search that came to nothing, and names where the prices are from.
    table = " ".join(shown.out.split())
    assert "! copro breadth=2 depth=1: no proposal could be tried: the program is as it was given" in table
    assert f"prices: {price_source('openai/gpt-4o-mini')}" in table
    assert "refused Basic [key]" in "".join(f.read_text() for f in store.rglob("rows.jsonl"))
    files = [f for f in store.rglob("*") if f.is_file()] + outputs
    assert len(files) > 10
    for secret in (KEY, PASSWORD, sent):
        assert secret not in shown.out + shown.err
        assert [f.name for f in files if secret.encode() in f.read_bytes()] == []


def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(tmp_path, "http://127.0.0.1:9/v1", key=KEY)
    assert main(["validate", str(file)]) == 2
    shown = capsys.readouterr()
    assert "`api_key` holds no reference; write `api_key: ${NAME}`, and export NAME=…" in shown.err
    assert KEY not in shown.out + shown.err


def test_keys_are_taken_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_API_KEY", KEY)
    assert redact(f"refused: {KEY}!") == "refused: [key]!"
    assert redact('{"a": "http://me:you@there/v1", "b": "x@y"}') == '{"a": "http://[key]@there/v1", "b": "x@y"}'
    monkeypatch.setenv("HOUSE", 'qu"ote')
    assert expanded("http://user:${HOUSE}@there") == 'http://user:qu"ote@there'
    assert redact(json.dumps({"a": ['of qu"ote', 1]})) == '{"a": ["of [key]", 1]}'
    assert redact_all({"a": ['of qu"ote', 1]}) == {"a": ["of [key]", 1]}
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert redact("abc") == "abc"
    assert (reference("${HOUSE_API_KEY}"), reference(KEY), reference("x${A}")) == ("HOUSE_API_KEY", "", "")
