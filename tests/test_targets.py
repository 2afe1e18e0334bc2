"""Training text: gold, a teacher's or the model's own; several steps by traces; built once."""

import contextvars
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny
import torch
from fakes import metric

from crossover.eval.run.methods import method_of
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.render import perplexity, render_training_text
from crossover.finetune.training.targets import Targets, Tracer, gold_calls, targets_of
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of
from crossover.models.prompt_formats import prompt_format
from crossover.programs.demos import with_demos
from crossover.programs.modules.classify import Classify
from crossover.programs.modules.multihop import Multihop
from crossover.programs.score import score_examples
from crossover.programs.task import Budget


def build(
    source: str, examples: list[dspy.Example], model: LoadedModel, budget: Budget, *, attempts: int = 2
) -> Targets:
    shown = with_demos(Classify(["text"], "label", []), examples[1::2])
    return targets_of(source, examples[::2], FitContext(shown, [], metric, model.lm, 0, budget), attempts)


def test_own_answers_are_kept_only_if_they_are_right(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    targets = build("self", intents, spoken, Budget(workdir=tmp_path, threads=4), attempts=3)
    answers = {e["id"]: e["label"] for e in intents}
    assert 0 < targets.solved == len(targets.calls)
    assert all(c.outputs["label"] == answers[c.example] for c in targets.calls)
    assert targets.spent.calls == targets.spent.metric_calls > 12
    once = build("self", intents, spoken, Budget(workdir=tmp_path / "once", threads=4), attempts=1)
    assert once.spent.calls == 12
    assert once.solved <= targets.solved


def test_the_same_targets_are_never_built_twice(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    budget = Budget(workdir=tmp_path / "a", shared=tmp_path / "shared", threads=4)
    first = build("self", intents, spoken, budget)
    lines = list[str]()
    again = build("self", intents, spoken, replace(budget, workdir=tmp_path / "b", progress=lines.append))
    assert again == first
    assert lines == []
    build("self", intents[2:], spoken, replace(budget, progress=lines.append))
    assert lines


def test_targets_of_other_settings_are_others(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    budget = Budget(workdir=tmp_path, shared=tmp_path / "shared", threads=4)
    warm = replace(spoken, lm=spoken.lm.copy(temperature=0.5))
    for model, decode in ((spoken, "free"), (warm, "free"), (spoken, "labels"), (spoken, "free")):
        with dspy.context(adapter=prompt_format("plain", decode=decode)):
            build("self", intents, model, budget)
    assert len(list((tmp_path / "shared").glob("*.json"))) == 3


def test_of_two_answers_to_one_question_each_example_has_its_own(
    spoken: LoadedModel, intents: list[dspy.Example]
) -> None:
    tracer, example = Tracer(Classify(["text"], "label", [])), intents[0]
    with dspy.context(lm=spoken.lm.copy(temperature=1.0)):
        answers = {tracer(**example.inputs()).label for _ in range(8)}
    assert len(answers) > 1
    for answer in answers:
        [call] = tracer.calls(example, {"label": answer})
        assert call.outputs == {"label": answer}


def test_a_program_that_returns_no_prediction_is_told_what_to_return(
    spoken: LoadedModel, intents: list[dspy.Example]
) -> None:
    class Text(Classify):
        def forward(self, **inputs: str) -> str:  # type: ignore[override]
            return str(super().forward(**inputs).label)

    with dspy.context(lm=spoken.lm):
        [row] = score_examples(Tracer(Text(["text"], "label", [])), intents[:1], metric, threads=1)
    assert row.failure.startswith("program: TypeError: forward returned a str; return the prediction itself")


def test_who_comes_while_targets_are_built_waits_for_them(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    budget, scored, second = (
        Budget(workdir=tmp_path, shared=tmp_path / "shared", threads=1),
        list[str](),
        list[Targets](),
    )
    program = Classify(["text"], "label", [])

    def build_targets() -> Targets:
        return targets_of("self", intents[:4], FitContext(program, [], counted, spoken.lm, 0, budget), 1)

    # With the prompt format of this test.
    run = contextvars.copy_context().run
    late = threading.Thread(target=lambda: second.append(run(build_targets)))

    def counted(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        if not scored:
            late.start()
        scored.append(str(gold.id))
        return 1.0

    first = build_targets()
    late.join()
    assert second == [first]
    assert len(scored) == 4


def test_a_teacher_answers_in_its_own_frame(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sft targets 'teacher' without a teacher"):
        build("teacher", intents, spoken, Budget(workdir=tmp_path))
    budget = Budget(workdir=tmp_path, threads=4, teacher=spoken.lm, teacher_format=spoken.prompt_format)
    taught = build("teacher", intents, spoken, budget, attempts=1)
    own = build("self", intents, spoken, replace(budget, workdir=tmp_path / "own"), attempts=1)
    assert taught.calls == own.calls
    assert taught.teacher_usd == 0.0


def test_every_call_of_a_program_of_several_steps_is_a_row(spoken: LoadedModel, tmp_path: Path) -> None:
    asked = [
        dspy.Example(
            id=str(n), question=f"who wrote {w}?", answer=f"the author of {w}", passages=[f"{w} is a book"]
        ).with_inputs("question", "passages")
        for n, w in enumerate(("alpha", "beta", "gamma", "delta"))
    ]

    def even(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        return float(int(gold.id) % 2 == 0)

    def rm(query: str, **_: Any) -> list[Any]:
        return [dspy.Example(long_text="an author is a person")]

    with dspy.context(rm=rm):
        fitted = method_of("sft", {"epochs": 1, "rank": 4, "attempts": 1}).fit(
            Multihop(["question"], "answer"),
            train=asked,
            val=asked[:1],
            metric=even,
            lm=spoken.lm,
            seed=0,
            budget=Budget(workdir=tmp_path, threads=4),
        )
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    answered = [r for r in rows if r["completion"][0]["content"].startswith("the author of")]
    # Four gold answers, read after the second passage; the queries of the two whose trace scored 1.
    assert (len(rows), len(answered)) == (6, 4)
    assert all("an author is a person" in str(r["prompt"]) for r in answered)
    assert sum("Write a search query" in str(r["prompt"]) for r in rows) == 2
    assert fitted.warnings[0] == "2 of 4 train examples have no right trace"
    assert fitted.facts.logit_change > 0


def test_perplexity_is_that_of_the_completions_alone(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    program, engine = Classify(["text"], "label", []), engine_of(spoken.lm)
    text = render_training_text(program, gold_calls(program, intents[:2]), spoken.lm)
    logs = list[float]()
    for row in text.rows:
        prompt = engine.encode(row["prompt"])
        whole = engine.tokenizer.apply_chat_template(
            [*row["prompt"], *row["completion"]], tokenize=True, return_dict=True
        )["input_ids"]
        for n in range(len(prompt), len(whole)):
            logs.append(float(torch.log_softmax(tiny.logits(engine, whole[:n]), 0)[whole[n]]))
    assert perplexity(text, spoken.lm) == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-3)


def test_nothing_right_is_nothing_to_learn(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    method = method_of("sft", {"targets": "self", "attempts": 1})
    with pytest.raises(UserError, match="none of 3 train examples was answered with a score of 1"):
        method.fit(
            Classify(["text"], "label", []),
            train=intents[:3],
            val=intents[3:],
            metric=lambda *a, **k: 0.0,
            lm=spoken.lm,
            seed=0,
            budget=Budget(workdir=tmp_path),
        )
    with pytest.raises(UserError, match="sft targets 'mine' is not one of gold, teacher, self"):
        method_of("sft", {"targets": "mine"})
