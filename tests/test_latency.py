"""Latency of single requests: warm, cold, and until the answer begins."""

from pathlib import Path
from statistics import median

import dspy

from crossover.eval.run.latency import Probe, measure_latency
from crossover.eval.store.result import Latency
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
