"""Rows as columns are the rows that were written, whole or torn."""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from factories import make_row
from heap import return_freed_blocks
from processes import FORKS, ended

from crossover.eval.store.result import append_rows, read_rows
from crossover.eval.store.rows import Rows, read_table
from crossover.programs.score import Row

ROWS = [
    make_row(0, 1.0, tokens=70_000),
    make_row(1, None),
    make_row(2, 0.25, usd=None),
    Row("é 3", 0.0, "", 1, 1, 0, 2, 1e-5, 0.5, {"label": None, "n": [1, "ü"]}),
    Row("e4", 0.0, "", 1, 1, 0, 2, 1e-5, 0.5, {}, unparsed=True, raw="no\nfield"),
]


def test_columns_give_back_the_rows(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", ROWS)
    table = read_table(tmp_path / "rows.jsonl")
    assert list(table) == ROWS == list(read_rows(tmp_path / "rows.jsonl"))
    assert (table[-1], table[1:3], len(table)) == (ROWS[4], ROWS[1:3], 5)
    assert list(Rows.of(ROWS)) == ROWS
    assert Rows.of(table) is table


def test_columns_know_failures_and_unknown_prices() -> None:
    table = Rows.of(ROWS)
    assert (table.failed, table.unparsed) == (1, 1)
    assert table.first_failure == ROWS[1].failure
    assert dict(table.scored()) == {"e0": 1.0, "e2": 0.25, "é 3": 0.0, "e4": 0.0}
    assert np.isnan(table.usd).any()
    assert not np.isnan(Rows.of(ROWS[:2]).usd).any()


def test_an_index_beyond_the_end_is_refused() -> None:
    with pytest.raises(IndexError):
        Rows.of(ROWS)[5]


def test_rows_of_earlier_versions_are_read_as_they_are(tmp_path: Path) -> None:
    old = {k: v for k, v in asdict(ROWS[1]).items() if k not in ("unparsed", "raw")} | {"failure": "parse: 'x'"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    (row,) = read_table(tmp_path / "rows.jsonl")
    assert [row] == list(read_rows(tmp_path / "rows.jsonl"))
    assert (row.score, row.failure, row.unparsed, row.raw) == (None, "parse: 'x'", False, "")


def test_a_torn_line_ends_the_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_rows(file, ROWS)
    whole = file.read_text()
    for torn in ('{"id": "x", "sc', '{"id": "x"}\n', "[]\n", json.dumps(asdict(ROWS[0]) | {"id": 7}) + "\n"):
        file.write_text(whole + torn)
        assert list(read_table(file)) == ROWS
    assert list(read_table(tmp_path / "none.jsonl")) == []


def use_rows(folder: str, count: int) -> None:
    """Append rows as a scoring pass does, resume the file, read it as a comparison does; write by how much it grew."""
    return_freed_blocks()
    ids = [sys.intern(f"test-{n}") for n in range(count)]
    file, before = Path(folder) / "rows.jsonl", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(0, count, 1000):
        part = [(i, {"label": f"label {n % 77}"}) for i in ids[n : n + 1000]]
        append_rows(file, [Row(i, 1.0, "", 100, 0, 5, 1, 0.1, 0.0, output) for i, output in part])
    done = {sys.intern(row.id) for row in read_rows(file)}
    table = read_table(file)
    assert len(done) == len(table) == count
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (Path(folder) / "megabytes").write_text(str(grown * 1024 / 1e6))


def test_memory_hardly_grows_with_the_rows(tmp_path: Path) -> None:
    """A tenth of the million rows, and of the 100 MB, that benchmarks/memory.py holds; half as much again for noise."""
    process = FORKS.Process(target=use_rows, args=(str(tmp_path), 100_000))
    process.start()
    assert ended(process) == 0
    assert float((tmp_path / "megabytes").read_text()) < 15


def test_scores_of_parts_are_columns_in_which_an_unparsed_answer_counts_as_wrong() -> None:
    parts = Row("e5", 0.5, "", 1, 1, 0, 2, 1e-5, 0.5, {"a": "x", "b": "y"}, fields={"a": 1.0, "b": 0.0})
    table = Rows.of([ROWS[4], parts, ROWS[1]])
    assert table.scored_field("a") == {"e4": 0.0, "e5": 1.0}
    assert (table[1], table[2]) == (parts, ROWS[1])
