"""Compare texts and numbers: ROUGE-L, sacrebleu's translation metrics, numeric match and macro F1."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from crossover.models.errors import UserError

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_SPACED = re.compile(r"(?<![\d.,])(\d{1,3})((?:[ \u00a0\u202f]\d{3})+)(?![\d])")
"""A number with spaces between its thousands."""
_COMMA_DECIMAL = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d]|[.,]\d)")
"""A number with points between its thousands and a comma before its decimals, as much of Europe writes it."""
_FRACTION = re.compile(r"(?<![\w/.,])(\d+)/([1-9]\d*)(?![\w/])")
_TYPESET = str.maketrans({"\u2212": "-", "{": None, "}": None})
"""The minus sign of typesetting to that of keyboards; the braces that TeX needs around a comma."""


def rouge_l(predicted: str, gold: str) -> float:
    """Return the F1 of the longest common subsequence of words, in lower case and without punctuation."""
    ours, theirs = (_WORD.findall(text.lower()) for text in (predicted, gold))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * _common_subsequence(ours, theirs) / (len(ours) + len(theirs))


def bleu(predicted: str, gold: str) -> float:
    """Return sacrebleu's smoothed sentence BLEU: 4-grams, or the longest that the sentence has."""
    return _share(_sacrebleu("BLEU", effective_order=True), predicted, gold)


def chrf(predicted: str, gold: str) -> float:
    """Return sacrebleu's chrF++ of one sentence: character 6-grams and word 2-grams."""
    return _share(_sacrebleu("CHRF", word_order=2), predicted, gold)


def ter(predicted: str, gold: str) -> float:
    """Return 1 minus sacrebleu's translation edit rate, so that more is better; 0 for a rate of 1 or more."""
    rate = float(_sacrebleu("TER").sentence_score(predicted, [gold]).score) / 100
    return max(0.0, 1 - rate)


def numeric_match(predicted: str, gold: str) -> float:
    """Return 1.0 when the last number of the prediction is the gold number, to a relative error of 1e-6.

    Raises:
        ValueError: the gold text is not a number.
    """
    # Elsewhere 3/4 may be a date or a score out of 4.
    fractions = bool(_FRACTION.search(gold))
    predicted, gold = (_plain_numbers(text, fractions) for text in (predicted, gold))
    wanted = _number(gold.strip().lstrip("$").rstrip("%"))
    if wanted is None:
        raise ValueError(f"the gold answer {gold!r} is not a number")
    numbers = [value for text in _NUMBER.findall(predicted) if (value := _number(text)) is not None]
    return float(bool(numbers) and abs(numbers[-1] - wanted) <= 1e-6 * max(1.0, abs(wanted)))


def macro_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the mean over labels of each label's F1: a rare label counts as much as a frequent one.

    The labels are those of the gold answers; a prediction that is no label is a miss.
    """
    right = Counter(g for p, g in zip(predicted, gold, strict=True) if p == g)
    given, wanted = Counter(predicted), Counter(gold)
    return sum(2 * right[label] / (given[label] + count) for label, count in wanted.items()) / len(wanted)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for i, other in enumerate(b, 1):
            diagonal, lengths[i] = lengths[i], diagonal + 1 if word == other else max(lengths[i], lengths[i - 1])
    return lengths[-1]


def _plain_numbers(text: str, fractions: bool) -> str:
    """Return the text with its numbers as keyboards write them, without marks between thousands or fractions."""
    text = _SPACED.sub(lambda n: re.sub(r"\s", "", n[0]), text.translate(_TYPESET))
    text = _COMMA_DECIMAL.sub(lambda n: f"{n[1].replace('.', '')}.{n[2]}", text)
    return _FRACTION.sub(lambda n: repr(int(n[1]) / int(n[2])), text) if fractions else text


def _number(text: str) -> float | None:
    return float(text.replace(",", "")) if text and _NUMBER.fullmatch(text) and any(map(str.isdigit, text)) else None


def _share(measure: Any, predicted: str, gold: str) -> float:
    """Return a score of 0 to 100 as 0 to 1, exactly 1 for equal texts."""
    return 1.0 if predicted == gold else min(1.0, float(measure.sentence_score(predicted, [gold]).score) / 100)


@cache
def _sacrebleu(name: str, **options: Any) -> Any:
    """Return one of sacrebleu's metrics.

    Raises:
        UserError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import metrics
    except ImportError as e:
        raise UserError("the metrics bleu, chrf and ter need sacrebleu: pip install -e '.[translate]'") from e
    return vars(metrics)[name](**options)
