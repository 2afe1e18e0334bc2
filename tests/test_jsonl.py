"""JSON lines survive a kill in the middle of a line; a replaced file is old or new, never half."""

import json
import multiprocessing
from pathlib import Path

import pytest

from crossover.models.errors import UserError
from crossover.models.jsonl import append_lines, read_lines, replacing, write_json


def test_lines_come_back_as_they_were_appended(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    assert list(read_lines(file)) == []
    append_lines(file, [{"a": "ä"}, {"b": Path("x")}], fsync=True)
    append_lines(file, [{"c": [1]}])
    assert list(read_lines(file)) == [{"a": "ä"}, {"b": "x"}, {"c": [1]}]


@pytest.mark.parametrize("torn", ['{"b": 2', '{"b": 2}', "\x00\x00"])
def test_a_torn_last_line_is_cut_off_and_the_next_one_stands_alone(tmp_path: Path, torn: str) -> None:
    file, notes = tmp_path / "a.jsonl", list[str]()
    append_lines(file, [{"a": 1}])
    with file.open("a") as f:
        f.write(torn)
    assert list(read_lines(file, note=notes.append)) == [{"a": 1}]
    assert len(notes) == 1
    assert "torn by a crash" in notes[0]
    append_lines(file, [{"c": 3}])
    assert list(read_lines(file, note=notes.append)) == [{"a": 1}, {"c": 3}]
    assert len(notes) == 1


def test_damage_before_the_last_line_is_an_error_and_nothing_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: damaged; mend it"):
        list(read_lines(file, remedy="mend it"))
    assert file.read_text().count("\n") == 3


def test_a_line_that_the_parser_refuses_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    append_lines(file, [{"a": 1}, {"b": 2}])
    assert list(read_lines(file, lambda line: {"a": json.loads(line)["a"]} if b"a" in line else int(line))) == [
        {"a": 1}
    ]


def test_files_that_differ_in_their_suffix_alone_have_drafts_of_their_own(tmp_path: Path) -> None:
    with replacing(tmp_path / "bm25-0.2.1") as one, replacing(tmp_path / "bm25-0.2.2") as other:
        one.mkdir()
        other.mkdir()
        (one / "text").write_text("one")
        (other / "text").write_text("other")
    assert (tmp_path / "bm25-0.2.1" / "text").read_text() == "one"
    assert (tmp_path / "bm25-0.2.2" / "text").read_text() == "other"
    assert len(list(tmp_path.iterdir())) == 2


def test_two_writers_of_the_same_target_share_no_draft(tmp_path: Path) -> None:
    for target in (tmp_path / "file", tmp_path / "folder"):
        with replacing(target) as first, replacing(target) as second:
            assert first != second
            for draft in (first, second):
                if target.name == "folder":
                    draft.mkdir()
                    (draft / "text").write_text("same")
                else:
                    draft.write_text("same")
        assert target.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_exception_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError, match="keys must be"):
        write_json(file, {"b": 1, ("a", "tuple"): 1})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


def write_often(file: Path, value: int) -> None:
    for _ in range(50):
        write_json(file, [value] * 1000)


def test_processes_that_write_one_file_leave_one_of_their_versions(tmp_path: Path) -> None:
    file, spawn = tmp_path / "a.json", multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_often, args=(file, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert json.loads(file.read_text()) in ([0] * 1000, [1] * 1000)
    assert list(tmp_path.iterdir()) == [file]


def test_a_secret_leaves_numbers_ids_and_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password of digits would end in half of a number, and an id without it would name nothing."""
    monkeypatch.setenv("DATABASE_PASSWORD", "123456")
    record = {"id": "row-1234567", "ids": ["123456"], "seconds": 0.123456, "123456": 1, "raw": "it is 123456"}
    kept = record | {"raw": "it is [key]"}
    append_lines(tmp_path / "a.jsonl", [record, {"id": "x"}, record])
    assert list(read_lines(tmp_path / "a.jsonl")) == [kept, {"id": "x"}, kept]
    write_json(tmp_path / "a.json", record)
    assert json.loads((tmp_path / "a.json").read_text()) == kept
