"""Metrics against worked examples, scikit-learn's definition of macro-F1, and sacrebleu's own numbers."""

from dataclasses import replace

import dspy
import pytest

from crossover.eval.analysis.labels import LabelScore, label_notes, mean_labels, rare_and_frequent
from crossover.eval.analysis.secondary_metrics import mean_secondary_metrics, near_miss_warning, secondary_metrics
from crossover.eval.analysis.single_answer import single_answer_warning
from crossover.programs.entities import entities_of
from crossover.programs.metrics import metric_for
from crossover.programs.score import Row
from crossover.programs.task import Task
from crossover.programs.text_metrics import bleu, chrf, macro_f1, numeric_match, rouge_l, ter


def test_rouge_l_is_that_of_lins_example() -> None:
    # Lin (2004): a common subsequence of 3 words of 4 (F1 0.75), and one of 2 words of 4.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)


@pytest.mark.parametrize(("predicted", "gold", "score"), [("", "a", 0.0), ("", "", 1.0), ("A, b!", "a b", 1.0)])
def test_rouge_l_sees_words_alone(predicted: str, gold: str, score: float) -> None:
    assert rouge_l(predicted, gold) == score


def test_translation_metrics_are_sacrebleus() -> None:
    import sacrebleu

    predicted, gold = "the cat sat on a mat", "the cat is on the mat"
    assert bleu(predicted, gold) == pytest.approx(sacrebleu.sentence_bleu(predicted, [gold]).score / 100)
    assert chrf(predicted, gold) == pytest.approx(sacrebleu.sentence_chrf(predicted, [gold], word_order=2).score / 100)
    assert ter(predicted, gold) == pytest.approx(1 - sacrebleu.sentence_ter(predicted, [gold]).score / 100)
    assert ter("every word of this is wrong", "yes") == 0


@pytest.mark.parametrize("name", ["rouge_l", "bleu", "chrf", "ter"])
def test_the_gold_answer_scores_exactly_1(name: str) -> None:
    metric = metric_for(name, "answer")
    for text in ("ja", "Das ist ein Haus mit vielen Fenstern."):
        assert metric(dspy.Example(answer=["no", text]), dspy.Prediction(answer=text)) == 1.0


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ("so the answer is 1,234.50.", "1234.5", 1.0),
        ("3 + 4 = 7", "7", 1.0),
        ("7 is what 3 + 4 make", "7", 0.0),
        ("$5", "$5", 1.0),
        ("12%", "12 %", 1.0),
        ("-2e3", "-2000", 1.0),
        ("none", "0", 0.0),
        ("1000000.2", "1000000", 1.0),
        ("1000002", "1000000", 0.0),
        ("it fell by \u22125", "-5", 1.0),
        ("9{,}500", "9500", 1.0),
        ("1 250 pots", "1250", 1.0),
        ("1,00,000", "100000", 1.0),
        ("2023-05", "-5", 0.0),
        ("it costs 1.234,56 euros", "1234.56", 1.0),
        ("1234.56", "1.234,56", 1.0),
        ("a share of 2/4.", "1/2", 1.0),
        ("-0.5", "-1/2", 1.0),
        ("3 of 4, so 3/4", "4", 1.0),
    ],
)
def test_numbers_match_by_value(predicted: str, gold: str, score: float) -> None:
    assert numeric_match(predicted, gold.replace(" ", "")) == score


def test_a_gold_answer_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="'seven' is not a number"):
        numeric_match("7", "seven")


def test_macro_f1_is_the_mean_of_the_labels_f1() -> None:
    gold, predicted = ["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "?", "a"]
    # a: precision 2/3, recall 2/3; b: 1/2, 1/2; c: nothing right.
    assert macro_f1(predicted, gold) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(gold, gold) == 1.0


def row(i: int, answer: str | None) -> Row:
    output = {} if answer is None else {"label": answer}
    return Row(str(i), None if answer is None else 1.0, "", 1, 0, 1, 1, 0.1, 0.0, output)


def task_of(metric: str) -> Task:
    return Task("t", dspy.Module, ("text",), ("label",), (), (), (), metric_for(metric, "label"), metric)


def test_second_opinions_of_a_cell() -> None:
    test = [dspy.Example(id=str(i), label=y, passages=["red sea", "blue"]) for i, y in enumerate("aab")]
    rows = [row(2, "b"), row(0, "a"), row(1, None)]
    found = secondary_metrics(task_of("accuracy"), test, rows)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert "macro_f1" not in secondary_metrics(task_of("exact_match"), test, rows)
    answered = secondary_metrics(task_of("exact_match"), test, [row(0, "the red sea"), row(1, None), row(2, "x")])
    assert answered == {"knowledge_f1": pytest.approx(2 * 2 / 5 / 2)}
    assert secondary_metrics(task_of("exact_match"), [dspy.Example(id="0", label="a")], [row(0, "a")]) == {}


def test_an_arm_that_cannot_be_told_from_a_constant_is_told_of() -> None:
    def told(answers: str, right: str, metric: str = "accuracy") -> str:
        pairs = list(enumerate(zip(answers, right, strict=True)))
        rows = [replace(row(i, a), score=float(a == r)) for i, (a, r) in pairs]
        return single_answer_warning(task_of(metric), [dspy.Example(id=str(i), label=r) for i, (_, r) in pairs], rows)

    half = "a" * 15 + "b" * 15
    always = "is not shown to be better than answering 'a' to everything, which scores 0.500"
    assert told("a" * 30, half) == always
    # Two more right answers may be chance, ten are not; other answers that are wrong do not help.
    assert told("a" * 28 + "bb", half) == always
    assert told("a" * 20 + "b" * 10, half) == ""
    assert told("a" * 20 + "c" * 10, half) == always
    # Of answers that differ, of few rows, and of a metric that may cost something nothing is told.
    assert told("abc" * 10, half) == ""
    assert told("a" * 19, "b" * 19) == ""
    task, rows = replace(task_of("accuracy"), metric_name="mine.py:f@0123"), [row(i, "a") for i in range(30)]
    assert single_answer_warning(task, [], rows) == ""
    assert single_answer_warning(task_of("accuracy"), [], [row(i, None) for i in range(30)]) == ""


def test_labels_are_scored_beside_their_frequency() -> None:
    def examples(labels: str) -> list[dspy.Example]:
        return [dspy.Example(id=str(i), label=y) for i, y in enumerate(labels)]

    task = task_of("accuracy")
    rows = [replace(row(i, "a"), score=s) for i, s in enumerate((1.0, 0.0, 1.0, None, 0.0))]
    found = label_notes(task, examples("aaab"), examples("aabba"), rows)
    assert found == {
        "a": {"train": 3, "test": 3, "score": pytest.approx(1 / 3)},
        "b": {"train": 1, "test": 2, "score": 1.0},
    }
    other = {"label_scores": {y: x | {"train": x["train"] + 1, "score": 0.0} for y, x in found.items()}}
    mean = mean_labels([{"label_scores": found}, other, {}])
    assert mean == {"a": LabelScore(3.5, 3, pytest.approx(1 / 6)), "b": LabelScore(1.5, 2, 0.5)}
    assert rare_and_frequent(mean) == (0.5, pytest.approx(1 / 6))
    assert rare_and_frequent({y: replace(x, train=2) for y, x in mean.items()}) is None
    assert label_notes(task, [], examples("abcde"), rows) == {}


def test_second_opinions_are_averaged_over_seeds() -> None:
    assert mean_secondary_metrics([{"secondary": {"macro_f1": 0.2}}, {"secondary": {"macro_f1": 0.4}}]) == {
        "macro_f1": pytest.approx(0.3)
    }
    assert mean_secondary_metrics([{}]) == {}


def test_labels_that_differ_in_case_or_a_dot_are_counted() -> None:
    test = [dspy.Example(id=str(i), label="delivery") for i in range(3)]
    rows = [replace(row(0, "Delivery."), score=0.0), replace(row(1, "refund"), score=0.0), row(2, "delivery")]
    assert near_miss_warning(task_of("label_accuracy"), test, rows) == (
        "1 of 2 wrong answers differ from the gold answer in case and punctuation alone; `metric: exact_match` takes "
        "them for right"
    )
    assert near_miss_warning(task_of("exact_match"), test, rows) == ""


def test_a_json_object_is_not_taken_for_one_entity() -> None:
    with pytest.raises(ValueError, match="one JSON object, not a list of"):
        entities_of('{"person": "Ada"}')
