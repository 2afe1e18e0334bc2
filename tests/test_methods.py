"""Every method, under the same keywords, on the small model."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy import lm15
from fakes import fit_intents, metric

from crossover.eval.experiment.catalog import methods, traits
from crossover.eval.run.audit import audit
from crossover.eval.run.methods import method_of
from crossover.eval.store.cells import program_state
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of, first_messages
from crossover.optimizers.common.nearest import NearestDemos
from crossover.optimizers.ensemble import Vote
from crossover.programs.demos import answer_fields
from crossover.programs.modules.classify import Classify
from crossover.programs.modules.multihop import Multihop
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, Fitted

METRIC_CALLS = 50
OPTIONS: dict[str, Any] = {
    "sft": {"epochs": 1, "rank": 4},
    "dpo": {"epochs": 1, "rank": 4, "attempts": 1},
    "retrieved_demos": {"demos": 3},
    "many_shot": {"demos": 12},
    "hybrid": {"fixed": 4, "demos": 2},
    "ensemble": {"members": 2, "demos": 3},
    "bootstrap": {"labelled": 6},
    "bootstrap_search": {"candidates": 1, "labelled": 6},
    "mipro": {"candidates": 2, "trials": 2},
    "copro": {"breadth": 2, "depth": 1},
    "simba": {"batch": 4, "candidates": 2, "steps": 1},
    "infer_rules": {"candidates": 1, "labelled": 6},
}


def fit(
    name: str,
    examples: list[dspy.Example],
    model: LoadedModel,
    folder: Path,
    *,
    answers: Path | None = None,
    metric_calls: int = METRIC_CALLS,
    **options: Any,
) -> tuple[dspy.Module, Fitted]:
    program = Classify(["text"], "label", [])
    budget = Budget(workdir=folder, metric_calls=metric_calls, answers=answers, threads=4)
    return program, fit_intents(name, OPTIONS.get(name, {}) | options, examples, model.lm, budget, program)


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
def test_fit_changes_nothing_it_was_given(
    name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    before = [e.toDict() for e in intents]
    program, fitted = fit(name, intents, spoken, tmp_path)
    assert program_state(program) == program_state(Classify(["text"], "label", []))
    assert [e.toDict() for e in intents] == before
    assert audit(fitted, intents[20:], spoken) == []
    assert (fitted.spent.calls + fitted.spent.train_tokens > 0) == (
        traits(name).searches or traits(name).kind == "in_weights"
    )
    assert fitted.spent.metric_calls <= METRIC_CALLS
    assert prompts(reloaded(fitted.program), intents[20:]) == prompts(fitted.program, intents[20:]) != []


class Recorder:
    """An engine that keeps the prompts and answers with one letter."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.seen.append(repr((request.system, request.messages)))
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant("a"),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )


def prompts(program: dspy.Module, examples: list[dspy.Example]) -> list[str]:
    """Return every prompt that the program sends for the examples."""
    recorder = Recorder()
    with dspy.context(lm=dspy.LM("test/recorder", engine=recorder, cache=False)):
        for e in examples:
            program(**e.inputs())
    return recorder.seen


def reloaded(program: dspy.Module) -> dspy.Module:
    """Return a program that was emptied, and then given the state of the first by way of JSON."""
    state = json.loads(json.dumps(program_state(program)))
    empty = program.deepcopy()
    for predictor in empty.predictors():
        predictor.demos = [{"text": "wrong", "label": "wrong"}]
        predictor.signature = predictor.signature.with_instructions("Wrong.")
    if isinstance(empty, NearestDemos):
        empty._set_pool([{"text": "wrong", "label": "wrong"}], [["text"]], {"backend": "bm25"})
    empty.load_state(state)
    return empty


@pytest.mark.parametrize("name", ["mipro", "gepa"])
def test_a_search_that_was_killed_pays_nothing_twice(
    name: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    _, whole = fit(name, intents, spoken, tmp_path, answers=answers, metric_calls=30)
    lines = answers.read_text().splitlines(keepends=True)
    assert len(lines) == whole.spent.calls
    kept = len(lines) // 2
    answers.write_text("".join(lines[:kept]) + lines[kept][:20])
    _, again = fit(name, intents, spoken, tmp_path, answers=answers, metric_calls=30)
    assert program_state(again.program) == program_state(whole.program)
    assert again.notes["replayed_calls"] == kept
    assert again.spent.calls == whole.spent.calls == len(answers.read_text().splitlines())


def test_the_budget_ends_a_search_with_the_best_so_far(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    _, fitted = fit("bootstrap_search", intents, spoken, tmp_path, metric_calls=11, candidates=5)
    assert fitted.spent.metric_calls == 11
    assert "the budget ended the search: 11 metric calls" in fitted.warnings
    assert len(fitted.notes["val_scores"]) == 2


def test_a_proposer_that_cannot_propose_is_told_of(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program, fitted = fit("copro", intents, spoken, tmp_path)
    assert program_state(fitted.program) == program_state(program)
    assert fitted.warnings[-1] == "no proposal could be tried: the program is as it was given"
    assert fitted.warnings[0].startswith("the search broke off: AdapterParseError")


def test_many_shot_orders_its_block(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    def shown(order: str) -> Any:
        return fit("many_shot", intents, spoken, tmp_path, order=order)[1].program

    shuffled, by_label = (shown(o).predictors()[0].demos for o in ("shuffled", "label_sorted"))
    assert [d["label"] for d in by_label] == sorted(d["label"] for d in shuffled)
    assert sorted(map(str, by_label)) == sorted(map(str, shuffled))
    nearest = shown("similarity").nearest({"text": "lost my new card again"})
    assert len(nearest) == 12
    assert nearest[-1]["label"] == "card_lost"
    with pytest.raises(UserError, match="order 'best' is not one of shuffled"):
        shown("best")


def test_hybrid_shows_the_same_block_first_and_never_the_question(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    hybrid = fit("hybrid", intents, spoken, tmp_path)[1].program
    block = [d["text"] for d in hybrid.program.predictors()[0].demos]
    first, second = prompts(hybrid, [intents[0], intents[13]])
    assert all(first.index(t) == second.index(t) for t in block)
    assert len(block) == 4
    assert [first.count(f"text: {intents[0]['text']}'"), first.count("role='assistant'")] == [1, 6]


def test_an_ensemble_answers_with_the_majority(intents: list[dspy.Example]) -> None:
    class Fixed(dspy.Module):
        def __init__(self, label: str) -> None:
            super().__init__()
            self.predict, self.label = dspy.Predict("text -> label"), label

        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(label=self.label)

    def voted(*labels: str) -> str:
        return str(Vote([Fixed(y) for y in labels], ["label"])(text="x").label)

    assert voted("b", "a", "a") == "a"
    assert voted("5", "-5", "-5") == "-5"


def test_an_ensemble_votes_on_fields_of_every_type() -> None:
    class Fixed(dspy.Module):
        def __init__(self, *values: Any) -> None:
            super().__init__()
            self.predict, self.values = dspy.Predict("text -> language, sizes: list[int], price: float"), values
            signature = self.predict.signature
            self.predict.signature = signature.with_updated_fields("language", Literal["C", "C++"])

        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(**dict(zip(("language", "sizes", "price"), self.values, strict=True)))

    members = [Fixed("C", [1, 2], 3.0), Fixed("C++", [1], 3.0), Fixed("C++", [1, 2], 4.0), Fixed("C++", [1, 2], 3.0)]
    outputs = ["language", "sizes", "price"]
    assert Vote(members, outputs)(text="x").toDict() == {"language": "C++", "sizes": [1, 2], "price": 3.0}
    # The order of a list is no other answer, and what the data has no answer for has no vote.
    others = [Fixed("C", [9], 7.0), Fixed("C", [1, 2], 5.0), Fixed("C++", [2, 1], 7.0)]
    assert Vote(others, ["sizes"])(text="x").sizes == [1, 2]
    gold = dspy.Example(text="x", sizes=[1], price=1.0).with_inputs("text")
    assert answer_fields(others[0], [gold]) == ["sizes", "price"]
    hop = dspy.Example(question="q", answer="a").with_inputs("question")
    assert answer_fields(Multihop(["question"], "answer"), [hop]) == ["answer"]
    asked = Multihop(["query"], "answer").write_query.signature
    assert (list(asked.input_fields), list(asked.output_fields)) == (["passages", "query"], ["search_query"])


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
        Classify(["text"], "label", []),
        train=copies,
        val=intents[20:],
        metric=metric,
        lm=spoken.lm,
        seed=0,
        budget=Budget(workdir=tmp_path),
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_sft_learns_from_gradient_steps(
    adapter: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program, fitted = fit("sft", intents, spoken, tmp_path, adapter=adapter, epochs=12, batch_size=4)
    assert fitted.notes["loss"][-1] < 0.5 * fitted.notes["loss"][0]
    assert fitted.facts.logit_change > 0.1
    untouched = list(score_examples(program, intents[:20], metric))
    with dspy.context(lm=fitted.lm):
        trained = list(score_examples(fitted.program, intents[:20], metric))
    assert mean_score(trained) > mean_score(untouched) + 0.3
    assert fitted.notes["val_scores"][-1] > fitted.notes["val_scores"][0]


def test_sft_refuses_what_it_cannot_train(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter 'lara' is not one of lora, dora, qlora, none"):
        fit("sft", intents, spoken, tmp_path, adapter="lara")
    api = LoadedModel(spoken.spec, dspy.LM("openai/gpt-4o-mini"), spoken.prompt_format, "", False, 0, lambda u: 0.0)
    with pytest.raises(UserError, match="sft needs a model that runs here"):
        fit("sft", intents, api, tmp_path)


def test_training_and_serving_share_every_token(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    from crossover.finetune.training.render import render_training_text
    from crossover.finetune.training.sft_training import check_tokens
    from crossover.finetune.training.targets import gold_calls

    program, engine = Classify(["text"], "label", []), engine_of(spoken.lm)
    text = render_training_text(program, gold_calls(program, intents), spoken.lm)
    whole = [engine.encode(r["prompt"]) for r in text.rows]
    with pytest.raises(RuntimeError, match="different tokens"):
        check_tokens(whole, text, engine)
    assert text.dropped == 0
    assert len(text.lengths) == len(intents)
