"""Latency of single requests: warm, cold, and until the answer begins."""

from dataclasses import replace
from pathlib import Path
from statistics import median

import dspy
from dspy import lm15
from factories import task_with_corpus

from crossover.eval.run.latency import Probe, Timing, Timings, measure_latency
from crossover.eval.run.measure import measure_accuracy
from crossover.eval.run.progress import Progress
from crossover.eval.store.result import Latency
from crossover.models.engine import Engine, wrapped
from crossover.models.load import LoadedModel
from crossover.models.usage import Usage
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Fitted


def probe(model: LoadedModel, demos: int) -> Probe:
    program = Classify(["text"], "label", [])
    program.predict.demos = [
        {"text": f"thing number {n} of a long list of things", "label": f"l{n}"} for n in range(demos)
    ]
    asked = [dspy.Example(id=str(n), text=f"thing number {n}").with_inputs("text") for n in range(5)]
    return Probe(Fitted(program, model.lm, Usage(), Path()), model, asked, None)


def test_a_kept_prefix_makes_many_shot_fast_and_forgetting_it_shows_what_the_first_request_costs(
    small: LoadedModel,
) -> None:
    many, none = probe(small, 150), probe(small, 0)
    measure_latency([many, none], requests=6, cold_requests=4)
    latency = many.latency()
    assert (len(latency.seconds), len(latency.cold)) == (6, 4)
    assert len(latency.first_token) == 6
    assert all(0 < t <= s for t, s in zip(latency.first_token, latency.seconds, strict=True))
    assert median(latency.cold) > 1.5 * median(latency.seconds)
    assert median(latency.cold_first_token) > median(latency.first_token)


def test_a_request_that_fails_is_not_timed(small: LoadedModel) -> None:
    broken = probe(small, 500)
    measure_latency([broken], requests=3, cold_requests=2)
    assert broken.latency() == Latency((), 1)


class CachedTokens:
    """Note how many tokens of each prompt were cached."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        response = inner.complete(request)
        self.counts.append(response.usage.cache_read_tokens or 0)
        return response


def test_of_two_arms_with_the_same_prompts_none_finds_the_states_of_the_other(small: LoadedModel) -> None:
    counts = []
    arms = []
    for _ in range(2):
        counts.append(CachedTokens())
        arms.append(probe(replace(small, lm=wrapped(small.lm, counts[-1])), 150))
    measure_latency(arms, requests=3, cold_requests=1)
    first, second = (c.counts for c in counts)
    assert first == second
    assert first[0] == 0 == first[-1]
    # The question itself is never found, the demonstrations before it always are.
    assert len(set(first[2:-1])) == 1
    assert first[2] > 1000


def test_the_cached_tokens_of_an_arm_do_not_depend_on_the_arm_before_it(small: LoadedModel, tmp_path: Path) -> None:
    arm = probe(small, 150)
    task, cached = replace(task_with_corpus(), metric=lambda *_: 1.0), []
    for n in range(2):
        file = tmp_path / str(n) / "rows.jsonl"
        file.parent.mkdir()
        rows, _ = measure_accuracy(arm.fitted, task, arm.examples, small, file=file, threads=1, progress=Progress())
        cached.append(list(rows.counts["cached_tokens"]))
    assert cached[0] == cached[1]
    assert cached[0][0] == 0 < cached[0][1]


def test_an_arm_of_slow_requests_is_asked_fewer_times() -> None:
    slow, quick = Timings(), Timings()
    for _ in range(10):
        assert not slow.complete(30, 10)
        slow.count(Timing(15.0, 0.0, None))
        quick.count(Timing(0.5, 0.0, None))
    assert (slow.complete(30, 10), quick.complete(30, 10), quick.complete(10, 10)) == (True, False, True)
