"""The program `record`: kinds of fields, empty cells, one JSON object, metrics of whole records, scores by field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
import tiny
from factories import make_cell, make_result

from crossover.eval.analysis.compare import compare
from crossover.eval.analysis.labels import gold_of
from crossover.eval.cli.main import main
from crossover.eval.experiment.spec import Needs, Prices
from crossover.eval.store.rows import Rows
from crossover.models.errors import UserError
from crossover.models.grammars import Grammar, lines
from crossover.models.plain import PlainAdapter
from crossover.programs.data import load_and_check, load_task
from crossover.programs.demos import with_demos
from crossover.programs.kinds import Kind, kind_of
from crossover.programs.metrics import Scored, attribute_f1, metric_for
from crossover.programs.modules.record import Record
from crossover.programs.spec import TaskSpec
from crossover.programs.task import Task

ROOT = Path(__file__).parent.parent
PRODUCTS = {"name": "input", "description": "input", "brand": "output", "size": "output", "weight_g": "output"}


def products(**outputs: str) -> Task:
    data = {split: f"products/{split}.csv" for split in ("train", "test")}
    spec = TaskSpec("products", "record", data, {**PRODUCTS, **outputs})
    return load_task(spec, base=ROOT / "examples")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["3", "1,250", "0.5"], Kind("number")),
        (["yes", "No", "TRUE"], Kind("boolean")),
        (["red", "blue", "red", "blue", ""], Kind("one of", ("blue", "red"), optional=True)),
        (["38", "M", "38", "M"], Kind("one of", ("38", "M"))),
        (["01067", "80331"], Kind("text")),
        (["1234567890123456789", "5"], Kind("text")),
        (["a poem", "a play", "an essay"], Kind("text")),
        ([["a"], [], ["b", "c"]], Kind("list")),
        (["", None], Kind("text", optional=True)),
    ],
)
def test_the_kind_of_a_field_is_told_from_its_values(values: list[Any], kind: Kind) -> None:
    assert kind_of(values) == kind


def test_a_kind_may_be_given_by_name() -> None:
    assert kind_of(["1", "2"], "text") == Kind("text")
    with pytest.raises(UserError, match="unknown kind of field 'numbr'; did you mean 'number'"):
        kind_of(["1"], "numbr")


def test_a_cell_becomes_a_value_of_its_kind() -> None:
    assert [Kind("number", optional=True).value(c) for c in ("1,250", "2.50", "", None)] == [1250, 2.5, "none", "none"]
    assert [Kind("boolean").value(c) for c in ("TRUE", "no")] == ["yes", "no"]
    assert [Kind("list").value(c) for c in ("a; b", "a, b", '["a"]', ["a", " "], "")] == [
        ["a", "b"],
        ["a", "b"],
        ["a"],
        ["a"],
        [],
    ]
    for kind, cell in (("number", "about 3"), ("boolean", "maybe")):
        with pytest.raises(ValueError, match=cell):
            Kind(kind).value(cell)


def test_a_row_without_items_is_no_fault(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        rows = [{"text": f"{split} {n}" + " more" * n, "tags": [f"t{n % 3}", "x"] * bool(n)} for n in range(60)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "tags.yaml").write_text(
        "version: 1\nname: tags\ntasks:\n  - name: tags\n    program: record\n"
        "    data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}\n    input: text\n    output: {tags: list}\n"
        f"models: [{tiny.model()}]\nmethods: [zero_shot, few_shot]\n"
    )
    assert main(["validate", str(tmp_path / "tags.yaml")]) == 0
    task, _ = load_and_check(
        TaskSpec("tags", "record", {s: f"{s}.jsonl" for s in ("train", "test")}, {"text": "input", "tags": "output"}),
        base=tmp_path,
    )
    assert task is not None
    assert [gold_of(task, e) for e in task.test[:2]] == ["", "t1, x"]


def test_choices_are_told_apart_by_their_marks(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = "".join(f"{split} {n},{('<=50K', '>50K')[n % 2]},{n}\n" for n in range(60))
        (tmp_path / f"{split}.csv").write_text(f"text,income,size\n{rows}")
    fields = {"text": "input", "income": "output", "size": "output"}
    data = {split: f"{split}.csv" for split in ("train", "test")}
    task, _ = load_and_check(TaskSpec("adults", "record", data, fields), base=tmp_path)
    assert task is not None
    score = task.metric(task.test[0], dspy.Prediction(income=task.test[1].income, size=task.test[0]["size"]))
    assert float(score) == 0.5
    # So a choice that only its marks make another one than those of train is no answer either.
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text().replace(">", "<="))
    _, problems = load_and_check(TaskSpec("adults", "record", data, fields), base=tmp_path)
    assert [(p.where.rpartition("/")[2], p.what) for p in problems if "no arm" in p.what] == [
        ("test.csv:3", "'income' holds '>50K', as no train row does: no arm can answer so")
    ]


def test_values_that_train_does_not_have_are_named(tmp_path: Path) -> None:
    for split, last in (("train", "red,3"), ("val", "green,"), ("test", "grün,4")):
        rows = "".join(f"{split} {n},{('red', 'blue')[n % 2]},{n}\n" for n in range(9))
        (tmp_path / f"{split}.csv").write_text(f"text,colour,size\n{rows}the last {split},{last}\n")
    data = {split: f"{split}.csv" for split in ("train", "val", "test")}
    fields = {"text": "input", "colour": "output", "size": "output"}
    _, problems = load_and_check(TaskSpec("goods", "record", data, fields), base=tmp_path)
    found = [(p.where.rpartition("/")[2], p.what, p.remedy) for p in problems if "no arm" in p.what]
    says, remedy = ", as no train row does: no arm can answer so", "add such a train row, or write `output: {%s: text}`"
    assert found == [
        ("val.csv:11", f"'colour' holds 'green'{says}", remedy % "colour"),
        ("val.csv:11", f"'size' holds 'none'{says}", remedy % "size"),
        ("test.csv:11", f"'colour' holds 'grün'{says}", remedy % "colour"),
    ]
    _, problems = load_and_check(
        replace(TaskSpec("goods", "record", data), input=["text"], output={"colour": "text", "size": "text"}),
        base=tmp_path,
    )
    assert not [p for p in problems if "no arm" in p.what]


def test_the_signature_of_a_record_has_its_types() -> None:
    task = products(colour="output", waterproof="output")
    fields = task.program().predict.signature.output_fields
    assert fields["weight_g"].annotation == float | Literal["none"]
    assert fields["waterproof"].annotation == Literal["yes", "no"]
    assert "none" in str(fields["brand"].annotation)
    assert task.train[0]["brand"] == "none"
    assert task.train[0]["weight_g"] == 120
    assert task.metric_name == "field_accuracy"


def test_an_answer_is_decoded_to_the_types_and_read_back() -> None:
    kinds = {"size": Kind("one of", ("38", "M"), optional=True), "grams": Kind("number", optional=True)}
    program = Record(["name"], kinds)
    signature = program.predict.signature
    number = '{"type": "number", "x-guidance"'
    grammar = lines(signature.output_fields)
    assert isinstance(grammar, Grammar)
    assert grammar.choices == {"value_0": [" 38", " M", " none"]}
    assert f'value_1: "none" | %json {{"anyOf": [{number[:17]}' in grammar.rules
    adapter = PlainAdapter(instruct=True)
    assert adapter.parse(signature, "size: 38\ngrams: none") == {"size": "38", "grams": "none"}
    assert adapter.parse(signature, "size: none\ngrams: 410") == {"size": "none", "grams": 410.0}
    shown = with_demos(program, [dspy.Example(name="cap", size="none", grams="none").with_inputs("name")])
    messages = adapter.format(signature, shown.predict.demos, {"name": "boot"})
    assert messages[2]["content"] == "size: none\ngrams: none"
    assert "grams: <a number or none>" in messages[0]["content"]


def test_several_fields_are_scored_one_by_one() -> None:
    gold = dspy.Example(brand="Norvik", size="none", grams=410, tags=["a", "b"])
    answer = dspy.Prediction(brand="norvik", size="", grams=400.0, tags=["b", "a"])
    score = metric_for("field_accuracy", "brand", "size", "grams", "tags")(gold, answer)
    assert isinstance(score, Scored)
    assert (score, score.fields) == (0.75, {"brand": 1.0, "size": 1.0, "grams": 0.0, "tags": 1.0})
    assert metric_for("exact_record", "brand", "size")(gold, answer) == 1.0
    assert metric_for("exact_record", "brand", "grams")(gold, answer) == 0.0
    assert metric_for("token_f1", "brand", "tags")(gold, dspy.Prediction(brand="x", tags=["a"])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("values", "f1"),
    [
        ([("none", "none", 1.0)], 1.0),
        ([("a", "a", 1.0), ("none", "none", 1.0)], 1.0),
        ([("a", "a", 1.0), ("none", "b", 0.0)], 2 / 3),
        ([("a", "a", 1.0), ("b", "none", 0.0)], 2 / 3),
        ([("a", "a", 1.0), ("b", "c", 0.0)], 1 / 2),
        ([("", "b", 0.0)], 0.0),
    ],
)
def test_attributes_count_none_as_attribute_extraction_does(values: list[Any], f1: float) -> None:
    assert attribute_f1(values) == pytest.approx(f1)


def test_one_column_of_json_objects_is_a_record(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        rows = [
            {"text": f"{split} {n}: boot {n}", "attributes": {"kind": "boot", "number": n} | ({"x": "y"} if n else {})}
            for n in range(60)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {split: f"{split}.jsonl" for split in ("train", "val", "test")}
    spec = TaskSpec("t", "record", data, {"text": "input", "attributes": "output"})
    task, problems = load_and_check(spec, base=tmp_path)
    assert problems == []
    assert task is not None
    assert task.outputs == ("kind", "number", "x")
    assert (task.test[0]["x"], task.test[1]["number"]) == ("none", 1)


def test_scores_by_field_stand_under_the_names_of_the_users_columns() -> None:
    result = make_result(make_cell("zero_shot"), [1.0, 0.0, 1.0])
    rows = tuple(replace(r, fields={"screen_size": r.score}) for r in Rows.of(result.rows))
    named = replace(result, rows=rows, notes={"columns": {"screen_size": "Screen size"}})
    (arm,) = compare([named], needs=Needs(), prices=Prices(), experiment="x").arms
    assert {name: score.mean for name, score in arm.fields.items()} == {"Screen size": pytest.approx(2 / 3)}


def test_scores_by_field_are_in_table_page_json_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    file = tmp_path / "products.yaml"
    experiment = (ROOT / "examples/products.yaml").read_text()
    model = tiny.model(decode="schema", max_tokens=48)
    experiment = experiment.replace("{name: smollm2, max_tokens: 64}", model)
    experiment = experiment.replace("products/", f"{ROOT}/examples/products/").partition("methods:")[0]
    file.write_text(experiment + "methods: [few_shot: {demos: 1}]\n")
    reports = [str(tmp_path / f"report.{form}") for form in ("html", "json", "csv")]
    options = ["--details", "--limit", "4", "--tracking-uri", "none", "--no-progress", "--store", str(store)]
    assert main(["run", str(file), *options, *(x for r in reports for x in ("-o", r))]) == 0
    names = ["brand", "colour", "size", "weight_g", "waterproof"]
    (heading,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("arm") and "brand" in line]
    assert [n for n in heading.split() if n in names] == names
    (arm,) = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert list(arm["fields"]) == names
    assert {"exact_record", "attribute_f1"} <= arm["secondary"].keys()
    assert sum(f["mean"] for f in arm["fields"].values()) / 5 == pytest.approx(arm["score"]["mean"])
    assert "Score by field" in (tmp_path / "report.html").read_text()
    (rows,) = store.glob("cells/*/rows.jsonl")
    scored = [json.loads(line) for line in rows.read_text().splitlines()]
    assert all(row["unparsed"] or list(row["fields"]) == names for row in scored)
