"""Chains: prompt and weights one after another, as one arm with one budget."""

from pathlib import Path
from typing import Any

import dspy
import pytest
from factories import make_cell, make_result, right

from crossover.eval.analysis.arm import arms_of
from crossover.eval.experiment.catalog import searches
from crossover.eval.experiment.spec import Cell, Knowledge, MethodSpec, Prices
from crossover.eval.run.audit import audit
from crossover.eval.run.methods import method_of
from crossover.models.errors import UserError
from crossover.models.load import EMBEDDED, LoadedModel, tuned_lm
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of
from crossover.models.spec import ModelSpec
from crossover.programs.modules.classify import Classify
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, Fitted

SFT = {"name": "sft", "options": {"epochs": 1, "rank": 4}}
BOOTSTRAP = {"name": "bootstrap", "options": {"bootstrapped": 2, "labelled": 3}}
SEARCH = {"name": "bootstrap_search", "options": {"candidates": 1, "labelled": 3}}


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return float(gold.label == pred.label)


def fit(
    steps: list[dict[str, Any]], examples: list[dspy.Example], model: LoadedModel, folder: Path, metric_calls: int = 30
) -> Fitted:
    budget = Budget(metric_calls=metric_calls, workdir=folder, answers=folder / "answers.jsonl", threads=4)
    return method_of("chain", {"steps": steps}).fit(
        Classify(["text"], "label", []),
        train=examples[:20],
        val=examples[20:],
        metric=metric,
        lm=model.lm,
        seed=0,
        budget=budget,
    )


def test_weights_then_prompt_runs_on_the_trained_weights(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    fitted = fit([SFT, BOOTSTRAP], intents, spoken, tmp_path)
    assert fitted.lm.model.startswith(spoken.lm.model)
    assert fitted.lm.model != spoken.lm.model
    assert len(fitted.program.predictors()[0].demos) == 3
    assert fitted.artifact is not None
    assert fitted.spent.train_tokens > 0
    assert fitted.spent.metric_calls > 0
    assert fitted.notes["1-sft.trainable_parameters"] > 0
    assert audit("chain", fitted, intents[20:], spoken) == []


def test_prompt_weights_prompt_goes_on_from_the_step_before(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    two = fit([SEARCH, SFT], intents, spoken, tmp_path / "two", 80)
    three = fit([SEARCH, SFT, SEARCH], intents, spoken, tmp_path / "three", 80)
    names = ["1-bootstrap_search", "2-sft", "3-bootstrap_search"]
    assert list(dict.fromkeys(key.partition(".")[0] for key in three.notes if "-" in key)) == names
    # The trained weights of the second step are what the third asks, and its program is where the third starts.
    assert three.lm.model == two.lm.model != spoken.lm.model
    assert three.artifact is not None
    with dspy.context(lm=two.lm):
        rows = list(score_examples(two.program, intents[20:], metric))
    assert three.notes["3-bootstrap_search.val_start"] == mean_score(rows)
    assert three.spent.train_tokens == two.spent.train_tokens > 0
    assert two.spent.metric_calls < three.spent.metric_calls <= 80
    assert audit("chain", three, intents[20:], spoken) == []


@pytest.mark.parametrize("steps", [["lora", "lora"], ["none", "lora"], ["lora", "none"]], ids=str)
def test_a_training_starts_from_what_the_one_before_it_gave(
    steps: list[str], spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    """A second training that hardly moves a weight leaves the logits of the first, not those of the base."""
    rates = (0.003, 1e-9)
    chain = [
        {"name": "sft", "options": {"epochs": 2, "rank": 4, "bf16": False, "adapter": a, "lr": lr}}
        for a, lr in zip(steps, rates, strict=True)
    ]
    fitted = fit(chain, intents, spoken, tmp_path)
    base, first, last = (
        LocalEngine.load(folder).logits([5, 6, 7])
        for folder in (EMBEDDED, tmp_path / "1-sft" / "best", tmp_path / "2-sft" / "best")
    )
    assert (first - base).abs().max() > 0.1
    assert (last - first).abs().max() < 1e-3
    # What is kept stands alone: whole weights, which a later process attaches to the first model's name.
    assert fitted.artifact == tmp_path / "2-sft" / "best"
    assert tuned_lm(spoken.lm, fitted.artifact).model == fitted.lm.model
    assert engine_of(fitted.lm).logits([5, 6, 7]).equal(last)


def test_nothing_is_trained_on_top_of_a_head(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    head = {"name": "head", "options": {"ridge": 1.0}}
    fitted = fit([SFT, head], intents, spoken, tmp_path)
    assert fitted.lm.model.startswith(f"{spoken.lm.model}-")
    assert "+head-" in fitted.lm.model
    with pytest.raises(UserError, match="sft needs a model that runs here"):
        fit([head, SFT], intents, spoken, tmp_path)


def test_the_steps_of_a_chain_share_one_budget(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    fitted = fit([SEARCH, SEARCH], intents, spoken, tmp_path)
    assert fitted.spent.metric_calls <= 30
    assert sorted(f.name for f in tmp_path.glob("*.jsonl")) == [
        "1-bootstrap_search-answers.jsonl",
        "2-bootstrap_search-answers.jsonl",
    ]


def test_a_chain_with_training_is_an_arm_in_weights() -> None:
    def arm(*names: str) -> Any:
        method = MethodSpec("chain", {"steps": [{"name": n, "options": {}} for n in names]})
        cell = Cell("intents", ModelSpec("embedded"), method, None, Knowledge(), 0)
        return arms_of([make_result(cell, right(5, 10))], Prices())[0]

    assert (arm("gepa", "sft").kind, arm("gepa", "sft").name) == ("weights", "gepa > sft")
    assert arm("copro", "bootstrap").kind == "context"


@pytest.mark.parametrize(("name", "does"), [("gepa", True), ("copro", True), ("few_shot", False), ("sft", False)])
def test_only_what_searches_has_a_budget(name: str, does: bool) -> None:
    assert searches(name) is does


def test_a_budget_changes_the_key_of_a_search() -> None:
    facts: dict[str, Any] = {
        "split_sha256": "a",
        "program_sha256": "b",
        "model_sha256": "c",
        "retriever": "",
        "limit": None,
    }
    cell = make_cell("gepa")
    keys = {cell.key(**facts), cell.key(**facts, search={"budget": 1}), cell.key(**facts, search={"budget": 2})}
    assert len(keys) == 3
    assert cell.key(**facts) == cell.key(**facts, search=None)
