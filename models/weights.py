"""Tell one set of weights from another."""

import hashlib
from pathlib import Path


def folder_sha256(folder: Path) -> str:
    """Return the hash of a model's or adapter's weights, configuration, tokenizer and template files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(file.name.encode())
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()
