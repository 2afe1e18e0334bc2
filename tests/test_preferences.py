"""DPO on the model's own mistakes, and DSPy's optimizers of weights on a local model."""

from pathlib import Path

import dspy
import pytest
import tiny
from fakes import fit_intents, metric

from crossover.eval.run.methods import method_of
from crossover.finetune.training.context import FitContext
from crossover.finetune.training.preferences import preferences
from crossover.finetune.training.provider import trainable
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.models.prompt import engine_of
from crossover.models.weights import folder_sha256
from crossover.programs.demos import with_demos
from crossover.programs.modules.classify import Classify
from crossover.programs.score import mean_score, score_examples
from crossover.programs.task import Budget


def test_a_pair_prefers_what_is_right(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    program, budget = Classify(["text"], "label", []), Budget(workdir=tmp_path, threads=4)
    pairs = preferences(intents, FitContext(program, [], metric, spoken.lm, 0, budget), attempts=1)
    labels = {f"text: {e['text']}": e["label"] for e in intents}
    assert len(pairs.rows) + pairs.never_wrong == len(intents)
    for row in pairs.rows:
        assert row["chosen"][0]["content"] == labels[row["prompt"][-1]["content"]] != row["rejected"][0]["content"]
    with pytest.raises(UserError, match="dpo has no pairs of a right and a wrong answer to 3 train examples"):
        preferences(intents[:3], FitContext(program, [], lambda *a, **k: 1.0, spoken.lm, 0, budget), attempts=1)


def test_the_pairs_follow_the_seed_and_not_what_was_asked_before(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program, budget = Classify(["text"], "label", []), Budget(workdir=tmp_path, threads=4)
    warm = spoken.lm.copy(temperature=1.0)
    one, same, other = (
        preferences(intents, FitContext(program, [], metric, warm, seed, budget), attempts=2).rows for seed in (0, 0, 1)
    )
    assert one == same != other


def test_answers_that_were_paid_for_are_not_asked_for_again(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    budget = Budget(workdir=tmp_path, answers=tmp_path / "answers.jsonl", threads=4)
    context = FitContext(Classify(["text"], "label", []), [], metric, spoken.lm, 0, budget)
    first = preferences(intents, context, attempts=2)
    lines = (tmp_path / "answers.jsonl").read_text()
    again = preferences(intents, context, attempts=2)
    assert len(lines.splitlines()) == 2 * len(intents)
    assert (tmp_path / "answers.jsonl").read_text() == lines
    assert again.rows == first.rows
    assert again.spent.calls == first.spent.calls


@pytest.mark.slow
def test_dpo_widens_the_margin(spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path) -> None:
    options = {"epochs": 4, "attempts": 1, "rank": 4, "bf16": False}
    fitted = fit_intents("dpo", options, intents, spoken.lm, Budget(workdir=tmp_path, threads=4))
    assert fitted.notes["margins"][-1] > fitted.notes["margins"][0] + 0.1
    assert fitted.notes["loss"][-1] < fitted.notes["loss"][0]
    assert fitted.facts.logit_change > 1e-3
    with pytest.raises(UserError, match=r"dpo starts from whole weights, and .*; write both as one `chain`"):
        method_of("dpo", {}).fit(
            Classify(["text"], "label", []),
            train=intents,
            val=intents,
            metric=metric,
            lm=fitted.lm,
            seed=0,
            budget=Budget(workdir=tmp_path),
        )


def test_dspys_bootstrap_finetune_trains_a_local_model(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    # With a few demonstrations the model gives some right answers to learn from.
    student = with_demos(Classify(["text"], "label", []), intents[20:])
    student.set_lm(trainable(spoken.lm, tmp_path))
    before = tiny.logits(engine_of(spoken.lm), [5, 6, 7])
    optimizer = dspy.BootstrapFinetune(metric=metric, train_kwargs={"epochs": 1, "rank": 4}, num_threads=2)
    tuned = optimizer.compile(student, trainset=intents[:20])
    lm = tuned.get_lm()
    assert lm.model.startswith(f"{spoken.lm.model}+")
    assert (tiny.logits(engine_of(lm), [5, 6, 7], lm.model.partition("+")[2]) - before).abs().max() > 1e-3
    assert tiny.logits(engine_of(spoken.lm), [5, 6, 7]).equal(before)
    assert tuned(text="I lost my new card").label.strip()


@pytest.mark.slow
def test_dspys_better_together_trains_a_local_model(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    student = Classify(["text"], "label", [])
    student.set_lm(trainable(spoken.lm, tmp_path))
    optimizer = dspy.BetterTogether(
        metric=metric,
        p=dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=4),
        w=dspy.BootstrapFinetune(metric=metric, train_kwargs={"epochs": 1, "rank": 4}, num_threads=2),
    )
    tuned = optimizer.compile(student, trainset=intents[:20], valset=intents[20:], strategy="p -> w")
    # DSPy swallows what fails in a step, and says so here alone.
    assert not tuned.flag_compilation_error_occurred
    assert {c["strategy"] for c in tuned.candidate_programs} == {"", "p", "p -> w"}
    weights = next(c["program"] for c in tuned.candidate_programs if c["strategy"] == "p -> w").get_lm()
    assert weights.model == f"{spoken.lm.model}+{folder_sha256(next((tmp_path / 'training-1').glob('best-*')))[:12]}"
    scores = [mean_score(list(score_examples(c["program"], intents[20:], metric))) for c in tuned.candidate_programs]
    assert [100 * s for s in scores] == [c["score"] for c in tuned.candidate_programs]
