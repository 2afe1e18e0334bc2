"""Run a program over examples and score it: the one copy, used for selection on val and for the final test."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from crossover.models.answer_types import labels_of
from crossover.models.last_answer import last_answer
from crossover.models.usage import Usage, add_usd
from crossover.programs.fields import RESERVED, answers_of, text_of
from crossover.programs.judge import Judged
from crossover.programs.metrics import Scored, normalise, score_of
from crossover.programs.task import Metric
from crossover.programs.threads import in_threads

ADVICE = " To fix: - "
"""What DSPy adds to a provider's error: the same for every error of a kind, and for those who call it by themselves."""
LONGEST_REASON = 2000
"""Characters of the reason of a failure that a row holds."""


@dataclass(frozen=True)
class Row:
    """The result of one example."""

    id: str
    score: float | None
    """0.0 to 1.0; 0.0 for an unparsed answer, None for a failure."""
    failure: str
    """Empty, or `lm: …`, `program: …`, `metric: …` with the reason: no fault of the model's, so asked again."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls: int
    """Language-model calls made."""
    seconds: float
    """Wall time of the program; no latency, because calls are concurrent."""
    usd: float | None
    """Dollars that an API charged, 0.0 for a local model, None for an unknown price."""
    output: dict[str, Any]
    """The output fields as predicted; empty for an answer that could not be parsed."""
    unparsed: bool = False
    """The answer could not be parsed, was empty, or was none of the labels: a wrong answer of the model's."""
    raw: str = ""
    """The text of the model's last answer as it came; empty where answers are not recorded."""
    ending: str = ""
    """Why the last answer is not whole: `length` (cut at max_tokens), `refusal`, `reasoning` alone, or `empty`."""
    tokens_estimated: bool = False
    """The provider did not say, or not in numbers that can be, how many tokens it charges: they were counted here."""
    fields: dict[str, float] = field(default_factory=dict)
    """Scores of parts: by output field under a metric of several, by key under one that returns a dict."""


def score_example(
    program: dspy.Module,
    example: dspy.Example,
    metric: Metric,
    price: Callable[[dict[str, dict[str, Any]]], float | None],
    labels: Mapping[str, frozenset[str]],
    waited: Callable[[str], float],
) -> Row:
    """Run and score one example in the calling DSPy context.

    What the model did is its score: an answer that cannot be read scores 0.0. What went wrong around the model is a
    failure with its reason, and no score.

    Args:
        program: The fitted program.
        example: One example with inputs marked and an `id`.
        metric: Called for parsed answers alone; an exception is a failure.
        price: Turns DSPy's usage (model name to token counts) into dollars, or None when it cannot.
        labels: The labels of each output field that is restricted to some, from `label_sets`.
        waited: Returns the seconds that the example of an id has waited for an answer before the program ran.
    """
    score, failure, unparsed, output = None, "", False, dict[str, Any]()
    fields = dict[str, float]()
    with dspy.track_usage() as tracker, last_answer() as answers:
        start = time.perf_counter()
        try:
            inputs = example.inputs()
            prediction = program(**inputs)
            if not isinstance(prediction, dspy.Prediction):
                kind = type(prediction).__name__
                raise TypeError(f"forward returned a {kind}; return the prediction itself, or dspy.Prediction(field=…)")
            output = {k: v for k, v in prediction.toDict().items() if k not in inputs}
        except AdapterParseError as e:
            # DSPy raises it for an empty answer too, and for one cut off before its last field.
            score, unparsed = 0.0, True
            answers.text = str(e.lm_response) if answers.text is None else answers.text
        except dspy.LMError as e:
            failure = _reason("lm", e)
        except Exception as e:
            failure = _reason("program", e)
        seconds = time.perf_counter() - start
    if not failure and not unparsed:
        unparsed = _is_empty(example, output) or _is_off_label(example, output, labels)
        score, failure = (0.0, "") if unparsed else _graded(metric, example, prediction, output, fields)
    used = Usage.of_calls(tracker.usage_data)
    return Row(
        id=str(example["id"]),
        score=score,
        failure=failure,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        completion_tokens=used.completion_tokens,
        calls=used.calls,
        seconds=seconds + waited(str(example["id"])),
        # Call by call: a long prompt has rates of its own.
        usd=add_usd(*(price({name: call}) for name, calls in tracker.usage_data.items() for call in calls)),
        output=output,
        unparsed=unparsed,
        raw=answers.text or "",
        ending=answers.ending,
        tokens_estimated=answers.tokens_estimated,
        fields=fields,
    )


def _graded(
    metric: Metric,
    example: dspy.Example,
    prediction: dspy.Prediction,
    output: dict[str, Any],
    fields: dict[str, float],
) -> tuple[float | None, str]:
    """Return the score of a parsed answer and an empty string, or None and why the metric failed.

    A judge's grades are added to `output`, and the scores of parts to `fields`. A judge's grade that cannot be parsed
    is a failure of the metric.
    """
    try:
        value = metric(example, prediction)
        if isinstance(value, Judged):
            output["judgement"] = value.facts
        if isinstance(value, Scored):
            fields |= value.fields
        score = float(score_of(value))
    except Exception as e:
        return None, _reason("metric", e)
    return score, ""


def _reason(boundary: str, error: Exception) -> str:
    """Return where and why an example failed, on one line, cut between words after `LONGEST_REASON` characters."""
    text = " ".join(f"{boundary}: {type(error).__name__}: {error}".split())
    if boundary == "lm":
        text = text.partition(ADVICE)[0]
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON].rpartition(' ')[0]} …"


def label_sets(program: dspy.Module) -> dict[str, frozenset[str]]:
    """Return the labels, normalised, of each text field that is the only output of a predictor and has labels.

    A Literal or an enumeration needs none: DSPy cannot parse another value.
    """
    found: dict[str, frozenset[str]] = {}
    for predictor in program.predictors():
        for name, output in predictor.signature.output_fields.items():
            alone = len(predictor.signature.output_fields) == 1
            if alone and output.annotation is str and (labels := labels_of(output)):
                found[name] = frozenset(map(normalise, labels))
    return found


def _is_empty(example: dspy.Example, output: Mapping[str, Any]) -> bool:
    """Return whether no field that the example has gold values for holds anything; `output` holds no inputs."""
    answers = [v for k, v in output.items() if k in example and k not in RESERVED]
    return bool(answers) and all(text_of(v).strip() == "" for v in answers)


def _is_off_label(example: dspy.Example, output: Mapping[str, Any], labels: Mapping[str, frozenset[str]]) -> bool:
    """Return whether a field restricted to labels holds another text.

    Case, punctuation and articles are left to the metric. The example's own gold values count as labels, since a test
    set may hold some that train does not.
    """
    for name, allowed in labels.items():
        if name in output and (answer := normalise(text_of(output[name]))) not in allowed:
            return answer not in {normalise(text_of(v)) for v in answers_of(example.get(name))}
    return False


def score_examples(
    program: dspy.Module,
    examples: Iterable[dspy.Example],
    metric: Metric,
    *,
    price: Callable[[dict[str, dict[str, Any]]], float | None] = lambda usage: 0.0,
    waited: Callable[[str], float] = lambda example_id: 0.0,
    threads: int = 8,
) -> Generator[Row, None, None]:
    """Yield one row per example as it finishes, with at most `threads` in flight, in the calling DSPy context.

    An exception that ends the run (budget, limit) is raised after the rows of the calls under way.
    """
    for rows in in_threads(scorer(program, metric, price=price, waited=waited), examples, threads):
        yield from rows


def scorer(
    program: dspy.Module,
    metric: Metric,
    *,
    price: Callable[[dict[str, dict[str, Any]]], float | None] = lambda usage: 0.0,
    waited: Callable[[str], float] = lambda example_id: 0.0,
) -> Callable[[dspy.Example], Row]:
    """Return what runs and scores one example in the calling DSPy context, as `score_example` does."""
    labels = label_sets(program)
    return lambda example: score_example(program, example, metric, price, labels, waited)


def mean_score(rows: Sequence[Row]) -> float:
    """Return the mean score, for selecting among candidates on val; failures count as 0, as unparsed answers do."""
    return sum(r.score or 0.0 for r in rows) / len(rows) if rows else 0.0


def usage_of(rows: Sequence[Row]) -> Usage:
    """Add up the calls, tokens and dollars of scored examples; their seconds overlap and must be measured outside."""
    return Usage(
        calls=sum(r.calls for r in rows),
        prompt_tokens=sum(r.prompt_tokens for r in rows),
        cached_tokens=sum(r.cached_tokens for r in rows),
        completion_tokens=sum(r.completion_tokens for r in rows),
        usd=add_usd(*(r.usd for r in rows)),
    )
