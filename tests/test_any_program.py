"""Programs of the user's own: intermediate fields, typed outputs, several steps, tools."""

from pathlib import Path
from typing import Literal

import dspy
import pytest
from fakes import fit_intents

from crossover.eval.run.methods import method_of
from crossover.finetune.training.render import render_call
from crossover.finetune.training.targets import gold_calls, unlearned_fields
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of, first_messages
from crossover.models.prompt_formats import prompt_format
from crossover.programs.demos import with_demos
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
    assert "sft learns label from 20 rows" in lines
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
