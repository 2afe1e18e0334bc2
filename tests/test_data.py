import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from crossover.models.answer_types import described, labels_of
from crossover.models.errors import UserError
from crossover.programs.data import load_and_check, load_task
from crossover.programs.spec import TaskSpec

LABELS = ("card_arrival", "age_limit", "exchange_rate")


def rows(split: str, n: int = 60) -> list[dict[str, Any]]:
    return [{"id": f"{split}{i}", "text": f"{split} question, number {i}", "label": LABELS[i % 3]} for i in range(n)]


def questions(split: str, n: int = 60) -> list[dict[str, Any]]:
    return [
        {"id": f"{split}{i}", "question": f"{split} {i}?", "answers": [f"the {i}", str(i)], "gold_passage_ids": ["p1"]}
        for i in range(n)
    ]


def write(path: Path, data: list[Any]) -> None:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in data))


def spec(folder: Path, make=rows, **changes: Any) -> TaskSpec:
    for split in ("train", "val", "test"):
        if not (folder / f"{split}.jsonl").exists():
            write(folder / f"{split}.jsonl", make(split))
    data = {s: f"{s}.jsonl" for s in ("train", "val", "test")}
    return replace(TaskSpec("intents", program="classify", data=data), **changes)


def rag(folder: Path, **changes: Any) -> TaskSpec:
    if not (folder / "corpus.jsonl").exists():
        write(folder / "corpus.jsonl", [{"id": "p1", "text": "Numbers.", "title": "On"}, {"id": "p2", "text": "No."}])
    return replace(spec(folder, questions, program="rag", corpus="corpus.jsonl"), **changes)


def problems(source: TaskSpec, base: Path) -> list[str]:
    return [str(p) for p in load_and_check(source, base=base)[1]]


def test_columns_are_inferred_and_the_task_is_complete(tmp_path):
    task, found = load_and_check(spec(tmp_path), base=tmp_path)
    assert found == []
    assert (task.inputs, task.outputs, task.metric_name) == (("text",), ("label",), "label_accuracy")
    assert task.test[0].toDict() == {"id": "test0", "text": "test question, number 0", "label": "card_arrival"}
    assert task.where["test1"] == "test.jsonl:2"
    desc = task.program().predict.signature.output_fields["label"].json_schema_extra["desc"]
    assert desc == "one of: age_limit, card_arrival, exchange_rate"


def test_labels_with_commas_are_listed_so_that_each_reads_as_one(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.jsonl", [r | {"label": r["label"].replace("_", ", ")} for r in rows(split)])
    task, _ = load_and_check(spec(tmp_path), base=tmp_path)
    field = task.program().predict.signature.output_fields["label"]
    listed = "one of: age, limit | card, arrival | exchange, rate"
    assert (field.json_schema_extra["desc"], described("label", field)) == (listed, listed)
    assert labels_of(field) == ["age, limit", "card, arrival", "exchange, rate"]


def test_rag_task_has_gold_passages_and_any_answer_is_right(tmp_path):
    task, found = load_and_check(rag(tmp_path, cluster="question"), base=tmp_path)
    assert found == []
    assert (task.inputs, task.outputs) == (("question",), ("answer",))
    assert (task.test[3].answer, task.test[3].gold, task.test[3].cluster) == (["the 3", "3"], ["p1"], "test 3?")
    assert task.corpus[0].render() == "On: Numbers."


def test_csv_parquet_and_jsonl_load_the_same(tmp_path):
    for split in ("train", "val", "test"):
        data = rows(split)
        write(tmp_path / f"{split}.jsonl", data)
        parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / f"{split}.parquet")
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "label"])
            writer.writeheader()
            writer.writerows(data)
    hashes = {
        load_task(
            spec(tmp_path, data={s: f"{s}.{kind}" for s in ("train", "val", "test")}), base=tmp_path
        ).split_sha256()
        for kind in ("jsonl", "csv", "parquet")
    }
    assert len(hashes) == 1


def test_hugging_face_datasets_load_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = spec(tmp_path)
    (tmp_path / "hub").mkdir()
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        (tmp_path / "hub" / f"{name}.jsonl").write_text((tmp_path / f"{split}.jsonl").read_text())
    whole = load_task(replace(source, data={"hf": str(tmp_path / "hub")}), base=tmp_path)
    assert whole.split_sha256() == load_task(source, base=tmp_path).split_sha256()
    assert whole.where["val0"] == f"{tmp_path / 'hub'}[validation]:1"


def test_a_hugging_face_dataset_of_train_alone_is_split_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = spec(tmp_path)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    task = load_task(replace(source, data={"hf": str(tmp_path / "hub")}), base=tmp_path)
    assert sum(map(len, task.splits().values())) == 60
    assert all(task.splits().values())


def test_val_is_cut_from_train_by_whole_clusters(tmp_path):
    clustered = [{**row, "writer": f"w{n // 3}"} for n, row in enumerate(rows("train"))]
    write(tmp_path / "train.jsonl", clustered)
    write(tmp_path / "test.jsonl", [{**row, "writer": row["id"]} for row in rows("test")])
    data = {"train": "train.jsonl", "test": "test.jsonl"}
    task = load_task(TaskSpec("intents", program="classify", data=data, cluster="writer"), base=tmp_path)
    assert task.val
    assert {e["cluster"] for e in task.val}.isdisjoint(e["cluster"] for e in task.train)


def test_val_keeps_equal_questions_of_different_clusters_together(tmp_path):
    """A question that two writers asked ties both of them to one split."""
    asked = [{**row, "text": f"question {n % 20}", "writer": f"w{n}"} for n, row in enumerate(rows("train"))]
    write(tmp_path / "train.jsonl", [{**row, "label": "a"} for row in asked])
    write(tmp_path / "test.jsonl", [{**row, "writer": row["id"]} for row in rows("test")])
    data = {"train": "train.jsonl", "test": "test.jsonl"}
    task = load_task(TaskSpec("intents", program="classify", data=data, cluster="writer"), base=tmp_path)
    assert task.val
    assert {e["text"] for e in task.val}.isdisjoint(e["text"] for e in task.train)


def test_hugging_face_class_numbers_become_names(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = spec(tmp_path)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(60)], "label": [0, 1] * 30}, features=features)
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "test.parquet")
    one = {
        **source.data,
        "test": {"hf": str(tmp_path / "hub")},
        "train": {"hf": str(tmp_path / "hub"), "split": "test"},
    }
    found = problems(replace(source, data=one), tmp_path)
    assert found[0].startswith(f"error: {tmp_path / 'hub'}[test]:1: this test question also stands in train")
    assert not [f for f in found if "never stands in train" in f]


def test_hidden_labels_of_a_hugging_face_split_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}, features=features)
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "test.parquet")
    source = spec(tmp_path)
    found = problems(replace(source, data={**source.data, "test": {"hf": str(tmp_path / "hub")}}), tmp_path)
    assert found[0] == (
        f"error: {tmp_path / 'hub'}[test]: the values of 'label' are hidden: each is -1; "
        "use a split that has them, such as `test: {hf: …, split: validation}`"
    )


def test_val_is_cut_from_train_when_there_is_none(tmp_path):
    source = spec(tmp_path, data={"train": "train.jsonl", "test": "test.jsonl"})
    write(tmp_path / "train.jsonl", [*rows("train", 90), *(r | {"id": r["id"] + "b"} for r in rows("train", 90))])
    task, found = load_and_check(source, base=tmp_path)
    assert found == []
    assert (len(task.train), len(task.val)) == (162, 18)


def test_ids_made_from_content_do_not_depend_on_the_place(tmp_path):
    bare = [{k: v for k, v in r.items() if k != "id"} for r in rows("test")]
    write(tmp_path / "test.jsonl", [bare[0], *bare])
    source = spec(tmp_path, fields={"text": "input", "label": "output"})
    for split in ("train", "val"):
        write(tmp_path / f"{split}.jsonl", [{k: v for k, v in r.items() if k != "id"} for r in rows(split)])
    ids = [e.id for e in load_task(source, base=tmp_path).test]
    assert ids[1] == f"{ids[0]}-2"
    write(tmp_path / "test.jsonl", bare[::-1])
    assert [e.id for e in load_task(source, base=tmp_path).test] == [*ids[:1:-1], ids[0]]


def test_several_inputs_and_a_users_program_and_metric(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dspy\n\nclass P(dspy.Module):\n    pass\n\ndef same(gold, pred):\n    return gold.label == pred.label\n"
    )
    fields = {"text": "input", "id": "input", "label": "output"}
    source = spec(tmp_path, program="./mine.py:P", metric="./mine.py:same", fields={**fields, "id": "ignored"})
    task = load_task(source, base=tmp_path)
    assert task.metric_name.startswith("mine.py:same@")
    assert type(task.program()).__name__ == "P"


def test_all_faults_of_all_files_come_at_once(tmp_path):
    write(tmp_path / "train.jsonl", [*rows("train"), '{"id": "x", "text": oops}', "[1]"])
    write(tmp_path / "test.jsonl", [*rows("test", 59), {"id": "train0", "text": " ", "label": "age_limit"}])
    source = spec(tmp_path, data={"train": "train.jsonl", "val": "gone.jsonl", "test": "test.jsonl"}, metric="f1")
    assert problems(source, tmp_path) == [
        "error: train.jsonl:61: not valid JSON: Expecting value at column 21; fix or delete the line",
        "error: train.jsonl:62: a list, not an object; write one {…} a line",
        "error: gone.jsonl: data.val: no such file; check the path, which starts at the experiment file",
        "error: test.jsonl:60: 'text' is empty; fill it or delete the row",
        "error: intents: unknown metric 'f1'; did you mean 'token_f1'? "
        "choose from exact_match, token_f1, accuracy, label_accuracy, rouge_l, bleu, chrf, ter, numeric_match, "
        "entity_f1, field_accuracy, exact_record, attribute_f1 or ./file.py:function",
    ]


def test_load_task_raises_the_first_fault_and_counts_the_others(tmp_path):
    write(tmp_path / "train.jsonl", ["oops", *rows("train"), "oops"])
    with pytest.raises(UserError) as error:
        load_task(spec(tmp_path), base=tmp_path)
    assert str(error.value) == (
        "train.jsonl:1: not valid JSON: Expecting value at column 1; fix or delete the line "
        "(and 1 more; `crossover validate` lists all)"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_test_question_elsewhere_is_an_error(tmp_path, split):
    write(
        tmp_path / f"{split}.jsonl", [*rows(split), rows("test")[6] | {"id": "x", "text": "TEST  question number 6!"}]
    )
    assert problems(spec(tmp_path), tmp_path) == [
        f"error: test.jsonl:7: this test question also stands in {split} ({split}.jsonl:61); remove it from {split}"
    ]


def test_the_cut_of_val_leaves_a_row_of_every_label_in_train(tmp_path):
    for i in range(30):
        rare = {"id": "rare", "text": f"rare question number {i}", "label": "jobs"}
        write(tmp_path / "train.jsonl", [*rows("train"), rare])
        task = load_task(spec(tmp_path, data={"train": "train.jsonl", "test": "test.jsonl"}), base=tmp_path)
        assert (len(task.val), [e["id"] for e in task.train if e["label"] == "jobs"]) == (6, ["rare"])


def test_of_many_equal_faults_five_are_shown_and_the_rest_counted(tmp_path):
    write(tmp_path / "train.jsonl", [r | {"id": f"train{i}"} for i, r in enumerate(rows("test"))])
    found = problems(spec(tmp_path), tmp_path)
    assert len(found) == 6
    assert found[-1] == "error: test.jsonl:6: the same here and 54 times more; remove it from train"


def test_a_val_question_in_train_is_a_warning(tmp_path):
    write(tmp_path / "train.jsonl", [*rows("train"), rows("val")[2] | {"id": "x"}])
    task, found = load_and_check(spec(tmp_path), base=tmp_path)
    assert task is not None
    assert [str(p) for p in found] == [
        "warning: val.jsonl:3: this val question also stands in train (train.jsonl:61); "
        "remove it from train, or val will favour memory"
    ]


def test_an_unseen_label_and_a_small_test_set_are_warnings(tmp_path):
    write(tmp_path / "test.jsonl", [*rows("test", 40), {"id": "x", "text": "why", "label": "refund"}])
    assert problems(spec(tmp_path), tmp_path) == [
        "warning: test.jsonl:41: label 'refund' never stands in train; "
        "add train rows with it; no arm can learn it from train",
        "warning: intents: only 41 test examples; use 50 or more, or differences are lost in chance",
    ]


def test_a_gold_answer_that_is_no_number_is_an_error_under_numeric_match(tmp_path):
    write(
        tmp_path / "test.jsonl", [r | {"label": "half" if i == 4 else f"{i},000"} for i, r in enumerate(rows("test"))]
    )
    for split in ("train", "val"):
        write(tmp_path / f"{split}.jsonl", [r | {"label": str(i)} for i, r in enumerate(rows(split))])
    found = problems(spec(tmp_path, program="answer", metric="numeric_match"), tmp_path)
    assert found == [
        "error: test.jsonl:5: the gold answer 'half' makes numeric_match fail: "
        "ValueError: the gold answer 'half' is not a number; correct the row or the metric"
    ]


def test_a_label_that_the_cut_of_val_took_is_said(tmp_path):
    write(tmp_path / "train.jsonl", [rows("train")[0], rows("train")[1] | {"label": "jobs"}])
    for i in range(2):
        write(tmp_path / "test.jsonl", [r | {"label": "jobs" if i else "card_arrival"} for r in rows("test")])
        found = problems(spec(tmp_path, data={"train": "train.jsonl", "test": "test.jsonl"}), tmp_path)
        assert not found or ", only in val (train.jsonl:" in found[0]


def test_an_id_that_stands_twice_is_an_error(tmp_path):
    write(tmp_path / "test.jsonl", [*rows("test"), {"id": "train3", "text": "new", "label": "age_limit"}])
    assert problems(spec(tmp_path), tmp_path) == [
        "error: test.jsonl:61: id 'train3' also stands in train.jsonl:4; "
        "give every row its own id, or set `id: ignored` in `fields`"
    ]


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    source = spec(tmp_path, fields={"text": "input", "intent": "output"})
    assert problems(source, tmp_path)[0] == (
        "error: train.jsonl: no column 'intent' among id, text, label; correct the task or the file"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fields": {"text": "inptu"}},
            "unknown role of field 'text': 'inptu'; did you mean 'input'? choose from input, output, gold, id, ignored",
        ),
        (
            {"fields": {"text": "input"}},
            "`fields` names no output; give one column that role, or write `output: [COLUMN]`",
        ),
        ({"fields": {"text": "input"}, "output": {"text": ""}}, "column 'text' is output and input; keep one"),
        (
            {"fields": {"text": "input", "id": "output", "label": "output"}},
            "outputs id, label; use one, `program: record`, or a program of your own",
        ),
        (
            {"program": "rga"},
            "unknown program 'rga'; did you mean 'rag'? "
            "choose from answer, classify, dialogue, extract, multihop, rag, record, translate or ./file.py:Class",
        ),
    ],
)
def test_a_wrong_mapping_says_what_to_write(tmp_path, changes, message):
    assert f"error: intents: {message}" in problems(spec(tmp_path, **changes), tmp_path)


def test_columns_that_cannot_be_inferred_ask_for_fields(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.jsonl", [{"source": "a", "target": "b"}])
    assert problems(spec(tmp_path), tmp_path) == [
        "error: intents: cannot tell inputs from outputs among columns source, target; add `input: […]`, `output: […]`"
    ]


def test_a_split_that_is_missing_or_misspelt(tmp_path):
    found = problems(spec(tmp_path, data={"train": "train.jsonl", "tset": "test.jsonl"}), tmp_path)
    assert found[:2] == [
        "error: intents: unknown split 'tset'; did you mean 'test'? choose from train, val, test",
        "error: intents: `data` names no test; add `test: file.jsonl`",
    ]


def test_a_corpus_without_the_gold_passage_names_the_row(tmp_path):
    write(tmp_path / "test.jsonl", [*questions("test"), questions("x", 1)[0] | {"gold_passage_ids": ["p9"]}])
    assert problems(rag(tmp_path), tmp_path) == [
        "error: test.jsonl:61: gold passage 'p9' is not in the corpus; add the passage to the corpus or correct the id"
    ]


def test_a_corpus_with_faults_names_its_lines(tmp_path):
    good = {"id": "p1", "text": "Numbers."}
    write(tmp_path / "corpus.jsonl", [good, good, {"id": "p2", "text": ""}])
    assert problems(rag(tmp_path), tmp_path) == [
        "error: corpus.jsonl:2: passage id 'p1' stands twice; give every passage its own id",
        "error: corpus.jsonl:3: 'text' is empty; a passage needs `id` and `text`; fill it",
    ]


def test_rag_without_a_corpus_is_an_error(tmp_path):
    found = problems(rag(tmp_path, corpus=""), tmp_path)
    assert found[0] == "error: intents: rag has nothing to retrieve from; add `corpus: file.jsonl`"


def test_a_gold_answer_that_does_not_score_one_is_an_error(tmp_path):
    (tmp_path / "m.py").write_text(
        "def m(gold, pred):\n    return 0.5 if gold.id == 'test4' else 1 / len(pred.label)**0\n"
    )
    assert problems(spec(tmp_path, metric="./m.py:m"), tmp_path)[0].startswith(
        "error: test.jsonl:5: the gold answer 'age_limit' scores 0.5 under m.py:m@"
    )


def test_a_metric_that_fails_on_gold_is_an_error(tmp_path):
    (tmp_path / "m.py").write_text("def m(gold, pred):\n    return pred.reason\n")
    found = problems(spec(tmp_path, metric="./m.py:m"), tmp_path)
    assert "makes m.py:m@" in found[0]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            b'id,text,label\n1,"a\nb",x\n2,y\n',
            "t.csv:4: 2 cells under 3 columns; quote cells that hold the delimiter",
        ),
        (
            "t.csv",
            b"\xff\xfe\n",
            "t.csv: cannot be read: 'utf-16-le' codec can't decode byte 0x0a in position 2: "
            "truncated data; save it again, text as UTF-8",
        ),
        ("t.jsonl", b"\n", "t.jsonl: data.test has no rows; give it at least one"),
        (
            "t.xls",
            b"",
            "t.xls: data.test is a .xls file; "
            "use .csv, .tsv, .jsonl, .ndjson, .json, .xlsx, .parquet or {hf: org/name}",
        ),
        ("t.xlsx", b"", "t.xlsx: cannot be read: File is not a zip file; save it again, text as UTF-8"),
        ("t.json", b'[{"text":', "t.json:1: not valid JSON: Expecting value at column 10; correct the file"),
        ("t.csv", b"id,id,text\n1,2,x\n", "t.csv:1: 2 columns are named 'id'; give each a name of its own"),
        (
            "t.jsonl",
            b'{"text": {"a": 1}, "label": "x", "id": 1}',
            "t.jsonl:1: 'text' holds a dict, not text; write the text that is meant in its place",
        ),
        (
            "t.jsonl",
            b'{"text": ["a", "b"], "label": "x", "id": 1}',
            "t.jsonl:1: 'text' holds a list, not text; join its parts into one text",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    source = spec(tmp_path)
    assert f"error: {message}" in problems(replace(source, data={**source.data, "test": name}), tmp_path)


def test_labels_that_look_like_one_or_none_are_warnings(tmp_path):
    labels = ("Billing", "billing", "NULL", "other")
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.jsonl", [r | {"label": labels[i % 4]} for i, r in enumerate(rows(split))])
    assert problems(spec(tmp_path), tmp_path) == [
        "warning: intents: labels 'Billing' (45 rows) and 'billing' (45) differ by case alone; "
        "write them one way, or they are two labels",
        "warning: intents: label 'NULL' (45 rows) looks like an empty cell; if it is, delete these rows",
    ]


def test_a_single_label_is_a_warning(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.jsonl", [r | {"label": "x"} for r in rows(split)])
    assert problems(spec(tmp_path), tmp_path) == [
        "warning: intents: 'x' is the only label; add rows with others; now every arm can be right unread"
    ]


def test_one_train_question_with_two_labels_is_a_warning(tmp_path):
    twice = rows("train")[4] | {"id": "again", "text": "TRAIN question number 4", "label": "age_limit_2"}
    write(tmp_path / "train.jsonl", [*rows("train"), twice])
    assert problems(spec(tmp_path), tmp_path) == [
        "warning: train.jsonl:61: this train question has another answer in train.jsonl:5; "
        "keep the right one; no arm can learn both"
    ]


def test_test_questions_that_are_nearly_in_train_are_counted(tmp_path):
    near = [r | {"text": f"{r['text'].replace('test', 'train')} of them. Thanks."} for r in rows("test")]
    write(tmp_path / "train.jsonl", [r | {"text": f"{r['text']} of them all here"} for r in rows("train")])
    write(tmp_path / "test.jsonl", [*rows("test", 57), *(r | {"text": f"{r['text']} or so"} for r in near[57:])])
    assert problems(spec(tmp_path), tmp_path) == []
    write(tmp_path / "train.jsonl", [r | {"text": f"{r['text']} of them, all of them, here"} for r in rows("train")])
    near = [r | {"text": f"{r['text'].replace('test', 'train')} of them, all of them, here. Hi"} for r in rows("test")]
    write(tmp_path / "test.jsonl", [*rows("test", 57), *near[57:]])
    assert problems(spec(tmp_path), tmp_path) == [
        "warning: test.jsonl:58: 3 of 60 test questions nearly repeat one of train (train.jsonl:58); "
        "remove it, or memory will pass for skill"
    ]
