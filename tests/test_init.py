"""`init FILE` and `run FILE` take a data file as people have it: what is shown, what is written, what it refuses."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from crossover.eval.cli.main import main
from crossover.eval.experiment.choices import Choices
from crossover.eval.experiment.columns import columns_in
from crossover.eval.experiment.guess import guess
from crossover.models.errors import UserError
from crossover.programs.records import Record

QUEUES = ("Billing", "Returns", "Account")


def tickets(folder: Path, n: int = 240) -> Path:
    """Write a CSV of tickets with headers as people have them."""
    with (folder / "tickets.csv").open("w", newline="", encoding="cp1252") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Ticket ID", "Created at", "Customer", "Ticket text", "Queue (final)"])
        for i in range(n):
            text = f"I want the {QUEUES[i % 3]} team, für {i} €"
            writer.writerow([f"T-{i}", f"2026-05-{i % 28 + 1:02} 08:26", f"C{i % 50:03}", text, QUEUES[i % 3]])
    return folder / "tickets.csv"


def roles(rows: list[dict[str, Any]], **choices: Any) -> dict[str, str]:
    """Return the role of each column, and the program."""
    found = guess([Record(r, "") for r in rows], Choices(**choices))
    return {c.name: c.role for c in found.columns} | {"": found.program}


def test_init_shows_its_guess_and_writes_a_file_that_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path)
    assert main(["init", "tickets.csv"]) == 2
    shown, refused = capsys.readouterr()
    assert refused == "error: nobody to ask: add --yes to take the guess as it is; nothing was written\n"
    lines = [line.split() for line in shown.splitlines()]
    assert ["Ticket", "ID", "id", "240", "T-0", "id"] in lines
    assert lines[1][:6] == ["warning:", "tickets.csv:", "not", "UTF-8,", "read", "as"]
    assert [line[-1] for line in lines[4:9]] == ["id", "ignored", "ignored", "input", "output"]
    assert "group    rows of one Customer may stand in train and in test; --group Customer\n" in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[3:9])
    assert not list(tmp_path.glob("*.yaml"))
    assert main(["validate", "tickets.csv"]) == 2
    assert capsys.readouterr().err == (
        "error: tickets.csv: a data file, where an experiment is wanted; "
        "`crossover init tickets.csv` writes tickets.crossover.yaml\n"
    )
    assert main(["init", "tickets.csv", "--yes"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(shown)
    assert "\nhow long a run takes: crossover plan tickets.crossover.yaml\n" in out
    assert main(["validate", "tickets.crossover.yaml"]) == 0
    assert "tickets: train 156, val 24, test 60, metric label_accuracy" in capsys.readouterr().out
    assert main(["init", "tickets.csv", "--yes"]) == 2
    assert "already there" in capsys.readouterr().err


def test_run_of_a_data_file_writes_the_experiment_once_and_names_columns_by_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path)
    command = ["run", "tickets.csv", "--output", "Queue (final)", "--group", "customer", "--dry-run"]
    command += ["--set", f"models=[{tiny.model()}]", "--only", "zero_shot"]
    assert main(command) == 0
    assert "wrote tickets.crossover.yaml" in capsys.readouterr().err
    text = Path("tickets.crossover.yaml").read_text()
    assert "    cluster: Customer " in text
    Path("tickets.crossover.yaml").write_text(text.replace("name: tickets", "name: mine"))
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err.startswith("using tickets.crossover.yaml\n")
    assert "mine" in out
    assert main([*command, "--metric", "exact_match"]) == 2
    assert "written without these --group --metric" in capsys.readouterr().err.replace(" --output", "")


def test_run_of_a_data_file_writes_its_page_unless_reports_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path, 60)
    command = ["run", "tickets.csv", "--tracking-uri", "none", "--limit", "2", "--only", "zero_shot"]
    command += ["--set", f"models=[{tiny.model()}]", "-q"]
    assert main([*command, "-o", "short.md"]) == 0
    assert [p.name for p in tmp_path.glob("*.[hm][td]*")] == ["short.md"]
    assert main(command) == 0
    assert "tickets.crossover.yaml" in Path("tickets.html").read_text()


def test_flags_of_a_data_file_are_refused_beside_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a.yaml", "--docs", "folder"]) == 2
    assert capsys.readouterr().err.startswith("error: --docs is for a data file such as tickets.csv; ")


def test_answers_are_told_from_questions_by_names_and_values() -> None:
    answers = [{"No.": str(i), "Question": f"why {i}?", "Expected answer": f"as {i * 7}"} for i in range(1, 41)]
    assert roles(answers) == {"No.": "id", "Question": "input", "Expected answer": "output", "": "answer"}
    alpaca = [{"instruction": f"do {i}", "input": "" if i % 2 else "so", "output": f"done {i}"} for i in range(40)]
    assert roles(alpaca) == {"instruction": "input", "input": "input", "output": "output", "": "answer"}
    plain = [{"a": f"some words {i}", "b": "x" if i % 2 else "y"} for i in range(40)]
    assert roles(plain) == {"a": "input", "b": "output", "": "classify"}
    spans = [{"text": f"Mina {i}", "names": [{"type": "person", "text": "Mina"}]} for i in range(40)]
    assert roles(spans) == {"text": "input", "names": "output", "": "extract"}


def test_several_outputs_are_a_record_and_documents_make_it_retrieve() -> None:
    rows = [{"sku": f"P{i}", "Title": f"cap {i} red", "Brand": "A", "Size": "" if i % 3 else "M"} for i in range(40)]
    found = {"sku": "id", "Title": "input", "Brand": "output", "Size": "output", "": "record"}
    assert roles(rows, output=("brand", "Size")) == found
    assert roles(rows, output=("Brand",), ignore=("Size",), docs="docs")[""] == "rag"


def test_empty_cells_of_a_record_are_said_to_mean_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"Cap {i} in red;Norvik;{'' if i % 3 else 'M'}" for i in range(60)]
    (tmp_path / "p.csv").write_text("\n".join(["Title;Brand;Size", *rows]))
    assert main(["init", str(tmp_path / "p.csv"), "--output", "Brand,Size", "--yes"]) == 0
    assert "answers  an empty cell of Size is the answer `none`\n" in capsys.readouterr().out


def test_a_program_of_ones_own_tells_its_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import dspy\n\nclass P(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.think = dspy.ChainOfThought('puzzle -> result: int')\n"
    )
    rows = [Record({"puzzle": f"sum {i}", "note": f"text {i}", "result": i % 5}, "") for i in range(40)]
    found = guess(rows, Choices(program="./mine.py:P"), base=tmp_path)
    assert [c.role for c in found.columns] == ["input", "ignored", "output"]
    assert found.max_tokens == 256


def test_the_split_leaves_enough_test_rows_for_a_verdict_where_the_file_has_them() -> None:
    for rows, share in ((1000, 0.2), (240, 0.25), (180, 0.35), (110, 0.5), (40, 0.3)):
        found = guess([Record({"text": f"t {i}", "label": "ab"[i % 2]}, "") for i in range(rows)], Choices())
        assert found.spec("t", {"file": "t.csv"}).split == {"val": 0.1, "test": share}


def test_kinds_of_columns() -> None:
    rows = [
        {"n": str(i), "when": f"0{i % 9 + 1}.05.2026", "ok": ("yes", "No")[i % 2], "free": f"a b {i}", "none": None}
        for i in range(40)
    ]
    assert {c.name: c.kind for c in columns_in([Record(r, "") for r in rows])} == {
        **{"n": "number", "when": "date", "ok": "yes/no", "free": "text", "none": "empty"},
    }


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"output": ("lable",)}, "unknown column 'lable'; did you mean 'label'? choose from text, label"),
        ({"ignore": ("text",)}, "no column looks like the input among text, label; add --input COLUMN"),
    ],
)
def test_what_cannot_be_guessed_says_what_to_add(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        roles([{"text": f"t {i}", "label": "a"} for i in range(8)], **choices)
    assert str(error.value) == message


def test_json_lines_with_answers_of_numbers_are_compared_as_numbers() -> None:
    rows = [Record(json.loads(f'{{"question": "how many {i}?", "answer": {i * 3}}}'), "") for i in range(40)]
    assert guess(rows, Choices()).metric == "numeric_match"
    codes = [Record({"question": f"which code has {i}?", "answer": f"0{i + 1067}"}, "") for i in range(40)]
    assert guess(codes, Choices()).metric != "numeric_match"


def test_a_folder_of_documents_makes_it_retrieve_and_tells_the_gold_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for name in ("leave", "travel"):
        Path(f"docs/{name}.md").write_text(f"The {name} rule is 28.")
    rows = [{"Question": f"what {i}?", "Answer": "28", "Source": ("leave.md", "travel.md")[i % 2]} for i in range(40)]
    Path("q.json").write_text(json.dumps(rows))
    assert main(["init", "q.json", "--docs", "docs", "--yes"]) == 0
    assert "program  rag (answers from ./docs)" in capsys.readouterr().out
    assert "    fields: {Source: gold} " in Path("q.crossover.yaml").read_text()
    assert main(["validate", "q.crossover.yaml"]) == 0
    assert "q: train 24, val 4, test 12, corpus 2, metric numeric_match" in capsys.readouterr().out


def test_answers_from_documents_are_scored_by_the_words_they_share() -> None:
    rows = [Record({"question": f"what {i}?", "answer": f"week {i}"}, "") for i in range(40)]
    assert guess(rows, Choices(docs="docs")).metric == "token_f1"
    assert guess(rows, Choices()).metric == "exact_match"


class Terminal(io.TextIOWrapper):
    """Standard input as a terminal gives it."""

    def isatty(self) -> bool:
        return True


def test_a_column_that_was_taken_wrongly_is_named_and_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal(io.BytesIO(b"nothing\nCustomer\ngroup\ny\n")))
    assert main(["init", "tickets.csv"]) == 0
    out = capsys.readouterr().out
    assert "no column 'nothing'; answer y, n or one of Ticket ID, Created at, Customer, " in out
    assert "    cluster: Customer " in Path("tickets.crossover.yaml").read_text()
    monkeypatch.setattr("sys.stdin", Terminal(io.BytesIO(b"n\n")))
    assert main(["init", "tickets.csv", "-o", "other.yaml"]) == 2
    assert not Path("other.yaml").exists()
