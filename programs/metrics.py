"""Score a predicted value against the gold value, or against the best of several gold values."""

import inspect
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy

from crossover.models.errors import UserError
from crossover.programs.entities import entity_f1
from crossover.programs.load import is_reference, load_object, unknown
from crossover.programs.task import Metric
from crossover.programs.text_metrics import bleu, chrf, numeric_match, rouge_l, ter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return the text as SQuAD v1.1 compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, gold: str) -> float:
    """Return 1.0 when both are equal after SQuAD's normalisation."""
    return float(normalise(predicted) == normalise(gold))


def token_f1(predicted: str, gold: str) -> float:
    """Return the F1 of the words that both share after SQuAD's normalisation."""
    ours, theirs = normalise(predicted).split(), normalise(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


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


def metric_names() -> list[str]:
    """Return the names of the built-in metrics."""
    return list(_COMPARISONS)


def metric_for(name: str, output: str, *, base: Path = Path()) -> Metric:
    """Return the metric of that name for a program's output field, or the user's own from `./file.py:function`."""
    if is_reference(name):
        return _users_metric(name, load_object(name, base=base))
    if name not in _COMPARISONS:
        raise unknown("metric", name, _COMPARISONS, " or ./file.py:function")
    compare = _COMPARISONS[name]

    def score(gold: dspy.Example, pred: dspy.Prediction) -> float:
        predicted, expected = pred[output], gold[output]
        if not isinstance(predicted, str):
            raise TypeError(f"{output} is a {type(predicted).__name__}, not text")
        return max(compare(predicted, g) for g in (expected if isinstance(expected, list) else [expected]))

    return as_metric(score)


def _users_metric(reference: str, function: Any) -> Metric:
    """Return the user's function, called with as many of DSPy's five metric arguments as it takes."""
    if not callable(function):
        raise UserError(f"{reference} is a {type(function).__name__}; a metric is a function of gold and prediction")
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = 5 if inspect.Parameter.VAR_POSITIONAL in kinds else sum(k in positional for k in kinds)
    if taken < 2:
        raise UserError(f"{reference} takes {taken} arguments; a metric takes at least gold and prediction")
    return as_metric(function, arguments=taken)


def as_metric(function: Callable[..., float], *, arguments: int = 2) -> Metric:
    """Return a metric that passes the first of DSPy's five arguments on: gold and prediction, or more."""

    def metric(
        gold: dspy.Example, pred: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> float:
        return float(function(*(gold, pred, trace, pred_name, pred_trace)[:arguments]))

    return metric
