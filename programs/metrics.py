"""Score a predicted value against the gold value, or against the best of several gold values."""

import inspect
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.programs.entities import NONE, entity_f1
from crossover.programs.fields import answers_of, text_of
from crossover.programs.load import is_reference, load_object, unknown
from crossover.programs.task import Metric
from crossover.programs.text_metrics import bleu, chrf, numeric_match, rouge_l, ter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKS = f"[{re.escape(string.punctuation)}]"
_PUNCTUATION = re.compile(rf"((?<=\d){_MARKS}(?=\d)|(?<!\w)-(?=\.?\d)|(?<!\w)\.(?=\d))|{_MARKS}")
"""Any mark; the group is one that belongs to a number: within it, or its sign, or the point before it."""
_ROUNDING = 1e-9
"""How far a sum of floats may lie beyond what is right: a perfect BLEU is 100.00000000000004."""
MINUS = str.maketrans({"\u2212": "-"})
"""The minus sign of typesetting to that of keyboards."""


class Scored(float):
    """A score, with the scores of its parts: of each field of a record, or of each key that a metric returns."""

    fields: dict[str, float]

    def __new__(cls, score: float, fields: Mapping[str, float]) -> "Scored":
        """Return the score that carries the others."""
        scored = super().__new__(cls, score)
        scored.fields = dict(fields)
        return scored


def normalise(text: str) -> str:
    """Return the text as exact match compares it: lower case, no punctuation, no articles, single spaces.

    As SQuAD v1.1 does, but numbers keep their sign and point, an article stays where it is all there is, such as the
    answer `A`, and so does punctuation.
    """
    lower = text.translate(MINUS).lower()
    plain = _PUNCTUATION.sub(lambda mark: mark[1] or "", _THOUSANDS.sub("", lower))
    return " ".join(_ARTICLES.sub(" ", plain).split()) or " ".join(plain.split()) or lower.strip()


def exact_match(predicted: str, gold: str) -> float:
    """Return 1.0 when both are equal after normalisation."""
    return float(normalise(predicted) == normalise(gold))


def token_f1(predicted: str, gold: str) -> float:
    """Return the F1 of the words that both share after normalisation."""
    return _overlap(normalise(predicted).split(), normalise(gold).split())


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the F1 of the items that both share, each as often as it stands in both."""
    if not ours or not theirs:
        return float(list(ours) == list(theirs))
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def label_accuracy(predicted: str, gold: str) -> float:
    """Return 1.0 when both are the same string, apart from space around them."""
    return float(predicted.strip() == gold.strip())


_COMPARISONS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "accuracy": label_accuracy,
    "label_accuracy": label_accuracy,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "chrf": chrf,
    "ter": ter,
    "numeric_match": numeric_match,
    "entity_f1": entity_f1,
}


RECORD_METRICS = ("field_accuracy", "exact_record", "attribute_f1")
"""Metrics of all output fields together; `exact_match` and the others are the mean over the fields."""


def metric_names() -> list[str]:
    """Return the names of the built-in metrics."""
    return [*_COMPARISONS, *RECORD_METRICS]


def metric_for(name: str, *outputs: str, base: Path = Path(), closed: Collection[str] = ()) -> Metric:
    """Return the metric of that name for a program's output fields, or the user's own from `./file.py:function`.

    Fields in `closed` hold one of some values, which are compared as they are.

    Raises:
        UserError: there is no such metric, or the user's function cannot be one.
    """
    if is_reference(name):
        return _users_metric(name, load_object(name, base=base))
    if name not in metric_names():
        raise unknown("metric", name, metric_names(), " or ./file.py:function")
    compare, record = _COMPARISONS.get(name, exact_match), len(outputs) > 1 or name in RECORD_METRICS
    by_field = {n: label_accuracy if n in closed else compare for n in outputs}

    def score(gold: dspy.Example, pred: dspy.Prediction) -> float:
        if not record:
            return compared(by_field[outputs[0]], pred[outputs[0]], gold[outputs[0]])
        both_none = {n for n in outputs if is_none(pred[n]) and is_none(gold[n])}
        fields = {n: 1.0 if n in both_none else compared(by_field[n], pred[n], gold[n]) for n in outputs}
        if name == "attribute_f1":
            return Scored(attribute_f1([(pred[n], gold[n], fields[n]) for n in outputs]), fields)
        if name == "exact_record":
            return Scored(float(min(fields.values()) == 1.0), fields)
        return Scored(sum(fields.values()) / len(fields), fields)

    return as_metric(score)


def compared(compare: Callable[[str, str], float], predicted: Any, gold: Any) -> float:
    """Return how good one predicted value is, of any type, by the best of several gold values.

    Lists are compared as sets, and by the F1 of their items if texts are by that of their words. A value that is
    neither text nor list is right when it equals the gold value or reads the same.
    """
    if isinstance(predicted, list):
        ours, theirs = (sorted({normalise(str(v)) for v in items}) for items in (predicted, answers_of(gold)))
        return _overlap(ours, theirs) if compare is token_f1 else float(ours == theirs)
    # A gold text that is no number is a fault of the data, which an answer in the same words must not hide.
    equal = compare is not numeric_match
    return max(float(equal and predicted == g) or compare(text_of(predicted), text_of(g)) for g in answers_of(gold))


def is_none(value: Any) -> bool:
    """Return whether a value says that there is nothing: `none`, an empty text, an empty list."""
    return value is None or value == [] or (isinstance(value, str) and value.strip().casefold() in ("", NONE))


def attribute_f1(values: Iterable[tuple[Any, Any, float]]) -> float:
    """Return the F1 of attributes, each given as predicted value, gold value and 1.0 if they agree.

    As attribute extraction counts it: a wrong value is a value too many and one that is missed; none for none counts
    nowhere. 1.0 when there is nothing to find and nothing was found.
    """
    right = too_many = missed = 0
    for predicted, gold, score in values:
        right += score == 1.0 and not is_none(gold)
        too_many += score < 1.0 and not is_none(predicted)
        missed += score < 1.0 and not is_none(gold)
    return 2 * right / (2 * right + too_many + missed) if right + too_many + missed else 1.0


def _users_metric(reference: str, function: Any) -> Metric:
    """Return the user's function, called with as many of DSPy's five metric arguments as it takes."""
    if not callable(function):
        raise UserError(f"{reference} is a {type(function).__name__}; a metric is a function of gold and prediction")
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = 5 if inspect.Parameter.VAR_POSITIONAL in kinds else sum(k in positional for k in kinds)
    if taken < 2:
        raise UserError(f"{reference} takes {taken} arguments; a metric takes at least gold and prediction")

    def score(*arguments: Any) -> Any:
        try:
            # Without a model: the one that is measured must not grade itself.
            with dspy.context(lm=None):
                return function(*arguments)
        except ValueError as e:
            if "No LM is loaded" not in str(e):
                raise
            what = f"{Path(reference).name} asks a language model and names none"
            raise UserError(f"{what}; write `metric: {{judge: …}}`, or call it under dspy.context(lm=…)") from e

    return as_metric(score, arguments=taken)


def as_metric(function: Callable[..., Any], *, arguments: int = 2) -> Metric:
    """Return a metric that passes the first of DSPy's five arguments on: gold and prediction, or more.

    The function may return a number, a bool, a `dspy.Prediction` with a `score`, or a dict of scores, of which `score`
    or else the first is the score.
    """

    def metric(
        gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> float:
        return score_of(function(*(gold, pred, trace, pred_name, pred_trace)[:arguments]))

    return metric


def score_of(value: Any) -> float:
    """Return what a metric returned as a score.

    Raises:
        TypeError: it holds no number.
        ValueError: the number is not from 0 to 1.
    """
    if isinstance(value, Scored):
        return value
    if isinstance(value, dspy.Prediction):
        value = value.toDict()
    if isinstance(value, Mapping) and value:
        others = {str(k): float(v) for k, v in value.items() if isinstance(v, int | float)}
        return Scored(score_of(value.get("score", next(iter(value.values())))), others)
    remedy = "return True, False or a number from 0 to 1 in every case"
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"the metric returned {value!r:.60}; {remedy}") from None
    if not -_ROUNDING <= score <= 1 + _ROUNDING:
        raise ValueError(f"the metric returned {score:g}; {remedy}")
    return min(max(score, 0.0), 1.0)
