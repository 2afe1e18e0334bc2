"""The lines of docs/python.md do what they say."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from openings import write_openings

import crossover
from crossover.models.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_lines_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_openings(tmp_path, "[zero_shot]")
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(code.replace('"smollm2"', tiny.model(max_tokens=8)), names)
    assert names["choice"] == "retrieved_demos demos=3"
    assert list(names["table"]["method"]) == ["zero_shot", "retrieved_demos"]
    assert "<pre>" in names["result"]._repr_html_()
    assert names["answer"].label == "billing"
    assert (tmp_path / "report.html").exists()


def test_one_data_file_is_taken_for_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_openings(tmp_path, "[zero_shot]")
    lines = [json.loads(line) for line in Path("test.jsonl").read_text(encoding="utf-8").splitlines()]
    with Path("tickets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows(
            [("Ticket text", "Queue (final)"), *((r["text"], r["label"]) for r in lines)]
        )
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    names: dict[str, Any] = {"crossover": crossover}
    exec(code.replace("smollm2", f"local:{tiny.FOLDER}"), names)
    assert list(names["result"].verdict) == ["tickets"]
    assert sorted(names["result"].to_pandas()["method"]) == ["retrieved_demos", "zero_shot"]
    assert "program  classify (Queue (final) has 4 labels)\n" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.glob("tickets*")) == ["tickets.csv"]
    with pytest.raises(UserError, match="unknown role 'question'"):
        crossover.compare("tickets.csv", fields={"Ticket text": "question"})
