"""Files as people have them give the same rows: any delimiter, encoding, suffix, compressed or not."""

import gzip
import json
from datetime import datetime
from pathlib import Path

import openpyxl
import pytest

from crossover.programs.sources import read_file

ROWS = [{"Größe": "01", "text": "cheap, good; | fine"}, {"Größe": "2", "text": "naïve\nsecond line"}]


def delimited(mark: str) -> str:
    lines = [f"Größe{mark}text"] + [f'{r["Größe"]}{mark}"{r["text"]}"' for r in ROWS]
    return "\r\n".join(lines) + "\r\n"


FILES = {
    "comma.csv": delimited(",").encode(),
    "semicolon.CSV": delimited(";").encode("utf-8-sig"),
    "bar.csv": delimited("|").encode("cp1252"),
    "tab.tsv": delimited("\t").encode("utf-16"),
    "no_mark.csv": delimited(";").encode("utf-16-le"),
    "excel.csv": ("sep=;\r\n" + delimited(";")).encode("cp1252"),
    "list.json": json.dumps(ROWS).encode(),
    "object.json": json.dumps({"version": 2, "data": ROWS}).encode(),
    "lines.json": "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.ndjson": "\n".join(map(json.dumps, ROWS)).encode(),
    "lines.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "comma.CSV.GZ": gzip.compress(delimited(",").encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_of_a_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    records, problems = read_file(tmp_path / name)
    assert [r.values for r in records] == ROWS
    guessed = name in ("bar.csv", "excel.csv")
    assert [p.what for p in problems] == (["not UTF-8, read as cp1252"] if guessed else [])


def test_a_row_after_a_cell_of_two_lines_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sep=;\ntext;label\n"a\nb";x\nc;y;z\n')
    records, problems = read_file(tmp_path / "a.csv", shown="a.csv")
    assert [r.where for r in records] == ["a.csv:3"]
    assert [str(p) for p in problems] == [
        "error: a.csv:5: 3 cells under 2 columns; quote cells that hold the delimiter"
    ]


def test_a_sheet_keeps_text_as_text_and_its_row_numbers(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["No.", "Answer", None, "When"], [1, "007", None, datetime(2026, 5, 1)], [], [2.0, 1.5, None, True]):
        sheet.append(row)
    sheet["H9"] = None
    book.create_sheet("Notes").append(["by", "Mina"])
    book.save(tmp_path / "a.xlsx")
    records, problems = read_file(tmp_path / "a.xlsx", shown="a.xlsx")
    assert [r.values for r in records] == [
        {"No.": "1", "Answer": "007", "column 3": "", "When": "2026-05-01"},
        {"No.": "2", "Answer": "1.5", "column 3": "", "When": "True"},
    ]
    assert [r.where for r in records] == ["a.xlsx:2", "a.xlsx:4"]
    assert [p.what for p in problems] == ["sheet 'Notes' is not read"]
