"""General rows among the task's own."""

import json
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from factories import make_cell
from fakes import fit_intents

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.run.cell_keys import _files
from crossover.eval.run.methods import method_of
from crossover.finetune.training.mix import read_general
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.programs.task import Budget


def general(file: Path, count: int) -> Path:
    rows = [{"prompt": f"count {n}", "completion": f"{n} it is"} for n in range(count)]
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return file


def test_the_share_of_general_rows_is_the_one_asked_for(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    file = general(tmp_path / "general.jsonl", 30)
    options = {"mix": 0.2, "mix_file": str(file), "epochs": 1, "rank": 4}
    fitted = fit_intents("sft", options, intents, spoken.lm, Budget(workdir=tmp_path / "fit", threads=4))
    rows = [json.loads(line) for line in (tmp_path / "fit" / "train.jsonl").read_text().splitlines()]
    mixed = [r for r in rows if r["prompt"][0]["content"].startswith("count ")]
    assert (len(rows), len(mixed)) == (25, 5)
    assert (fitted.notes["rows"], fitted.notes["general_rows"]) == (20, 5)


def test_a_file_that_cannot_be_mixed_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sft mix 0\.1 is a share below 1 of the rows of `mix_file`; write both"):
        method_of("sft", {"mix": 0.1})
    with pytest.raises(UserError, match="no such file; name JSON lines"):
        read_general(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:1: not a row with prompt and completion"):
        read_general(tmp_path / "bad.jsonl")


def test_a_line_separator_within_a_text_and_empty_lines_end_no_row(tmp_path: Path) -> None:
    file = tmp_path / "web.jsonl"
    file.write_text('{"prompt": "one\u2028two", "completion": "three\u0085"}\n\n{"prompt": "a", "completion": "b"}\n\n')
    assert [row["prompt"][0]["content"] for row in read_general(file)] == ["one\u2028two", "a"]


def test_another_content_of_the_file_is_another_cell(tmp_path: Path) -> None:
    file = general(tmp_path / "general.jsonl", 3)
    cell = replace(make_cell("sft"), method=MethodSpec("sft", {"mix": 0.1, "mix_file": str(file)}))
    first = _files(cell)
    assert list(first) == ["general.jsonl"]
    general(file, 4)
    assert _files(cell) != first
    assert _files(make_cell("sft")) == {}
