"""Latency of single requests: warm, cold, and until the answer begins."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import dspy
import pytest
from dspy import lm15
from factories import task_with_corpus

from crossover.eval.run.latency import (
    Probe,
    Timing,
    Timings,
    batches_of,
    measure_latency,
    requests_for,
    timed_questions,
)
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
    asked = [dspy.Example(id=str(n), text=f"thing number {n}").with_inputs("text") for n in range(8)]
    return Probe(Fitted(program, model.lm, Usage(), Path()), model, asked[:6], asked[6:], None)


def test_a_kept_prefix_makes_many_shot_fast_and_forgetting_it_shows_what_the_first_request_costs(
    small: LoadedModel,
) -> None:
    many, none = probe(small, 150), probe(small, 0)
    measure_latency([many, none], cold_requests=4)
    latency = many.latency()
    assert (len(latency.seconds), len(latency.cold)) == (6, 4)
    assert len(latency.first_token) == 6
    assert all(0 < t <= s for t, s in zip(latency.first_token, latency.seconds, strict=True))
    assert median(latency.cold) > 1.5 * median(latency.seconds)
    assert median(latency.cold_first_token) > median(latency.first_token)


def test_a_request_that_fails_is_not_timed(small: LoadedModel) -> None:
    broken = probe(small, 500)
    measure_latency([broken], cold_requests=2)
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
    measure_latency(arms, cold_requests=1)
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


def test_the_seeds_of_an_arm_share_the_requests_and_no_question_is_asked_twice() -> None:
    test = [dspy.Example(id=str(n)) for n in range(100)]
    timed, warm = zip(*(timed_questions(test, 80, seed=s, seeds=[4, 7, 9]) for s in (4, 7, 9)), strict=True)
    assert [len(t) for t in timed] == [27, 27, 27]
    assert len({e["id"] for t in timed for e in t}) == 81
    assert not any({e["id"] for e in t} & {e["id"] for e in w} for t, w in zip(timed, warm, strict=True))
    assert [requests_for(n, 80, bounded=False) for n in (40, 100, 300, 5000)] == [16, 25, 75, 80]
    assert requests_for(40, 80, bounded=True) == 80
    few, _ = timed_questions(test[:10], 80, seed=0, seeds=[0])
    assert len(few) == 8


@pytest.mark.parametrize(
    ("questions", "requests", "threads", "size"),
    [(200, 80, 32, 16), (200, 80, 8, 8), (50, 80, 32, 10), (200, 6, 32, 0)],
)
def test_batches_ask_no_more_than_the_single_requests_or_are_left_out(
    questions: int, requests: int, threads: int, size: int
) -> None:
    batches = batches_of([dspy.Example(id=str(n)) for n in range(questions)], requests, threads=threads)
    assert [len(b) for b in batches] == [size] * 5 * (size > 0)
    assert len({e["id"] for b in batches for e in b}) == 5 * size


def test_every_arm_is_served_a_batch_in_every_block_after_its_share_of_single_requests(
    small: LoadedModel, tmp_path: Path
) -> None:
    arm = probe(small, 3)
    arm.batches, arm.file = [arm.examples[:4]] * 5, tmp_path / "latency.jsonl"
    measure_latency([arm], cold_requests=1)
    lines = [json.loads(line) for line in arm.file.read_text().splitlines()]
    kinds = "".join("b" if "batched" in line else "c" if line["cold"] else "s" for line in lines)
    assert kinds == "ssbsbsbsbsbc"
    latency = arm.latency()
    assert len(latency.batched) == 5
    assert latency.ids == tuple(str(n) for n in range(6))
    again = replace_probe(arm)
    assert again.done
    assert again.latency() == latency
    # Batches of another size are another price.
    arm.batches = [arm.examples[:3]] * 5
    assert replace_probe(arm).batched == []


def replace_probe(arm: Probe) -> Probe:
    """Return the same arm as the next run finds it."""
    return Probe(
        arm.fitted, arm.model, arm.examples, arm.warm_up, None, batches=arm.batches, bounded=arm.bounded, file=arm.file
    )


def test_an_arm_whose_requests_all_take_as_long_is_asked_no_further_unless_the_needs_bound_p95(
    small: LoadedModel,
) -> None:
    arm = probe(small, 0)
    arm.examples = [dspy.Example(id=str(n)) for n in range(80)]
    for n in range(16):
        assert not arm.timed
        arm.keep(Timing(1 + n / 1000, 0.0, None), cold=False)
    assert arm.timed
    arm.bounded = True
    assert not arm.timed
    arm.bounded = False
    arm.keep(Timing(1.3, 0.0, None), cold=False)
    assert not arm.timed


def test_an_arm_of_slow_requests_is_asked_fewer_times() -> None:
    slow, quick = Timings(), Timings()
    for _ in range(10):
        assert not slow.slow(10)
        slow.count(Timing(15.0, 0.0, None))
        quick.count(Timing(0.5, 0.0, None))
    assert slow.slow(10)
    assert not quick.slow(10)
