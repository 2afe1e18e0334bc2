"""Programs of the user's own: intermediate fields, typed outputs, several steps, tools."""

import json
from pathlib import Path
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils import DummyLM
from fakes import fit_intents, metric

from crossover.eval.run.methods import method_of
from crossover.finetune.training.render import render_call
from crossover.finetune.training.targets import gold_calls, unlearned_fields
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of, first_messages
from crossover.models.prompt_formats import prompt_format
from crossover.programs.data import load_and_check
from crossover.programs.demos import with_demos
from crossover.programs.metrics import metric_for
from crossover.programs.score import score_examples
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Budget


class Intent(dspy.Signature):
    """Name the intent of the message."""

    text: str = dspy.InputField()
    label: Literal["card_lost", "refund_late", "close_account", "exchange_rate"] = dspy.OutputField()


def test_a_demonstration_may_lack_the_reasoning(intents: list[dspy.Example]) -> None:
    program = with_demos(dspy.ChainOfThought(Intent), intents[:2])
    assert [set(d) for d in program.predict.demos] == [{"text", "label"}] * 2
    for name in ("plain", "chat", "json"):
        with dspy.context(adapter=prompt_format(name)):
            messages = first_messages(program, intents[3])
        shown = [m["content"] for m in messages if m["role"] == "assistant"]
        assert len(shown) == 2
        assert all("Not supplied for this particular example." in text for text in shown)


@pytest.mark.parametrize("method", ["few_shot", "many_shot", "retrieved_demos"])
def test_labelled_examples_are_shown_to_a_chain_of_thought(
    method: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program = dspy.ChainOfThought(Intent)
    fitted = fit_intents(method, {"demos": 3}, intents, spoken.lm, Budget(workdir=tmp_path), program)
    assert fitted.warnings == []
    assert isinstance(fitted.program, dspy.Module)


def test_examples_that_no_step_can_show_are_refused_when_the_method_is_fitted(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    for name in ("few_shot", "retrieved_demos"):
        with pytest.raises(UserError, match="no train example can be shown: the program has no step with an input"):
            fit_intents(name, {}, intents, spoken.lm, Budget(workdir=tmp_path), dspy.Predict("message -> topic"))


def test_an_answer_is_trained_with_an_empty_reasoning_that_the_format_reads_back(
    spoken: LoadedModel, intents: list[dspy.Example]
) -> None:
    program = dspy.ChainOfThought(Intent)
    (call,) = gold_calls(program, intents[:1])
    assert unlearned_fields(program, [call]) == ["reasoning"]
    for name in ("plain", "chat", "json"):
        adapter = prompt_format(name)
        with dspy.context(adapter=adapter):
            _, (answer,) = render_call(program, call, engine_of(spoken.lm).tokenizer)
        read = adapter.parse(program.predict.signature, answer["content"])
        assert read == {"reasoning": "", "label": "card_lost"}


def test_sft_says_what_it_learns(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    lines = list[str]()
    budget = Budget(workdir=tmp_path, threads=4, progress=lines.append)
    fitted = fit_intents("sft", {"epochs": 1, "rank": 4}, intents, spoken.lm, budget, dspy.ChainOfThought(Intent))
    assert "sft learns label from 20 rows, without reasoning" in lines
    assert fitted.warnings[0] == "learnt without reasoning, which the data lacks; use `targets: self`"
    with pytest.raises(UserError, match="head gives one label by one predictor"):
        method_of("head", {}).fit(
            dspy.ChainOfThought(Intent),
            train=intents,
            val=intents,
            metric=lambda *a, **k: 1.0,
            lm=spoken.lm,
            seed=0,
            budget=budget,
        )


class Person(pydantic.BaseModel):
    """A typed output."""

    name: str
    age: int


ADA: dict[str, Any] = {"name": "Ada", "age": 36}
TYPES: list[tuple[Any, Any, str, Any, Any]] = [
    (Literal["red", "blue"], "red", "red", "red", "blue"),
    (int, "15", "15", 15, 51),
    (float, "1.50", "1.5", 1.5, 15.0),
    (bool, True, "true", True, False),
    (list[str], ["b", "a"], '["a", "b"]', ["b", "a"], ["a"]),
    (list[Person], [{"name": "Ada", "age": 36}], '[{"name": "Ada", "age": 36}]', [Person(name="Ada", age=36)], []),
    (Person, ADA, '{"name": "Ada", "age": 36}', Person(**ADA), Person(name="Ada", age=3)),
]


@pytest.mark.parametrize(("kind", "cell", "answer", "gold", "other"), TYPES)
def test_a_typed_output_is_scored_by_its_value(
    kind: Any, cell: Any, answer: str, gold: Any, other: Any, tmp_path: Path
) -> None:
    rows = [{"question": f"what is number {n}?", "answer": cell} for n in range(180)]
    for n, split in enumerate(("train", "val", "test")):
        lines = map(json.dumps, rows[60 * n : 60 * n + 60])
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.py").write_text(f"from {__name__} import ask as build\n")
    Ask.kind = kind
    data = {split: f"{split}.jsonl" for split in ("train", "val", "test")}
    spec = TaskSpec("t", "./mine.py:build", data, {"question": "input", "answer": "output"}, metric="exact_match")
    task, problems = load_and_check(spec, base=tmp_path)
    assert problems == []
    assert task is not None
    assert task.test[0]["answer"] == gold
    assert task.metric(task.test[0], dspy.Prediction(answer=other)) == 0.0
    with dspy.context(lm=DummyLM([{"answer": answer}]), adapter=dspy.ChatAdapter()):
        (row,) = score_examples(with_demos(task.program(), task.train[:2]), task.test[:1], task.metric)
    assert (row.score, row.failure) == (1.0, "")


class Ask(dspy.Module):
    """Answer a question by a value of the type of the test."""

    kind: Any = str

    def __init__(self) -> None:
        super().__init__()
        fields = {"question": (str, dspy.InputField()), "answer": (self.kind, dspy.OutputField())}
        self.predict = dspy.Predict(dspy.Signature(fields))

    def forward(self, question: str) -> dspy.Prediction:
        return self.predict(question=question)


def ask() -> dspy.Module:
    return Ask()


def test_a_gold_answer_that_the_type_does_not_take_is_named(tmp_path: Path) -> None:
    rows = [{"question": f"number {n}?", "answer": "five" if n == 3 else str(n)} for n in range(60)]
    for split in ("train", "test"):
        lines = (json.dumps(row | {"question": f"{split} {row['question']}"}) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.py").write_text(f"from {__name__} import ask as build\n")
    Ask.kind = int
    data = {split: f"{split}.jsonl" for split in ("train", "test")}
    spec = TaskSpec("t", "./mine.py:build", data, {"question": "input", "answer": "output"})
    _, problems = load_and_check(spec, base=tmp_path)
    assert len(problems) == 2
    assert str(problems[0]).startswith("error: train.jsonl:4: a gold answer is not of the program's type: ")


class TwoSteps(dspy.Module):
    """Sum a text up, then name its topic."""

    def __init__(self) -> None:
        super().__init__()
        self.sum_up = dspy.Predict("text -> summary")
        self.name = dspy.ChainOfThought("text, summary -> label")

    def forward(self, text: str) -> dspy.Prediction:
        return self.name(text=text, summary=self.sum_up(text=text).summary)


def test_a_program_of_two_steps_shows_each_step_what_there_is(intents: list[dspy.Example]) -> None:
    program = with_demos(TwoSteps(), intents[:1])
    assert [[set(d) for d in p.demos] for p in program.predictors()] == [[], [{"text", "label"}]]
    lm = DummyLM([{"summary": "a card is gone"}, {"reasoning": "gone is lost", "label": "card_lost"}])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        (row,) = score_examples(program, intents[1:2], metric, threads=1)
    assert (row.score, row.calls) == (1.0, 2)


def test_an_agent_with_a_tool_is_scored_and_shown_answers(intents: list[dspy.Example]) -> None:
    asked = list[str]()

    def look_up(word: str) -> str:
        """Look a word up."""
        asked.append(word)
        return "a card that is gone is lost"

    program = with_demos(dspy.ReAct("text -> label", tools=[look_up]), intents[:2])
    assert [len(p.demos) for p in program.predictors()] == [0, 2]
    call = {"next_thought": "look it up", "next_tool_name": "look_up", "next_tool_args": '{"word": "gone"}'}
    finish = {"next_thought": "known", "next_tool_name": "finish", "next_tool_args": "{}"}
    lm = DummyLM([call, finish, {"reasoning": "lost", "label": "card_lost"}])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        (row,) = score_examples(program, intents[1:2], metric, threads=1)
    assert (row.score, row.calls, asked) == (1.0, 3, ["gone"])


def test_a_program_must_return_a_prediction(intents: list[dspy.Example]) -> None:
    class Says(dspy.Module):
        def forward(self, text: str) -> str:
            return "card_lost"

    (row,) = score_examples(Says(), intents[:1], metric, threads=1)
    assert row.failure == (
        "program: TypeError: forward returned a str; return the prediction itself, or dspy.Prediction(field=…)"
    )


METRICS = """
import dspy
import beside_it

def number(gold, pred): return 0.5
def yes(gold, pred): return gold.label == pred.label
def explained(gold, pred): return dspy.Prediction(score=0.5, feedback="half right")
def several(gold, pred): return {"score": 0.25, "length": 7, "tone": True}
def first(gold, pred): return {"tone": True, "length": 7}
def nothing(gold, pred): return None if gold.label != pred.label else True
def beyond(gold, pred): return 1 + 2e-16 if gold.label == pred.label else {"score": -2}
judge = dspy.Predict("answer -> good: bool")
def asks(gold, pred): return judge(answer=pred.label).good
"""


def test_a_metric_may_return_a_number_a_prediction_or_a_dict(tmp_path: Path, intents: list[dspy.Example]) -> None:
    (tmp_path / "mine.py").write_text(METRICS)
    (tmp_path / "beside_it.py").write_text("")
    gold, right, wrong = intents[0], dspy.Prediction(label="card_lost"), dspy.Prediction(label="x")

    def call(name: str, answer: dspy.Prediction = right) -> Any:
        return metric_for(f"./mine.py:{name}", "label", base=tmp_path)(gold, answer)

    assert [call(n) for n in ("number", "yes", "explained", "several", "first")] == [0.5, 1.0, 0.5, 0.25, 1.0]
    assert call("several").fields == {"score": 0.25, "length": 7.0, "tone": 1.0}
    assert call("nothing") == call("beyond") == 1.0
    with pytest.raises(TypeError, match="the metric returned None; return True, False or a number"):
        call("nothing", wrong)
    with pytest.raises(ValueError, match="the metric returned -2; return True, False or a number from 0 to 1"):
        call("beyond", wrong)
    with dspy.context(lm=DummyLM([{"good": "True"}])), pytest.raises(UserError) as error:
        call("asks")
    assert str(error.value) == (
        "mine.py:asks asks a language model and names none; write `metric: {judge: …}`, or call it under "
        "dspy.context(lm=…)"
    )
