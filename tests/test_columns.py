"""Any header works: columns get field names, the user's names are shown, and what is left out is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from crossover.eval.experiment.read import read_partly
from crossover.eval.experiment.spec import Experiment
from crossover.programs.data import load_and_check
from crossover.programs.fields import RESERVED, columns_of
from crossover.programs.names import field_names
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task

SPLITS = ("train", "val", "test")


def load(folder: Path, row: dict[str, Any], **settings: Any) -> tuple[Task | None, list[str]]:
    """Load a task whose rows are `row`, each text with its split and number before it."""
    for split in SPLITS:
        rows = [{k: f"{split} {i} {v}" if k in list(row)[:1] else v for k, v in row.items()} for i in range(60)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"program": "classify", "data": {s: f"{s}.jsonl" for s in SPLITS}} | settings
    task, problems = load_and_check(TaskSpec("mail", **settings), base=folder)
    return task, [str(p) for p in problems]


def test_names_that_are_no_fields_get_one() -> None:
    columns = ["text", "Queue (final)", "0", "config", "id", "class", "Größe", "queue_final", "model_x", "a b", "a-b"]
    assert list(field_names(columns, RESERVED, own_program=False).values()) == [
        *("text", "queue_final_value", "column_0", "config_value", "id_value", "column_class", "Größe"),
        *("queue_final", "x", "a_b", "a_b_value"),
    ]


def test_a_program_of_ones_own_keeps_the_names_it_expects() -> None:
    assert field_names(["config", "labels"], RESERVED, own_program=True) == {"config": "config", "labels": "labels"}


def test_a_task_names_columns_by_their_own_names_and_says_which_it_leaves_out(tmp_path: Path) -> None:
    row = {"Ticket text": "lost", "Queue (final)": "Account ", "Created at": "2026"}
    task, problems = load(tmp_path, row, input=["Ticket text"], output={"Queue (final)": ""})
    assert task is not None
    assert task.test[1].toDict() == {"id": task.test[1].id, "ticket_text": "test 1 lost", "queue_final": "Account"}
    assert task.columns == {"ticket_text": "Ticket text", "queue_final": "Queue (final)"}
    assert problems[:2] == [
        "note: mail: not used: 'Created at'; name what the model may read under `input`",
        "note: mail: 180 labels have space around them, such as 'Account '; they count as 'Account'",
    ]


@pytest.mark.parametrize("column", ["config", "lm", "signature", "demos", "0", "class", "schema", "base"])
def test_a_column_of_any_name_can_be_asked(tmp_path: Path, column: str) -> None:
    task, _ = load(tmp_path, {column: "lost", "label": "x"}, fields={column: "input", "label": "output"})
    assert task is not None
    (predictor,) = task.program().predictors()
    assert list(predictor.signature.input_fields) == list(task.inputs)


def test_an_optional_second_input_may_be_empty(tmp_path: Path) -> None:
    task, _ = load(tmp_path, {"instruction": "name it", "input": "", "output": "x"}, input=["instruction", "input"])
    assert task is None  # no output is named
    settings = {"input": ["instruction", "input"], "output": {"output": ""}}
    task, _ = load(tmp_path, {"instruction": "name it", "input": "", "output": "x"}, **settings)
    assert task is not None
    assert task.test[0].input == ""


def test_conversations_are_questions_and_answers(tmp_path: Path) -> None:
    def turns(split: str, i: int) -> list[dict[str, str]]:
        system = {"role": "system", "content": "Sort mail."}
        return [system, {"role": "user", "content": f"{split} {i}"}, {"role": "assistant", "content": "delivery"}]

    for split in SPLITS:
        rows = [{"messages": turns(split, i)} for i in range(60)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task, _ = load_and_check(TaskSpec("mail", "classify", {s: f"{s}.jsonl" for s in SPLITS}), base=tmp_path)
    assert task is not None
    assert (task.test[3].question, task.test[3].answer) == ("test 3", "delivery")


def test_answers_of_squad_and_labels_that_pandas_made_floats(tmp_path: Path) -> None:
    squad = {"text": ["the dam", "dam"], "answer_start": [3, 7]}
    task, _ = load(tmp_path, {"question": "what", "answers": squad}, program="translate", metric="exact_match")
    assert task is not None
    assert task.test[0].answers == ["the dam", "dam"]
    task, _ = load(tmp_path, {"text": "t", "label": 3.0})
    assert task is not None
    assert task.test[0].label == "3"


def test_a_list_in_a_cell_holds_right_answers_of_which_any_is_right(tmp_path: Path) -> None:
    row = {"question": "how many?", "answer": '["28", "28 days"]'}
    task, problems = load(tmp_path, row, program="answer")
    assert (task is not None, problems) == (True, [])
    assert task.test[0]["answer"] == ["28", "28 days"]
    _, problems = load(
        tmp_path, {"text": "refund, now", "Label (final)": '["refund", "urgent"]'}, output={"Label (final)": ""}
    )
    assert problems[0].startswith(
        "error: train.jsonl:1: 'Label (final)' holds 2 labels, and classify gives one; use `program: record` with "
        "`output: {Label (final): list}`"
    )


def test_gold_passages_in_a_cell_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": 100, "text": "a"}\n{"id": "b", "text": "b"}\n')
    row = {"question": "q", "answer": "a", "gold": "[100, 'b']"}
    task, _ = load(tmp_path, row, program="rag", corpus="corpus.jsonl", fields=roles("question", "answer", "gold"))
    assert task is not None
    assert task.test[0].gold == ["100", "b"]


def roles(question: str, answer: str, gold: str) -> dict[str, str]:
    return {question: "input", answer: "output", gold: "gold"}


def test_the_outputs_of_a_record_may_be_empty() -> None:
    columns = columns_of(TaskSpec("t", "record", input=["Title"], output={"Brand": "", "Size": "number"}), ["Title"])
    assert columns.outputs == {"Brand": "Brand", "Size": "Size"}


def test_an_experiment_file_names_columns_and_dates(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "e.yaml").write_text(
        "version: 1\nname: 2024-05-01\ntasks:\n"
        "  - {name: 2024-05-02, program: classify, data: {train: a.jsonl, test: a.jsonl},\n"
        "     input: Ticket text, output: {Queue (final): text}}\n"
        "models: [smollm2]\nmethods: [zero_shot]\n"
    )
    experiment, problems = read_partly(tmp_path / "e.yaml")
    assert problems == []
    task = experiment.tasks[0]
    assert (experiment.name, task.name, task.input, task.output) == (
        *("2024-05-01", "2024-05-02"),
        *(("Ticket text",), {"Queue (final)": "text"}),
    )


def one_file(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Task, list[str]]:
    (folder / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task, problems = load_and_check(TaskSpec("mail", "classify", {"file": "all.jsonl"}, **settings), base=folder)
    assert task is not None, problems
    return task, [str(p) for p in problems]


def mail(n: int) -> list[dict[str, Any]]:
    labels = ("rare", "rare", *["often"] * 18)
    return [{"text": f"mail {i // 2}", "label": labels[i % 20], "who": f"c{i // 2 % 31}"} for i in range(n)]


def test_one_file_is_split_with_duplicates_together_and_labels_in_proportion(tmp_path: Path) -> None:
    task, problems = one_file(tmp_path, mail(400))
    texts = {name: {e.text for e in split} for name, split in task.splits().items()}
    assert not texts["train"] & texts["test"] | texts["train"] & texts["val"] | texts["val"] & texts["test"]
    assert [(len(s), sum(e.label == "rare" for e in s)) for s in task.splits().values()] == [
        *((280, 28), (40, 4), (80, 8)),
    ]
    assert "note: mail: split by hash: train 280, val 40, test 80; `split: {val: …, test: …}` sets it" in problems


def test_a_split_depends_on_no_order_and_keeps_clusters_on_one_side(tmp_path: Path) -> None:
    task, _ = one_file(tmp_path, mail(400), cluster="who", split={"val": 0.05})
    again, _ = one_file(tmp_path, mail(400)[::-1], cluster="who", split={"val": 0.05})
    assert [{e.id for e in s} for s in task.splits().values()] == [{e.id for e in s} for s in again.splits().values()]
    sides = [{e.cluster for e in s} for s in task.splits().values()]
    assert all(a is b or not a & b for a in sides for b in sides)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a.jsonl", ({"file": "a.jsonl"}, {})),
        ("{file: a.jsonl, split: {test: 0.5}}", ({"file": "a.jsonl"}, {"test": 0.5})),
        ("a.jsonl, split: {val: 0.2, test: 0.3}", ({"file": "a.jsonl"}, {"val": 0.2, "test": 0.3})),
        ("hf:org/name", ({"hf": "org/name"}, {})),
    ],
)
def test_short_forms_of_data(tmp_path: Path, data: str, expected: tuple[dict[str, str], dict[str, float]]) -> None:
    experiment, problems = read_task(tmp_path, data)
    assert problems == []
    (task,) = experiment.tasks
    assert ({k: Path(v).name if k == "file" else v for k, v in task.data.items()}, task.split) == expected


def test_shares_that_leave_nothing_are_faults(tmp_path: Path) -> None:
    for split in ("{val: 0.5, test: 0.5}", "{test: 0}"):
        _, problems = read_task(tmp_path, f"a.jsonl, split: {split}")
        assert problems[0].startswith("error: e.yaml:3: `split` leaves a split without rows; ")


def read_task(folder: Path, data: str) -> tuple[Experiment, list[str]]:
    (folder / "a.jsonl").write_text("")
    tasks = f"tasks:\n  - {{name: t, program: classify, data: {data}}}\n"
    (folder / "e.yaml").write_text(f"version: 1\n{tasks}models: [smollm2]\nmethods: [zero_shot]\n")
    experiment, problems = read_partly(folder / "e.yaml")
    return experiment, [str(p) for p in problems]
