"""A teacher behind HTTP: what it proposes is scored on val, kept when better, rejected when worse, and paid for."""

import random
import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import metric
from openai_server import Messages, Teacher, obedient_student, openai_server

from crossover.eval.run.methods import method_of
from crossover.models.load import LoadedModel, load_model
from crossover.models.plain import PlainAdapter
from crossover.models.spec import ModelSpec
from crossover.optimizers.common.search import Search
from crossover.optimizers.gepa import feedback
from crossover.programs.demos import with_demos
from crossover.programs.modules.classify import Classify
from crossover.programs.task import Budget, Fitted

GOOD = ("Answer with the first letter of the text.", "Answer with the last word of the text.")
BAD = ("Answer with the first letter of the text.", "First letter, please: the first letter.")
OPTIONS: dict[str, dict[str, Any]] = {
    "copro": {"breadth": 3, "depth": 1},
    "mipro": {"candidates": 3, "trials": 6, "bootstrapped": 0, "labelled": 0},
    "gepa": {},
    "infer_rules": {"candidates": 2, "bootstrapped": 1, "labelled": 1},
}


def examples() -> list[dspy.Example]:
    words = ["red", "oak", "sun", "ice", "fog", "elm", "sky", "tin"]
    draw = random.Random(0)
    texts = list(dict.fromkeys(" ".join(draw.sample(words, 3)) for _ in range(40)))[:24]
    return [dspy.Example(id=str(n), text=t, label=t.split()[-1]).with_inputs("text") for n, t in enumerate(texts)]


def remote(name: str, url: str, **options: Any) -> LoadedModel:
    return load_model(ModelSpec(name, api_base=url, timeout=5, **options))


def fit(
    method: str,
    ideas: tuple[str, ...],
    folder: Path,
    usd: float | None = None,
    told: list[str] | None = None,
    program: dspy.Module | None = None,
) -> Fitted:
    """Fit with a teacher behind HTTP; `told` takes what it is asked."""
    teacher = Teacher(*ideas)

    def answer(model: str, messages: Messages) -> str:
        return teacher(messages) if model == "gpt-4o" else obedient_student(messages)

    with openai_server(answer) as served:
        student, capable = remote("openai/gpt-4o-mini", served.url), remote("openai/gpt-4o", served.url, max_tokens=500)
        with dspy.context(lm=student.lm, adapter=PlainAdapter()):
            fitted = method_of(method, OPTIONS[method]).fit(
                program or Classify(["text"], "label", []),
                train=examples()[:12],
                val=examples()[12:],
                metric=metric,
                lm=student.lm,
                seed=0,
                budget=Budget(metric_calls=120, usd=usd, workdir=folder, threads=4, teacher=capable.lm),
            )
    if told is not None:
        told += [m["content"] for b in served.bodies if b["model"] == "gpt-4o" for m in b["messages"]]
    return fitted


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_a_better_instruction_is_found_and_kept(method: str, tmp_path: Path) -> None:
    fitted = fit(method, GOOD, tmp_path)
    assert "last word" in fitted.program.predictors()[0].signature.instructions
    assert fitted.notes["val_start"] == 0
    assert fitted.notes["val_best"] == 1
    assert fitted.facts.teacher_calls > 0
    assert 0 < (fitted.facts.teacher_usd or 0) < (fitted.spent.usd or 0)
    assert fitted.spent.metric_calls <= 120


def test_the_rules_of_the_best_candidate_stay_and_the_given_program_keeps_its_own(tmp_path: Path) -> None:
    given = Classify(["text"], "label", [])
    before = given.predict.signature.instructions
    fitted = fit("infer_rules", tuple(reversed(GOOD)), tmp_path, program=given)
    assert fitted.notes["val_scores"] == [0.0, 1.0, 0.0]
    assert "last word" in fitted.program.predictors()[0].signature.instructions
    assert given.predict.signature.instructions == before


@pytest.mark.parametrize("method", ["copro", "gepa", "mipro"])
def test_a_worse_instruction_is_rejected_and_the_table_is_told(method: str, tmp_path: Path) -> None:
    fitted = fit(method, BAD, tmp_path)
    assert "letter" not in fitted.program.predictors()[0].signature.instructions
    assert any("none of" in w for w in fitted.warnings)


def test_the_dollars_end_a_search_that_charges(tmp_path: Path) -> None:
    fitted = fit("copro", GOOD, tmp_path, usd=1e-3)
    assert fitted.warnings[0] == "the budget ended the search: $0.001"
    assert 1e-3 <= (fitted.spent.usd or 0) < 3e-3


def test_gepa_tells_its_teacher_why_an_answer_was_wrong(tmp_path: Path) -> None:
    told: list[str] = []
    fit("gepa", GOOD, tmp_path, told=told)
    said = re.findall(r"Wrong \(score 0\)\. The label was '(\w+)', but the right label is '(\w+)'", " ".join(told))
    assert said
    assert all(wrong != right for wrong, right in said)


def test_feedback_names_every_right_answer_and_how_far_an_answer_is() -> None:
    gold = dspy.Example(question="q", answer=["oak", "an oak"]).with_inputs("question")
    pred = dspy.Prediction(answer="elm", reasoning="because")
    assert feedback(gold, pred, 1.0) == "Right."
    assert (
        feedback(gold, pred, 0.0) == "Wrong (score 0). The answer was 'elm', but the right answer is 'oak' or 'an oak'."
    )
    assert feedback(gold, pred, 0.5).startswith("Only partly right (score 0.5). The answer was 'elm'")
    listed = dspy.Prediction(answer=["oak"])
    assert "right answer is ['oak', 'an oak']." in feedback(gold, listed, 0.5, {"answer"})


def test_a_search_shows_whole_lists_and_one_of_several_right_answers() -> None:
    class Tags(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("text -> tags: list[str], label")

    train = [dspy.Example(id="1", text="t", tags=["a", "b"], label=["x", "y"]).with_inputs("text")]
    with openai_server(lambda model, messages: "") as served:
        lm = remote("openai/gpt-4o-mini", served.url).lm
        search = Search(Tags(), val=train, metric=metric, lm=lm, seed=0, budget=Budget())
    (shown,) = search.examples(train)
    assert (shown.tags, shown.label) == (["a", "b"], "x")


def test_zero_shot_mipro_holds_no_demonstration(tmp_path: Path) -> None:
    shown = with_demos(Classify(["text"], "label", []), examples()[:3])
    fitted = fit("mipro", GOOD, tmp_path, program=shown)
    assert fitted.facts.zero_shot
    assert [p.demos for p in fitted.program.predictors()] == [[]]
    assert "last word" in fitted.program.predictors()[0].signature.instructions
    assert len(shown.predictors()[0].demos) == 3


def test_a_zero_shot_search_leaves_out_what_shows_a_demonstration(tmp_path: Path) -> None:
    program, nobody = Classify(["text"], "label", []), remote("openai/gpt-4o-mini", "http://127.0.0.1:9/v1").lm
    better = program.deepcopy()
    better.predictors()[0].signature = better.predictors()[0].signature.with_instructions("Better.")
    search = Search(program, val=examples(), metric=metric, lm=nobody, seed=0, budget=Budget(workdir=tmp_path))
    search.recorder.scored = [(program, 0.2), (better, 0.4), (with_demos(better, examples()[:2]), 0.9)]
    fitted = search.fitted(zero_shot=True)
    assert fitted.program.predictors()[0].signature.instructions == "Better."
    assert [p.demos for p in fitted.program.predictors()] == [[]]
    assert (fitted.notes["val_start"], fitted.notes["val_best"]) == (0.2, 0.4)
