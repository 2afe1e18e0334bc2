"""Hash the weights of models, adapters and checkpoints."""

import hashlib
from collections.abc import Iterable
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
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()
