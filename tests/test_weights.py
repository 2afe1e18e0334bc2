"""The hash of a large file is recorded, and computed again whenever the file may have changed."""

import hashlib
import time
from pathlib import Path

import pytest

from crossover.models.weights import LARGE, _file_digest


@pytest.mark.parametrize(("size", "recorded"), [(LARGE, True), (LARGE - 1, False)])
def test_a_large_file_is_hashed_once_for_each_of_its_states(
    size: int, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    file, settled = tmp_path / "model.safetensors", (1, 2, size, 3, 4)
    hashes = []
    for content in (b"a", b"b"):
        file.write_bytes(content * size)
        _file_digest.cache_clear()
        hashes.append(_file_digest(file, settled))
    assert (hashes[0] == hashes[1]) == recorded
    assert _file_digest(file, (*settled[:4], 5)) == hashlib.sha256(b"b" * size).digest()


def test_a_file_that_has_just_changed_or_a_damaged_record_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a" * LARGE)
    in_an_hour = time.time_ns() + 3600 * 10**9
    _file_digest(file, (1, 2, LARGE, in_an_hour, in_an_hour))
    assert not (tmp_path / "cache").exists()
    _file_digest(file, (1, 2, LARGE, 3, 4))
    (record,) = (tmp_path / "cache" / "hashes").iterdir()
    record.write_text("{")
    _file_digest.cache_clear()
    assert _file_digest(file, (1, 2, LARGE, 3, 4)) == hashlib.sha256(b"a" * LARGE).digest()
