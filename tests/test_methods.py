"""Every method, under the same keywords, on the embedded model."""

import random
from pathlib import Path
from typing import Any

import dspy
import pytest

from eval.audit import audit
from eval.catalog import methods
from eval.run import method_of
from eval.store import program_state
from models.load import LoadedModel
from models.prompt import engine_of, first_messages
from optimizers.retrieved_demos import NearestDemos
from programs.modules.classify import Classify
from programs.score import mean_score, score_examples
from programs.task import Budget, Fitted

OPTIONS: dict[str, Any] = {"sft": {"epochs": 1, "rank": 4}, "retrieved_demos": {"demos": 3}, "many_shot": {"demos": 12}}


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return float(gold.label == pred.label)


def fit(
    name: str, examples: list[dspy.Example], model: LoadedModel, folder: Path, **options: Any
) -> tuple[dspy.Module, Fitted]:
    program = Classify(["text"], "label", [])
    method = method_of(name, OPTIONS.get(name, {}) | options)
    fitted = method.fit(
        program,
        train=examples[:20],
        val=examples[20:],
        metric=metric,
        lm=model.lm,
        seed=0,
        budget=Budget(workdir=folder),
    )
    return program, fitted


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
def test_fit_changes_nothing_it_was_given(
    name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    before = [e.toDict() for e in intents]
    program, fitted = fit(name, intents, spoken, tmp_path)
    assert program_state(program) == program_state(Classify(["text"], "label", []))
    assert [e.toDict() for e in intents] == before
    assert audit(name, fitted, intents[20:], spoken) == []


@pytest.mark.parametrize("name", ["few_shot", "many_shot"])
def test_same_seed_same_demonstrations(
    name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    one, two = (program_state(fit(name, intents, spoken, tmp_path, demos=5)[1].program) for _ in range(2))
    assert one == two
    assert "card" in str(one)


def test_many_shot_shows_each_label_in_turn(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    demos = fit("many_shot", intents, spoken, tmp_path, demos=8)[1].program.predictors()[0].demos
    assert len({d["label"] for d in demos[:4]}) == len({d["label"] for d in demos[4:]}) == 4


def test_many_shot_fills_the_context_and_no_more(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    copies = [e.copy(id=f"{e['id']}-{n}") for n in range(40) for e in intents[:20]]
    method = method_of("many_shot", {})
    fitted = method.fit(
        Classify(["text"], "label", []), train=copies, val=intents[20:], metric=metric, lm=spoken.lm, seed=0,
        budget=Budget(workdir=tmp_path),
    )  # fmt: skip
    engine = engine_of(spoken.lm)
    used = len(engine.encode(first_messages(fitted.program, intents[-1])))
    assert engine.context * 0.9 < used <= engine.context - 16
    assert 100 < fitted.notes["demos"] < 800


def test_retrieved_demos_put_the_most_similar_last_and_never_the_question(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    nearest = fit("retrieved_demos", intents, spoken, tmp_path)[1].program
    assert isinstance(nearest, NearestDemos)
    asked = intents[0]
    found = nearest.nearest(asked.inputs().toDict())
    assert asked["text"] not in [e["text"] for e in found]
    assert found[-1]["label"] == asked["label"]


def test_retrieved_demos_are_saved_with_the_program(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    _, fitted = fit("retrieved_demos", intents, spoken, tmp_path)
    _, other = fit("retrieved_demos", random.Random(1).sample(intents, 24), spoken, tmp_path)
    other.program.load_state(program_state(fitted.program))
    question = {"text": "lost the new card"}
    assert [e["id"] for e in other.program.nearest(question)] == [e["id"] for e in fitted.program.nearest(question)]


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_sft_learns_from_gradient_steps(
    adapter: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program, fitted = fit("sft", intents, spoken, tmp_path, adapter=adapter, epochs=12, batch_size=4)
    assert fitted.notes["loss"][-1] < 0.5 * fitted.notes["loss"][0]
    assert fitted.notes["logit_change"] > 0.1
    untouched = list(score_examples(program, intents[:20], metric))
    with dspy.context(lm=fitted.lm):
        trained = list(score_examples(fitted.program, intents[:20], metric))
    assert mean_score(trained) > mean_score(untouched) + 0.3
    assert fitted.notes["val_scores"][-1] > fitted.notes["val_scores"][0]


def test_sft_refuses_what_it_cannot_train(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    from programs.task import UserError

    with pytest.raises(UserError, match=r"adapter 'qlora' is not one of lora, none"):
        fit("sft", intents, spoken, tmp_path, adapter="qlora")
    api = LoadedModel(spoken.spec, dspy.LM("openai/gpt-4o-mini"), spoken.adapter, "", False, 0, lambda u: 0.0)
    with pytest.raises(UserError, match="sft needs a model that runs here"):
        fit("sft", intents, api, tmp_path)


def test_training_and_serving_share_every_token(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    from finetune.render import render_training_text
    from finetune.training import check_tokens

    program, engine = Classify(["text"], "label", []), engine_of(spoken.lm)
    text = render_training_text(program, intents, spoken.lm)
    whole = [engine.encode(r["prompt"]) for r in text.rows]
    with pytest.raises(RuntimeError, match="different tokens"):
        check_tokens(whole, text, engine)
    assert text.dropped == 0
    assert len(text.lengths) == len(intents)
