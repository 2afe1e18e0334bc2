"""Usage adds up, and a model's wrappers are found and put in order."""

from typing import Any

import dspy
from dspy import lm15

from crossover.models.engine import Engine, hook_of, innermost, wrapped, wrapped_innermost
from crossover.models.limits import UsageLimits, limited_like, limits_of
from crossover.models.load import LoadedModel
from crossover.models.meter import Meter
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage


def test_calls_add_up_and_an_unknown_price_stays_unknown() -> None:
    tokens = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    used = Usage.of_calls({"a": [tokens, {"prompt_tokens": None, "prompt_tokens_details": None}], "b": [tokens]})
    assert used == Usage(calls=3, prompt_tokens=14, cached_tokens=6, completion_tokens=4)
    assert used.tokens == 18
    assert (used + Usage(usd=0.5)).usd == 0.5
    assert (used + Usage.of_call(tokens, usd=None) + Usage(usd=0.5)).usd is None


class Note:
    """A hook that notes that it was passed."""

    def __init__(self, name: str, passed: list[str]) -> None:
        self.name, self.passed = name, passed

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        self.passed.append(self.name)
        return inner.complete(request)


def test_hooks_see_a_call_from_the_outside_in(small: LoadedModel) -> None:
    passed = list[str]()
    lm: Any = wrapped_innermost(wrapped(wrapped(small.lm, Note("b", passed)), Note("a", passed)), Note("c", passed))
    lm("text: hello")
    assert passed == ["a", "b", "c"]
    assert innermost(lm) is engine_of(lm) is small.lm.engine
    assert lm.engine.local


def test_limits_are_found_below_a_meter_and_handed_on(small: LoadedModel) -> None:
    limits = UsageLimits(calls=9)
    lm = Meter().metered(limits.limited(small.lm))
    assert limits_of(lm) is limits
    assert limits_of(small.lm) is None
    assert limits_of(limited_like(small.lm, lm)) is limits
    assert limited_like(small.lm, small.lm) is small.lm
    assert hook_of(dspy.LM("openai/gpt-4o-mini"), Meter) is None


def test_a_model_has_one_meter(small: LoadedModel) -> None:
    first, second = Meter(), Meter()
    second.metered(first.metered(small.lm))("text: hello")
    assert (first.total.calls, second.total.calls) == (0, 1)
