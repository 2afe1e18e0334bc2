"""A judge behind HTTP that follows rules: what it says is stored, paid for, checked by people and corrected by them."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dspy
import numpy as np
import pytest
import tiny
from openai_server import Messages, Served, asked_fields, in_chat_frame, openai_server
from processes import UNTRACKED

from crossover.eval.analysis.cost import cost_of
from crossover.eval.analysis.human import item_of
from crossover.eval.analysis.ppi import corrected_mean, kappa
from crossover.eval.cli.main import main
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.read_judge import JUDGE_TOKENS
from crossover.eval.experiment.spec import Prices
from crossover.eval.run.calibration import likely_lines
from crossover.eval.run.forecast import forecast
from crossover.eval.run.loading import load_tasks
from crossover.eval.store.recorded import read_recorded
from crossover.models.load import load_model
from crossover.models.spec import ModelSpec
from crossover.programs.judge import Judge, Judged, reference_first
from crossover.programs.spec import CRITERIA
from crossover.programs.splits import fraction

FILE = """\
version: 1
name: answers
tasks:
  - name: answers
    program: ./program.py:Echo
    data: {{train: train.jsonl, val: val.jsonl, test: test.jsonl}}
    fields: {{question: input, answer: output}}
    metric: {{judge: {{model: {{name: openai/gpt-4o-mini, api_base: "{url}"}}, criteria: [accuracy, completeness]}}}}
models: [{model}]
methods: [zero_shot, few_shot: {{demos: 2}}]
"""
PROGRAM = '''
"""Answers by rule: with demonstrations all colours, without only the first."""
import dspy


class Echo(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question):
        words = question.split()
        return dspy.Prediction(answer=" ".join(words if self.predict.demos else words[:1]))
'''


def judge_by_words(messages: Messages) -> str:
    """Grade by rule: accurate when no word is foreign to the reference, complete by the share of its words."""
    shown = dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*)", messages[-1]["content"]))
    reference = shown[shown["reference_is"]].split()
    answer = shown["first_answer" if shown["reference_is"] == "second_answer" else "second_answer"].split()
    share = len(set(answer) & set(reference)) / len(set(reference))
    grades = {
        "accuracy": "yes" if set(answer) <= set(reference) else "no",
        "completeness": "yes" if share == 1 else "partly" if share >= 0.5 else "no",
    }
    return in_chat_frame(
        {f: grades.get(f, f"{share:.0%} of the words are there.") for f in asked_fields(messages) if f != "completed"}
    )


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with openai_server(lambda model, messages: judge_by_words(messages)) as served:
        yield served


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Path:
    """Return the folder of a finished run that the judge scored."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "answers.yaml").write_text(FILE.format(url=served.url, model=tiny.model(max_tokens=4)))
    for name, count in (("train", 8), ("val", 4), ("test", 60)):
        rows = []
        for i in range(count):
            text = f"{name}{i} red" if i % 2 else f"{name}{i} red blue green"
            rows.append({"id": f"{name}-{i}", "question": text, "answer": text})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    flags = ["--store", str(folder / "mlruns"), "--no-progress", *UNTRACKED]
    assert main(["run", str(folder / "answers.yaml"), *flags]) == 0
    return folder


def test_scores_grades_rationales_and_prompt_are_kept(folder: Path, served: Served) -> None:
    results = {r.cell.method.name: r for r in read_recorded(folder / "mlruns").results}
    means = {n: np.mean([row.score for row in r.rows]) for n, r in results.items()}
    # One word of two is half of it; one of four is less.
    assert means == {"zero_shot": pytest.approx((0.75 + 0.5) / 2), "few_shot": 1.0}
    row = next(r for r in results["zero_shot"].rows if r.id == "test-1")
    assert row.output["judgement"]["grades"] == {"accuracy": "yes", "completeness": "partly"}
    assert row.output["judgement"]["rationales"]["completeness"] == "50% of the words are there."
    assert row.completion_tokens == 0, "what the judge says is not the program's"
    notes = results["zero_shot"].notes["judge"]
    assert notes["model"] == "openai/gpt-4o-mini"
    assert len(notes["prompt_sha256"]) == 64
    assert notes["criteria"] == {c: CRITERIA[c] for c in ("accuracy", "completeness")}
    assert notes["calls"] == 60
    assert notes["usd"] > 0
    first = [r.output["judgement"]["reference_first"] for r in results["few_shot"].rows]
    assert 15 < sum(first) < 45


def test_the_judge_is_paid_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["report", str(folder / "answers.yaml"), "--store", str(folder / "mlruns"), "-o", str(folder / "r.json")]
    assert main(flags) == 0
    arm = json.loads((folder / "r.json").read_text())["arms"][0]
    result = read_recorded(folder / "mlruns").results[0]
    judge = result.notes["judge"]["usd"]
    assert arm["cost_usd"]["judge"] == pytest.approx(judge)
    # The machine's own time is less than the table's last digit.
    paid = cost_of(result, Prices()).paid
    assert paid is not None
    assert paid > judge
    # Judging is a cost of finding out, not of serving.
    assert arm["cost_usd"]["per_1k_requests"] < 1000 * judge / 60


def test_another_criterion_is_another_measurement(folder: Path) -> None:
    text = (folder / "answers.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("[accuracy, completeness]", "[accuracy, {tone: 'Is it polite?'}]"))
    keys = []
    for name in ("answers.yaml", "other.yaml"):
        experiment, _ = read_experiment(folder / name)
        assert experiment is not None
        keys.append(load_tasks(experiment.tasks)[0]["answers"].split_sha256())
    assert keys[0] != keys[1]


def human_grade(answer: str, reference: str, item: str) -> dict[str, str]:
    """Grade as a strict person: half is not enough, and one in eight answers is misread."""
    complete = "yes" if answer == reference else "no"
    if fraction(item) < 1 / 8:
        complete = "partly"
    return {"accuracy": "yes", "completeness": complete}


def test_people_grade_a_blind_sheet_and_correct_the_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, sheet = ["--store", str(folder / "mlruns")], folder / "sheet.csv"
    file = str(folder / "answers.yaml")
    assert main(["human-sheet", file, *store, "-n", "30", "-o", str(sheet)]) == 0
    lines = list(csv.DictReader(sheet.open(newline="")))
    assert 30 < len(lines) <= 60
    assert "shot" not in sheet.read_text()
    assert len({line["question"] for line in lines}) == 30
    for line in lines:
        line |= human_grade(line["answer"], line["reference"], line["item"])
    with sheet.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    assert main(["human-sheet", file, *store, "--import", str(sheet)]) == 0
    capsys.readouterr()
    assert main(["report", file, *store]) == 0
    assert "corrected by 30 human ratings" in capsys.readouterr().out
    assert main(["report", file, *store, "-o", str(folder / "h.json")]) == 0
    arms = {a["name"].partition(" ")[0]: a for a in json.loads((folder / "h.json").read_text())["arms"]}
    truth = {}
    for name, result in {r.cell.method.name: r for r in read_recorded(folder / "mlruns").results}.items():
        whole = {e["id"]: e["answer"] for e in map(json.loads, (folder / "test.jsonl").read_text().splitlines())}
        grades = [human_grade(r.output["answer"], whole[r.id], item_of(r.id, r.output["answer"])) for r in result.rows]
        worth = {"no": 0.0, "partly": 0.5, "yes": 1.0}
        truth[name] = np.mean([np.mean([worth[g] for g in grade.values()]) for grade in grades])
    for name, arm in arms.items():
        human = arm["human"]
        assert human["n"] == 30
        assert human["corrected"]["low"] <= truth[name] <= human["corrected"]["high"]
    assert arms["zero_shot"]["human"]["corrected"]["mean"] < arms["zero_shot"]["score"]["mean"] - 0.05
    assert arms["few_shot"]["human"]["kappa"]["accuracy"] is None


def test_a_grade_that_is_none_and_a_foreign_sheet_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (
        ("item,accuracy,completeness\nabc,maybe,\n", "'maybe'"),
        ("item,accuracy\n", ""),
        ("item,accuracy,completeness\nabc,yes,\n", "no answer of these runs"),
    ):
        (folder / "bad.csv").write_text(text)
        flags = [str(folder / "answers.yaml"), "--store", str(folder / "mlruns"), "--import", str(folder / "bad.csv")]
        assert main(["human-sheet", *flags]) == (2 if said else 0)
        assert said in capsys.readouterr().err


def test_a_judge_that_talks_is_a_failure_not_a_zero() -> None:
    with openai_server(lambda model, messages: "I like both.") as served:
        model = load_model(ModelSpec("openai/gpt-4o-mini", api_base=served.url, max_tokens=100))
        judge = Judge(
            {"accuracy": "Right?"}, ("question",), "answer", lambda: (model.lm, model.prompt_format, model.price)
        )
        gold = dspy.Example(id="1", question="2 + 2", answer="4").with_inputs("question")
        with pytest.raises(Exception, match="accuracy"):
            judge(gold, dspy.Prediction(answer="4"))
        assert (judge.spent.calls, served.answered) == (1, 1)


def test_a_list_is_one_right_answer_where_answers_are_lists() -> None:
    asked = list[str]()
    with openai_server(lambda model, messages: asked.append(str(messages)) or "no grade") as served:
        model = load_model(ModelSpec("openai/gpt-4o-mini", api_base=served.url, max_tokens=100))
        gold = dspy.Example(id="1", question="q", answer=["red", "blue"]).with_inputs("question")
        for is_list in (False, True):
            judge = Judge(
                {"accuracy": "Right?"},
                ("question",),
                "answer",
                lambda: (model.lm, model.prompt_format, model.price),
                is_list,
            )
            with pytest.raises(Exception, match="accuracy"):
                judge(gold, dspy.Prediction(answer=["red"]))
    assert ["red | or: blue" in text for text in asked] == [True, False]


def test_a_judged_score_is_a_number() -> None:
    assert Judged(0.5, {}) + 0.25 == 0.75
    assert {reference_first(str(i), "x") for i in range(20)} == {True, False}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("{judge: {criteria: [accuracy]}}", "has no `model`"),
        ("{judge: {model: openai/x, criteria: [acuracy]}}", "did you mean"),
        ("{judge: {model: openai/x, criteria: [accuracy, accuracy]}}", "names one twice"),
        ("{jugde: {model: openai/x}}", "jugde"),
    ],
)
def test_a_judge_that_cannot_be_read_is_a_fault(folder: Path, metric: str, said: str) -> None:
    text = re.sub(r"metric: .*", f"metric: {metric}", (folder / "answers.yaml").read_text())
    (folder / "fault.yaml").write_text(text)
    experiment, problems = read_experiment(folder / "fault.yaml")
    assert experiment is None
    assert any(said in str(p).lower() for p in problems), problems


def test_without_a_model_of_its_own_the_teacher_judges(folder: Path) -> None:
    text = re.sub(r"metric: .*", "metric: {judge: {criteria: [accuracy]}}", (folder / "answers.yaml").read_text())
    teacher = 'teacher: {name: openai/gpt-4o, api_base: "http://127.0.0.1:9/v1"}'
    (folder / "taught.yaml").write_text(f"{text}\n{teacher}\n")
    experiment, problems = read_experiment(folder / "taught.yaml")
    assert experiment is not None, problems
    assert experiment.tasks[0].judge is not None
    assert experiment.teacher is not None
    # A judge has to say why, which takes more room than a label.
    assert experiment.tasks[0].judge.model == replace(experiment.teacher, max_tokens=JUDGE_TOKENS)


@pytest.mark.slow
def test_corrected_means_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    for rated, agree in ((40, 0.9), (40, 0.6), (100, 0.8)):
        hits, widths, plain = [], [], []
        for _ in range(800):
            human = rng.choice([0.0, 0.5, 1.0], 400, p=[0.2, 0.2, 0.6])
            # A lenient judge: where it errs it says yes.
            judge = np.where(rng.random(400) < agree, human, 1.0)
            estimate = corrected_mean(human[:rated], judge[:rated], judge[rated:])
            hits.append(estimate.low <= 0.7 <= estimate.high)
            widths.append(estimate.high - estimate.low)
            plain.append(2 * 1.96 * human[:rated].std() / np.sqrt(rated))
        assert 0.93 <= np.mean(hits) <= 0.99, (rated, agree)
        if agree == 0.9:
            assert np.mean(widths) < 0.7 * np.mean(plain)


def test_a_judge_that_knows_nothing_costs_no_precision() -> None:
    rng = np.random.default_rng(4)
    human, judge = rng.random(60), rng.random(500)
    alone = corrected_mean(human, np.zeros(60), np.zeros(440))
    useless = corrected_mean(human, judge[:60], judge[60:])
    assert useless.high - useless.low < 1.1 * (alone.high - alone.low)


def test_agreement_by_chance_is_none() -> None:
    grades = ["no", "partly", "yes"]
    assert kappa([("no", "no"), ("yes", "yes"), ("partly", "partly")], grades) == pytest.approx(1)
    assert kappa([("yes", "yes")] * 9, grades) != kappa([("yes", "yes")] * 9, grades)
    near = kappa([("no", "partly"), ("yes", "yes"), ("partly", "partly"), ("no", "no")] * 5, grades)
    far = kappa([("no", "yes"), ("yes", "yes"), ("partly", "partly"), ("no", "no")] * 5, grades)
    assert near > far


def test_a_plan_counts_what_the_judge_is_asked(folder: Path, tmp_path: Path) -> None:
    experiment, _ = read_experiment(folder / "answers.yaml")
    assert experiment is not None
    *_, judge = forecast(experiment, store=tmp_path / "mlruns")[0]
    took = [r.notes["judge"] for r in read_recorded(folder / "mlruns").results]
    assert (judge.name, judge.seconds) == ("answers  openai/gpt-4o-mini  judge", None)
    assert judge.calls == sum(t["calls"] for t in took)
    assert judge.prompt_tokens >= sum(t["prompt_tokens"] for t in took)
    assert judge.usd is not None
    assert judge.usd >= sum(t["usd"] for t in took)
    assert likely_lines([judge], tmp_path, machine_hour_usd=1.0) == []
