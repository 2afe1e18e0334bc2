"""Data files and files of scores that cannot be used end with exit 2 and lines that begin with `error: `."""

import gzip
import json
import os
import random
import struct
import zipfile
from datetime import date, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bad_input import DEEP, ROWS, Capture, nested, refused, sound_folder
from pyarrow import parquet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a sound experiment, in which the verbs run."""
    return sound_folder(tmp_path, monkeypatch)


def parquet_of(**columns: Any) -> bytes:
    file = BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def zipped(**members: str) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/"), text)
    return file.getvalue()


WHOLE = parquet_of(text=[r["text"] for r in ROWS], label=[r["label"] for r in ROWS])
LINES = "".join(json.dumps(r) + "\n" for r in ROWS)
DATA: dict[str, bytes | str] = {
    "empty.jsonl": "",
    "blank.jsonl": "\n\n",
    "text.jsonl": "hello",
    "list.jsonl": "[1, 2]\n",
    "brackets.jsonl": nested("[", "]") + "\n",
    "braces.jsonl": nested('{"text": ', "1" + "}"),
    "half.jsonl": r'{"text": "a\ud800", "label": "b"}' + "\n",
    "halfkey.jsonl": LINES + r'{"\udfff": "a", "text": "x", "label": "b"}',
    "digits.jsonl": '{"text": ' + "9" * DEEP + ', "label": "b"}',
    "open.jsonl": '{"text": "a',
    "zeros.jsonl": bytes(300),
    "binary.jsonl": bytes(range(256)) * 4,
    "objects.jsonl": '{"text": {"a": [1]}, "label": {"b": 2}}\n' * 9,
    "nulls.jsonl": '{"text": null, "label": null}\n' * 9,
    "numbers.jsonl": '{"text": NaN, "label": -Infinity}\n' * 9,
    "empty.json": "",
    "null.json": "null",
    "lists.json": "[[1], [2]]",
    "brackets.json": nested("[", "]"),
    "half.json": r'[{"text": "\ud83d", "label": "b"}]',
    "open.json": '[{"text":',
    "empty.csv": "",
    "header.csv": "text,label\n",
    "twice.csv": "text,text\na,b\n",
    "quote.csv": 'text,label\n"a,b\n',
    "ragged.csv": "text,label\na\nb,c,d\n",
    "zeros.csv": b"text,label\n\0,a\n",
    "binary.csv": bytes(range(128, 256)) * 9,
    "one.csv": "text\na\nb\n",
    "text.xlsx": "hello",
    "empty.xlsx": zipped(),
    "other.xlsx": zipped(a="b"),
    "broken.xlsx": zipped(**{"[Content_Types].xml": "<", "xl__workbook.xml": "<"}),
    "text.parquet": "hello",
    "magic.parquet": b"PAR1" + bytes(100) + b"PAR1",
    "half.parquet": WHOLE[: len(WHOLE) // 2],
    "long.parquet": WHOLE[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "none.parquet": parquet_of(text=pa.array([], pa.string()), label=pa.array([], pa.string())),
    "nulls.parquet": parquet_of(text=pa.nulls(9), label=pa.nulls(9)),
    "text.csv.gz": "hello",
    "cut.csv.gz": gzip.compress(b"text,label\n" + b"a,b\n" * 99)[:-12],
    "damaged.csv.gz": gzip.compress(os.urandom(5000))[:40] + bytes(500) + bytes(8),
}
"""Data files from which no experiment can be made."""
DEEP_CELL = json.dumps({"text": nested("[", "]"), "label": nested('[{"a": ', "}]")}) + "\n"
ODD_LINES = {
    "deep cells": DEEP_CELL * 40,
    "a deep cell": LINES + DEEP_CELL,
    "other columns": LINES + '{"a": 1}\n',
    "empty key": LINES.replace('"label"', '""'),
    "terminal codes": LINES.replace("kind", "\\u001b[31mkind"),
    "terminal codes of keys": LINES.replace('"label"', '"\\u001b[31mlabel"'),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data_files(folder: Path, capsys: Capture, name: str) -> None:
    data = DATA[name]
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(capsys, "init", name, "--yes")
    refused(capsys, "run", name, "--dry-run")
    refused(capsys, "validate", "x.yaml", "--set", f"tasks.t.data.test={name}")
    refused(capsys, "index", name)


@pytest.mark.parametrize("kind", ODD_LINES)
def test_odd_lines(folder: Path, capsys: Capture, kind: str) -> None:
    (folder / "odd.jsonl").write_text(ODD_LINES[kind])
    refused(capsys, "init", "odd.jsonl", "--yes", codes=(0, 2))
    for program in ("classify", "record", "extract", "rag"):
        refused(
            capsys,
            *("validate", "x.yaml", "--set", "tasks.t.data={train: odd.jsonl, test: odd.jsonl}"),
            *("--set", f"tasks.t.program={program}"),
            codes=(0, 2),
        )


def test_what_unpacks_to_more_than_memory_holds_is_refused(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossover.programs.sources.MOST_BYTES", 10**6)
    monkeypatch.setattr("crossover.programs.readers.MOST_UNPACKED", 10**6)
    (folder / "bomb.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 10**6))
    with zipfile.ZipFile(folder / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "x" * 10**7)
    for name in ("bomb.csv.gz", "bomb.xlsx"):
        assert "once it is unpacked" in refused(capsys, "init", name, "--yes")


ODD_TYPES: dict[str, Any] = {
    "bytes": [b"\xff\x00a"] * 40,
    "decimal": [Decimal(n) / 7 for n in range(40)],
    "date": [date(2024, 1, 1 + n % 28) for n in range(40)],
    "time": pa.array([2**60] * 40, pa.timestamp("ms")),
    "map": pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())),
    "nanoseconds": pa.array(range(40), pa.timestamp("ns")),
    "zone": pa.array([datetime(2024, 1, 1)] * 40, pa.timestamp("us", tz="Nowhere/Land")),
    "span": [timedelta(seconds=n) for n in range(40)],
    "list": [[str(n)] for n in range(40)],
    "struct": [{"a": n} for n in range(40)],
    "categories": pa.array([f"kind{n % 2}" for n in range(40)]).dictionary_encode(),
    "infinity": [float("inf"), float("nan")] * 20,
    "half": pa.array([1.5] * 40, pa.float16()),
    "big": [2**63 - 1] * 40,
}


@pytest.mark.parametrize("kind", ODD_TYPES)
@pytest.mark.parametrize("column", ["text", "label"])
def test_odd_types_of_parquet(folder: Path, capsys: Capture, kind: str, column: str) -> None:
    columns = {"text": [r["text"] for r in ROWS], "label": [r["label"] for r in ROWS]} | {column: ODD_TYPES[kind]}
    (folder / "odd.parquet").write_bytes(parquet_of(**columns))
    refused(capsys, "init", "odd.parquet", "--yes", "--input", "text", "--output", "label", codes=(0, 2))
    refused(capsys, "validate", "x.yaml", "--set", "tasks.t.data.test=odd.parquet", codes=(0, 2))


@pytest.mark.parametrize("seed", range(20))
def test_data_with_a_few_bytes_changed(folder: Path, capsys: Capture, seed: int) -> None:
    draw = random.Random(seed)
    name, whole = draw.choice(
        [("f.parquet", WHOLE), ("f.jsonl", LINES.encode()), ("f.jsonl.gz", gzip.compress(LINES.encode()))]
    )
    data = bytearray(whole)
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    (folder / name).write_bytes(data)
    refused(capsys, "init", name, "--yes", codes=(0, 2))


SCORES: dict[str, bytes | str] = {
    "empty": "",
    "text": "hello",
    "list": "[1]",
    "no score": '{"id": "a"}',
    "text score": '{"id": "a", "score": "1"}',
    "nan": '{"id": "a", "score": NaN}',
    "two": '{"id": "a", "score": 2}',
    "digits": '{"id": "a", "score": ' + "9" * DEEP + "}",
    "brackets": nested("[", "]"),
    "deep id": '{"id": ' + nested("[", "]") + ', "score": 1}',
    "tokens": '{"id": "a", "score": 1, "prompt_tokens": 1e300}',
    "negative": '{"id": "a", "score": 1, "usd": -1}',
    "infinite": '{"id": "a", "score": 1, "seconds": Infinity}',
    "seed": '{"id": "a", "score": 1, "seed": 1.5}',
    "split": '{"id": "a", "score": 1, "split": "train"}',
    "selected": '{"id": "a", "score": 1, "selected_on": "test"}',
    "twice": '{"id": "a", "score": 1}\n' * 2,
    "seeds": '{"id": "a", "score": 1}\n{"id": "b", "score": 1, "seed": 1}',
    "cluster": '{"id": "a", "score": 1, "cluster": "x"}\n{"id": "b", "score": 1}',
    "zeros": bytes(100),
    "open": '{"id": "a", "score": 1}\n{"id',
}


@pytest.mark.parametrize("name", SCORES)
def test_bad_files_of_scores(folder: Path, capsys: Capture, name: str) -> None:
    text = SCORES[name]
    (folder / "old.jsonl").write_text("".join(json.dumps({"id": str(n), "score": n % 2}) + "\n" for n in range(9)))
    (folder / "new.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, "compare", "old.jsonl", "new.jsonl")


@pytest.mark.parametrize(
    "row", [r'{"id": "\ud800", "score": 1}', '{"id": [1, {"a": 2}], "score": true}', b'{"id": "\xff", "score": 0}']
)
def test_odd_ids_of_scores(folder: Path, capsys: Capture, row: str | bytes) -> None:
    for name, score in (("old.jsonl", b"0"), ("new.jsonl", b"1")):
        line = (row if isinstance(row, bytes) else row.encode()) + b"\n"
        (folder / name).write_bytes(line + b'{"id": "b", "score": ' + score + b', "seed": 0}\n')
    refused(capsys, "compare", "old.jsonl", "new.jsonl", codes=(0, 2))
