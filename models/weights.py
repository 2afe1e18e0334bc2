"""Hash the weights of models, adapters and checkpoints."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def folder_sha256(folder: Path) -> str:
    """Return the hash of a model's or adapter's weights, configuration, tokenizer and template files."""
    return _sha256(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json", ".jinja", ".model"))


def checkpoint_sha256(folder: Path) -> str:
    """Return the hash of all files of a checkpoint, the optimizer's state included."""
    return _sha256(f for f in folder.iterdir() if f.is_file())


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode())
        facts = file.stat()
        digest.update(_file_digest(file.absolute(), facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_digest(file: Path, inode: int, size: int, modified: int) -> bytes:
    """Return the hash of a file; the facts that tell one state of it from another are part of the cache's key."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
