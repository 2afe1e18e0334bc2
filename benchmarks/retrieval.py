"""Time bm25 and dense retrieval over synthetic passages: `python benchmarks/retrieval.py [--passages N]`.

Each is timed beside what it is built on, in the same run: bm25s on its own words, and one numpy matrix product with a
partition. Vectors are random rows of length 1, as wide as all-MiniLM-L6-v2's: encoding is the model's time, not the
index's. Batches are interleaved, so that a slow minute hurts both alike.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossover.programs.retrieval.base import Passage
from crossover.programs.retrieval.bm25 import Bm25
from crossover.programs.retrieval.dense import Dense

BATCH, K, WIDTH, WORDS, VOCABULARY = 64, 10, 384, 60, 200_000
"""Questions a batch, hits of each, numbers a vector, words a passage, and words that there are."""


@dataclass
class Timed:
    """One way to search, with what building it took."""

    name: str
    search: Callable[[int], object]
    index_seconds: float
    index_mb: float
    seconds: list[float] = field(default_factory=list)
    """Seconds of each batch."""


def built(name: str, build: Callable[[], Callable[[int], object]], before: float) -> Timed:
    """Build an index and say how long it took and by how much the process's peak grew since it was `before` MB."""
    start = time.perf_counter()
    search = build()
    return Timed(name, search, time.perf_counter() - start, peak_mb() - before)


def peak_mb() -> float:
    """Return the most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def texts_of(n: int, words: int, seed: int) -> list[str]:
    """Return texts whose words follow Zipf's law, as those of a language do."""
    rng = np.random.default_rng(seed)
    drawn = np.minimum(rng.zipf(1.3, size=(n, words)), VOCABULARY)
    return [" ".join(f"w{i}" for i in row) for row in drawn]


def bm25_pair(n: int, batches: int) -> list[Timed]:
    """Return our BM25 and bm25s on the same words."""
    import bm25s

    corpus = [Passage(str(i), t) for i, t in enumerate(texts_of(n, WORDS, 0))]
    questions = texts_of(batches * BATCH, 8, 1)

    def batch(i: int) -> list[str]:
        return questions[i * BATCH : (i + 1) * BATCH]

    def ours() -> Callable[[int], object]:
        index = Bm25()
        index.index(corpus)
        return lambda i: index.search(batch(i), K)

    def plain() -> Callable[[int], object]:
        index = bm25s.BM25(backend="numpy")
        words = bm25s.tokenize([p.render() for p in corpus], stopwords="en", return_ids=False, show_progress=False)
        index.index(words, show_progress=False)

        def search(i: int) -> object:
            asked = bm25s.tokenize(batch(i), stopwords="en", return_ids=False, show_progress=False)
            return index.retrieve(asked, k=K, show_progress=False)

        return search

    return [built("bm25", ours, peak_mb()), built("bm25s alone", plain, peak_mb())]


def dense_pair(n: int, batches: int) -> list[Timed]:
    """Return our dense search and a plain matrix product over the same vectors."""
    rng, before = np.random.default_rng(0), peak_mb()

    def unit(rows: int) -> np.ndarray:
        vectors = rng.standard_normal((rows, WIDTH), dtype=np.float32)
        # numpy's norm would make a copy, which the index's peak would be charged with.
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        return vectors

    vectors, asked = unit(n), unit(batches * BATCH)

    def ours() -> Callable[[int], object]:
        index = Dense()
        index.index_vectors([str(i) for i in range(n)], vectors)
        return lambda i: index.search_vectors(asked[i * BATCH : (i + 1) * BATCH], K)

    def plain() -> Callable[[int], object]:
        def search(i: int) -> object:
            scores = asked[i * BATCH : (i + 1) * BATCH] @ vectors.T
            best = np.argpartition(scores, -K, axis=1)[:, -K:]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
            return np.take_along_axis(best, order, axis=1)

        return search

    # The vectors are the index, so that their memory counts.
    return [built("dense", ours, before), built("numpy alone", plain, peak_mb())]


def measure(pair: Sequence[Timed], batches: int) -> None:
    """Time every batch with both, in turns; the first batch warms up."""
    for i in range(batches):
        for timed in pair if i % 2 else list(pair)[::-1]:
            start = time.perf_counter()
            timed.search(i)
            if i:
                timed.seconds.append(time.perf_counter() - start)


def report(make: Callable[[int, int], list[Timed]], passages: int, batches: int) -> None:
    """Print one line for each way of a pair to search, and their ratio."""
    pair = make(passages, batches)
    measure(pair, batches)
    for t in pair:
        p50, p95 = (1000 * np.quantile(t.seconds, q) for q in (0.5, 0.95))
        # A process's peak never falls, so that the second's is hidden below the first's.
        memory = f", peak +{t.index_mb:.0f} MB" if t is pair[0] else ""
        print(f"{t.name:<12} index {t.index_seconds:.1f} s{memory}, batch p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    ratio = np.median(np.array(pair[0].seconds) / np.array(pair[1].seconds))
    print(f"{pair[0].name:<12} takes {ratio:.2f} times as long as {pair[1].name}")


def main() -> int:
    """Print the lines of each index, each in a process of its own, or the first's peak would hide the second's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--only", choices=("bm25", "dense"))
    flags = parser.parse_args()
    header = f"{flags.passages} passages, {flags.batches - 1} batches of {BATCH} questions, {K} hits each"
    print(header, flush=True)
    for name, make in (("bm25", bm25_pair), ("dense", dense_pair)):
        if flags.only in (None, name):
            arguments = (make, flags.passages, flags.batches)
            process = multiprocessing.get_context("spawn").Process(target=report, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
