"""Chains: prompt and weights one after another, as one arm with one budget."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
import tiny
from factories import make_cell, make_result, right
from fakes import fit_intents, metric

from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.ledger import Ledger, ledger_of
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Knowledge, Needs, Prices
from crossover.eval.run.audit import audit
from crossover.eval.run.chain import Chain
from crossover.eval.store.facts import flat_notes, split_notes
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel, tuned_lm
from crossover.models.local import LocalEngine
from crossover.models.prompt import engine_of
from crossover.models.usage import Usage
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, FitFacts, Fitted

SFT = {"name": "sft", "options": {"epochs": 1, "rank": 4}}
BOOTSTRAP = {"name": "bootstrap", "options": {"bootstrapped": 2, "labelled": 3}}
SEARCH = {"name": "bootstrap_search", "options": {"candidates": 1, "labelled": 3}}


def fit(
    steps: list[dict[str, Any]], examples: list[dspy.Example], model: LoadedModel, folder: Path, metric_calls: int = 30
) -> Fitted:
    budget = Budget(metric_calls=metric_calls, workdir=folder, answers=folder / "answers.jsonl", threads=4)
    return fit_intents("chain", {"steps": steps}, examples, model.lm, budget)


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
    assert audit(fitted, intents[20:], spoken) == []


@pytest.mark.slow
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
    assert audit(three, intents[20:], spoken) == []


@pytest.mark.slow
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
        tiny.logits(LocalEngine.load(folder), [5, 6, 7])
        for folder in (tiny.FOLDER, tmp_path / "1-sft" / "best", tmp_path / "2-sft" / "best")
    )
    assert (first - base).abs().max() > 0.1
    assert (last - first).abs().max() < 1e-3
    # What is kept stands alone: whole weights, which a later process attaches to the first model's name.
    assert fitted.artifact == tmp_path / "2-sft" / "best"
    assert tuned_lm(spoken.lm, fitted.artifact).model == fitted.lm.model
    assert tiny.logits(engine_of(fitted.lm), [5, 6, 7]).equal(last)


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


def chain_of(*names: str) -> MethodSpec:
    return MethodSpec("chain", {"steps": [{"name": n, "options": {}} for n in names]})


@pytest.mark.parametrize(
    ("method", "kind", "learns", "searches"),
    [
        (MethodSpec("zero_shot"), "in_context", False, False),
        (MethodSpec("few_shot"), "in_context", True, False),
        (MethodSpec("gepa"), "in_context", True, True),
        (MethodSpec("sft"), "in_weights", True, False),
        (chain_of("sft"), "in_weights", True, False),
        (chain_of("copro", "bootstrap"), "in_context", True, True),
        (chain_of("gepa", "sft"), "mixed", True, True),
        (chain_of("zero_shot", "sft"), "mixed", True, False),
        (chain_of("zero_shot", "zero_shot"), "in_context", False, False),
        (MethodSpec("a_method_that_is_gone"), "in_context", True, False),
    ],
    ids=lambda value: value.label if isinstance(value, MethodSpec) else str(value),
)
def test_a_method_says_what_kind_it_is(method: MethodSpec, kind: str, learns: bool, searches: bool) -> None:
    assert (method.kind, method.learns, method.searches) == (kind, learns, searches)
    assert method.trains == (kind != "in_context")


class Invoice:
    """A method that took so many seconds and dollars."""

    def __init__(self, seconds: float, usd: float | None, **facts: Any) -> None:
        self.spent, self.facts = Usage(calls=1, seconds=seconds, usd=usd), FitFacts(**facts)

    def fit(self, program: dspy.Module, *, lm: dspy.LM, **_: Any) -> Fitted:
        return Fitted(program, lm, self.spent, facts=self.facts)


GEPA = Invoice(1000, 3.0, teacher="openai/gpt-4o", teacher_calls=7, teacher_usd=2.0)
SFT_SEARCH = Invoice(2600, 0.5, teacher_usd=0.5, discarded_seconds=600, logit_change=0.3)
PRICES = Prices(machine_hour_usd=3.60, label_usd=0.10, tuned_hosting_usd_per_month=20.0)


def ledger(method: MethodSpec, facts: FitFacts, spent: Usage) -> Ledger:
    """Return the ledger of a cell that was fitted on 200 examples of train and 40 of val, and stored since."""
    found = make_result(Cell("t", tiny.SPEC, method, None, Knowledge(), 0), right(5, 10), fit=spent)
    stored = flat_notes(replace(facts, train_examples=200, val_examples=40), {})
    found.facts, found.notes = split_notes(json.loads(json.dumps(stored)))
    return ledger_of(found, PRICES)


def ledger_of_chain(*steps: tuple[str, Invoice]) -> Ledger:
    lm = dspy.LM("test/none")
    fitted = Chain(steps).fit(dspy.Predict("a -> b"), train=[], val=[], metric=metric, lm=lm, seed=0, budget=Budget())
    return ledger(chain_of(*(name for name, _ in steps)), fitted.facts, fitted.spent)


@pytest.mark.parametrize(("name", "step"), [("sft", SFT_SEARCH), ("gepa", GEPA)])
def test_a_chain_of_one_step_costs_what_the_step_costs(
    name: str, step: Invoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = ledger(MethodSpec(name), step.facts, step.spent)
    assert ledger_of_chain((name, step)) == alone
    assert alone.hosting_per_month == 20.0


def test_a_chain_is_charged_for_every_second_and_dollar_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = ledger_of_chain(("gepa", GEPA), ("sft", SFT_SEARCH))
    assert found == Ledger(
        labels=pytest.approx(24.0),
        optimizer=pytest.approx(1.0 + 1.0),
        teacher=pytest.approx(2.5),
        training=pytest.approx(2.0),
        discarded=pytest.approx(0.6),
        hosting_per_month=20.0,
    )
    assert found.fit == pytest.approx(24.0 + 3.5 + 3600 / 1000)
    unpriced = ledger_of_chain(("gepa", Invoice(1000, None, teacher_usd=None)), ("sft", SFT_SEARCH))
    assert (unpriced.optimizer, unpriced.training, unpriced.fit) == (None, None, None)


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ([("few_shot", 4), ("retrieved_demos", 200)], 200),
        ([("zero_shot", 0), ("few_shot", 4)], 4),
        ([("few_shot", 4), ("sft", None)], 240),
    ],
    ids=str,
)
def test_the_labels_of_a_chain_are_those_of_its_hungriest_step(
    steps: list[tuple[str, int | None]], labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = ledger_of_chain(*((name, Invoice(0, 0.0, labels_used=used)) for name, used in steps))
    assert found.labels == pytest.approx(0.10 * labels)


def test_a_chain_that_begins_with_zero_shot_stands_in_learning_curves() -> None:
    cells = [
        Cell("intents", tiny.SPEC, method, size, Knowledge(), 0)
        for method in (chain_of("zero_shot", "sft"), MethodSpec("few_shot"))
        for size in (16, 64, 256)
    ]
    results = [make_result(c, right(5 + n, 20)) for n, c in enumerate(cells)]
    comparison = compare(results, needs=Needs(), prices=Prices(), experiment="x")
    assert {c.name: c.kind for c in comparison.learning["intents"].curves} == {
        "zero_shot > sft": "weights",
        "few_shot": "context",
    }


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
