"""The classification head: a regression that is right, an arm like any other, a file that comes back."""

from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
import tiny
import torch
from fakes import fit_intents, metric
from scipy.optimize import minimize
from scipy.special import logsumexp

from crossover.eval.run.methods import method_of
from crossover.finetune.training.regression import labelled, logistic_regression
from crossover.models.errors import UserError
from crossover.models.heads import HeadEngine, pooled
from crossover.models.load import LoadedModel, local_lm
from crossover.models.prompt import engine_of
from crossover.programs.modules.multihop import Multihop
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget, Fitted


def fit(examples: list[dspy.Example], model: LoadedModel, folder: Path, **options: Any) -> Fitted:
    return fit_intents("head", options, examples, model.lm, Budget(workdir=folder, threads=4))


def test_the_regression_finds_the_least_loss_that_another_solver_finds() -> None:
    rng = np.random.default_rng(0)
    x, y, ridge = rng.normal(3, 2, (60, 4)), rng.integers(0, 3, 60), 0.7
    weight, bias = logistic_regression(torch.tensor(x), torch.tensor(y), 3, ridge)
    z = (x - x.mean(0)) / x.std(0)

    def loss(flat: Any) -> float:
        w, b = flat[:12].reshape(3, 4), flat[12:]
        logits = z @ w.T + b
        right = logits[np.arange(60), y] - logsumexp(logits, axis=1)
        return float(-right.mean() + ridge / 2 * (w**2).sum() / 60)

    best = minimize(loss, np.zeros(15), method="BFGS")
    ours = np.concatenate([(weight.double().numpy() * x.std(0)).ravel(), (bias.numpy() + weight.numpy() @ x.mean(0))])
    assert loss(ours) == pytest.approx(best.fun, abs=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_batch_has_the_states_of_its_rows_alone(pooling: str, spoken: LoadedModel) -> None:
    model = engine_of(spoken.lm).model
    rows = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [8]]
    with torch.no_grad():
        together = pooled(model, rows, pooling)
        alone = torch.cat([pooled(model, [r], pooling) for r in rows])
    assert (together - alone).abs().max() < 1e-4


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_frozen_base_with_a_head_learns(
    pooling: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    fitted = fit(intents, spoken, tmp_path, pooling=pooling)
    with dspy.context(lm=fitted.lm):
        rows = list(score_examples(fitted.program, intents[:20], metric))
        one = fitted.program(text="I lost my new card")
    assert mean_score(rows) > 0.9
    assert one.label == "card_lost"
    assert all(r.prompt_tokens > 3 and r.completion_tokens == 0 and r.calls == 1 for r in rows)
    assert fitted.notes["ridge"] in (0.01, 0.1, 1.0, 10.0, 100.0)


@pytest.mark.parametrize("base", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_head_trained_with_its_base_learns_and_leaves_the_base_alone(
    base: str, spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    before = tiny.logits(engine_of(spoken.lm), [5, 6, 7])
    fitted = fit(intents, spoken, tmp_path, base=base, epochs=8, batch_size=4, bf16=False, checkpoint_minutes=0)
    assert fitted.notes["loss"][-1] < 0.8 * fitted.notes["loss"][0]
    assert len(fitted.notes["val_scores"]) == 9
    with dspy.context(lm=fitted.lm):
        assert mean_score(list(score_examples(fitted.program, intents[:20], metric))) > 0.8
    assert torch.equal(tiny.logits(engine_of(spoken.lm), [5, 6, 7]), before)
    assert fitted.spent.train_tokens > 0


def test_a_saved_head_answers_as_before(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    fitted = fit(intents, spoken, tmp_path)
    assert fitted.artifact is not None
    assert sorted(f.name for f in fitted.artifact.iterdir()) == ["head.json", "head.safetensors"]
    again = HeadEngine.load(fitted.artifact, engine_of(spoken.lm))
    assert again.sha256 == engine_of(fitted.lm).sha256
    asked = intents[::3]
    answers = []
    for lm in (fitted.lm, local_lm("local/again", again, 16, 0.0)):
        with dspy.context(lm=lm):
            answers.append([fitted.program(text=e["text"]).label for e in asked])
    assert answers[0] == answers[1]
    again.engine.sha256, kept = "other", again.engine.sha256
    try:
        with pytest.raises(ValueError, match="was trained on a base of hash"):
            HeadEngine.load(fitted.artifact, again.engine)
    finally:
        again.engine.sha256 = kept


def test_the_chat_frame_reads_a_head_too(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        fitted = fit(intents, spoken, tmp_path, ridge=1.0)
        with dspy.context(lm=fitted.lm):
            rows = list(score_examples(fitted.program, intents[:20], metric))
    assert mean_score(rows) > 0.7
    assert not any(r.failure for r in rows)


def test_a_head_refuses_what_is_no_classification(spoken: LoadedModel, intents: list[dspy.Example]) -> None:
    with pytest.raises(UserError, match="head gives one label by one predictor"):
        labelled(Multihop(["question"], "answer"), intents, spoken.lm)
    with pytest.raises(UserError, match="head base 'warm' is not one of frozen, lora, full"):
        method_of("head", {"base": "warm"})
