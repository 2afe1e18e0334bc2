"""Hash the weights of models, adapters and checkpoints."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from crossover.models.cache_folder import cache_folder
from crossover.models.errors import UserError, one_line
from crossover.models.jsonl import write_json

LARGE = 16_000_000
"""Bytes from which the hash of a file is recorded for later processes; smaller files are hashed in 0.1 s."""
SETTLED = 2.0
"""Seconds after a change from which on a file's times tell its next change, whatever the file system rounds them to."""


def folder_sha256(folder: Path) -> str:
    """Return the hash of a model's or adapter's weights, configuration, tokenizer and template files."""
    return _sha256(weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return a model's or adapter's weights, configuration, tokenizer and template files."""
    return [f for f in folder.iterdir() if f.suffix in (".safetensors", ".json", ".jinja", ".model")]


def checkpoint_sha256(folder: Path) -> str:
    """Return the hash of all files of a checkpoint, the optimizer's state included."""
    return _sha256(f for f in folder.iterdir() if f.is_file())


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        facts = file.stat()
        state = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        digest.update(_file_digest(file.absolute(), state))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(file: Path, state: tuple[int, ...]) -> bytes:
    """Return the hash of a file; device, inode, size and times tell one state of it from another.

    The time of the last change of the inode is among them, which no program can set back.
    """
    record = cache_folder() / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:16]}.json"
    large = state[2] >= LARGE
    if large:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(record.read_text(encoding="utf-8"))
            if tuple(known["state"]) == state:
                return bytes.fromhex(known["sha256"])
    with file.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").digest()
    if large and time.time() - max(state[3:]) / 1e9 > SETTLED:
        # A cache that cannot be written costs the next process a second.
        with contextlib.suppress(OSError):
            write_json(record, {"state": state, "sha256": digest.hex()})
    return digest


def weights_sha256(source: Path | str) -> str:
    """Return the hash of the weights in a folder, or the commit of a hub id, of which the configuration alone is read.

    Raises:
        UserError: the configuration of a hub id cannot be had.
    """
    if isinstance(source, Path) or Path(source).is_dir():
        return folder_sha256(Path(source))
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        return str(extract_commit_hash(cached_file(source, "config.json"), None))
    except OSError as e:
        raise UserError(f"{source} cannot be read: {one_line(e, 200)}; check the name, or fetch it ahead") from e
