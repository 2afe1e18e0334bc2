"""What is said of a training that made the model worse at other tasks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import make_cell, make_result, right, task_with_corpus

from crossover.eval.analysis.compare import compare
from crossover.eval.experiment.spec import Experiment, Needs, Prices
from crossover.eval.run.loading import check_keys
from crossover.eval.run.passages import Indexes
from crossover.eval.run.retention import Retention, RetentionResult, retention_report
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.spec import ModelSpec
from crossover.programs.spec import JudgeSpec, TaskSpec

FINE = RetentionResult("stdlib_module", 0.50, 0.49, -0.06, 0.04, 0.20, 0.18, 100)


def test_a_loss_beyond_margin_and_chance_is_told() -> None:
    lost = replace(FINE, after=0.30, low=-0.29, high=-0.11)
    assert retention_report([FINE, lost])[1] == [
        "forgets stdlib_module: 0.500 before, 0.300 after [-0.290, -0.110], n 100"
    ]
    assert retention_report([replace(lost, high=0.01)])[1] == []
    assert retention_report([replace(FINE, after=0.47, high=-0.01)])[1] == []


def test_a_model_that_learns_no_more_in_context_is_told() -> None:
    deaf = replace(FINE, gain_after=-0.01)
    assert retention_report([deaf])[1] == [
        "learns no more in context on stdlib_module: 4 examples bought +0.200 before, -0.010 after"
    ]


def test_the_verdict_repeats_what_the_chosen_arm_forgets() -> None:
    tuned, plain = make_result(make_cell("sft"), right(280, 300)), make_result(make_cell("zero_shot"), right(90, 300))
    tuned.warnings = retention_report([replace(FINE, after=0.30, low=-0.29, high=-0.11)])[1]
    verdict = compare([plain, tuned], needs=Needs(), prices=Prices(), experiment="x").verdicts[0]
    assert verdict.choose == "sft"
    assert verdict.because.endswith("But it forgets stdlib_module: 0.500 before, 0.300 after [-0.290, -0.110], n 100.")


def test_a_judge_of_another_task_needs_its_key_before_anything_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = JudgeSpec(ModelSpec("openai/gpt-4o-mini"), (("accuracy", ""),))
    other = TaskSpec("other", "classify", {"test": "test.jsonl"}, judge=judge)
    models = (ModelSpec("openai/gpt-4o-mini", max_tokens=8),)
    assert [str(p) for p in check_keys(Experiment("x", (), models, retention=(other,)))] == [
        "error: openai/gpt-4o-mini: OPENAI_API_KEY is not set; export OPENAI_API_KEY=…"
    ]


def test_answers_that_failed_are_no_score_of_before(small: LoadedModel, tmp_path: Path) -> None:
    """A judge that is away would leave 0.0 in the store for good."""

    def away(*args: Any) -> float:
        raise ConnectionError("the judge is away")

    task = replace(task_with_corpus(), name="other", corpus=(), metric=away)
    retention = Retention({"other": task}, (TaskSpec("other", "answer"),), Indexes(tmp_path), 1)
    with pytest.raises(UserError, match=r"retention: other: \d of \d answers failed \(metric: .*the judge is away"):
        retention.of(small.lm, small, lambda line: None)
    assert not list(tmp_path.rglob("*.json"))
