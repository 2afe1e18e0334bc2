"""Entities as a program answers them, as a data file holds them, and how they are scored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pyarrow
import pytest
from dspy.utils import DummyLM
from pyarrow import parquet

from crossover.programs.data import load_and_check
from crossover.programs.entities import entities_of, entity_f1, entity_lines, micro_f1, read_entities
from crossover.programs.load import load_program
from crossover.programs.spec import TaskSpec

TWO = "person: Ada Lovelace\nlocation: Turku"


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        (TWO, TWO, 1.0),
        ("location: Turku\nperson: Ada Lovelace", TWO, 1.0),  # the order says nothing
        ("- Person: Ada  Lovelace\n* location : Turku\n", TWO, 1.0),  # nor do list markers, spaces, case of types
        ("person: Ada Lovelace", TWO, 2 / 3),
        ("person: Ada lovelace\nlocation: Turku", TWO, 1 / 2),  # words count as they stand
        ("location: Ada Lovelace\nperson: Turku", TWO, 0.0),
        ("person: Ada\nperson: Ada", "person: Ada", 2 / 3),  # said twice, there once
        ("Ada Lovelace", TWO, 0.0),  # without a type
        ("none", "None.", 1.0),
        ("", "none", 1.0),
        ("none", TWO, 0.0),
        (TWO, "none", 0.0),
        ("time: 10:30", "time: 10:30", 1.0),
    ],
)
def test_entity_f1(predicted: str, gold: str, score: float) -> None:
    assert entity_f1(predicted, gold) == pytest.approx(score)


def test_micro_f1_does_not_reward_silence() -> None:
    gold = ["none", "none", TWO, "person: Bo"]
    assert micro_f1(["none"] * 4, gold) == 0.0
    assert micro_f1(gold, gold) == 1.0
    # Two of the three that are there, and one that is not: F1 of 2 right, 3 said, 3 meant.
    assert micro_f1(["none", "person: X", "person: Ada Lovelace", "person: Bo"], gold) == pytest.approx(2 / 3)
    assert micro_f1(["none"], ["none"]) == 1.0


def test_lines_survive_reading() -> None:
    entities = [("person", "Ada: the first"), ("none", "none")]
    assert read_entities(entity_lines(entities)) == entities
    assert entity_lines([]) == "none"


@pytest.mark.parametrize(
    "value", [None, 3, {"type": "a", "text": "b"}, [{"type": "a"}], [{"type": "a", "text": " "}], ["a"]]
)
def test_what_holds_no_entities_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="type, text"):
        entities_of(value)


def rows(split: str) -> list[dict[str, Any]]:
    """Return texts of which every third has no entity."""
    return [
        {
            "id": f"{split}{i}",
            "text": f"{split} {i}: Ada went to Turku",
            "entities": []
            if i % 3 == 0
            else [{"type": "person", "text": "Ada", "start": 3}, {"type": "place", "text": "Turku"}][: i % 3],
        }
        for i in range(60)
    ]


def source(program: str = "extract") -> TaskSpec:
    fields = {"id": "id", "text": "input", "entities": "output"}
    return TaskSpec("names", program, {"train": "train.jsonl", "test": "test.jsonl"}, fields)


def write(folder: Path, split: str, data: list[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in data))


def test_a_task_holds_entities_as_lines_and_knows_their_types(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, split, rows(split))
    task, found = load_and_check(source(), base=tmp_path)
    assert task is not None
    assert [str(p) for p in found] == []
    assert [e.entities for e in task.test[:3]] == ["none", "person: Ada", "person: Ada\nplace: Turku"]
    assert task.metric_name == "entity_f1"
    (predictor,) = task.program().predictors()
    assert predictor.signature.output_fields["entities"].json_schema_extra["desc"].endswith("types: person, place")


def test_every_format_holds_the_same_entities(tmp_path: Path) -> None:
    for split in ("train", "test"):
        data = [r | {"entities": [{k: e[k] for k in ("type", "text")} for e in r["entities"]]} for r in rows(split)]
        write(tmp_path, split, data)
        parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / f"{split}.parquet")
        texts = [r | {"entities": json.dumps(r["entities"])} for r in data]
        write(tmp_path, f"{split}_text", texts)
        lines = [r | {"entities": entities_of(r["entities"])} for r in data]
        write(tmp_path, f"{split}_lines", lines)
    hashes = set()
    for name in ("{}.jsonl", "{}.parquet", "{}_text.jsonl", "{}_lines.jsonl"):
        spec = replace(source(), data={s: name.format(s) for s in ("train", "test")})
        task, found = load_and_check(spec, base=tmp_path)
        assert task is not None, found
        hashes.add(task.split_sha256())
    assert len(hashes) == 1


def test_a_row_without_entities_says_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path, "train", rows("train"))
    write(tmp_path, "test", [*rows("test"), {"id": "x", "text": "who?", "entities": [{"kind": "person"}]}])
    _, found = load_and_check(source(), base=tmp_path)
    assert [str(p) for p in found if p.level == "error"] == [
        "error: test.jsonl:61: 'entities': {'kind': 'person'} is no {type, text}; fill it or delete the row"
    ]


def test_translate_names_the_language_by_its_field() -> None:
    program = load_program("translate", inputs=("english",), output="german", labels=(), instructions="", base=Path())()
    with dspy.context(lm=DummyLM([{"german": "Ergebnis"}]), adapter=dspy.ChatAdapter()):
        assert program(english="Result").german == "Ergebnis"
    (predictor,) = program.predictors()
    assert predictor.signature.instructions.startswith("Translate `english` into the language of `german`.")
    told = load_program(
        "translate", inputs=("a",), output="b", labels=(), instructions="Say it in Finnish.", base=Path()
    )
    assert told().predictors()[0].signature.instructions == "Say it in Finnish."
