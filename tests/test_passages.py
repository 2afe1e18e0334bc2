"""Passages are found once, shared by every arm, and judged against the gold ones."""

import json
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
import tiny
from factories import task_with_corpus

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.read import read_experiment
from crossover.eval.experiment.spec import Experiment, Knowledge, Retrieval, plan
from crossover.eval.run.passages import Indexes, Passages
from crossover.programs.retrieval.base import Passage
from crossover.programs.retrieval.chunks import chunked
from crossover.programs.retrieval.ranking import Ranking, ndcg, rank_quality, reciprocal_rank
from crossover.programs.spec import TaskSpec


def passages_of(store: Path, retrieval: Retrieval | None = None) -> Passages:
    return Passages(task_with_corpus(), retrieval or Retrieval(k=2), Indexes(store))


def test_passages_are_found_once_and_shared(tmp_path: Path) -> None:
    task = task_with_corpus()
    first = passages_of(tmp_path).attach(task.test, "retrieved")
    kept = passages_of(tmp_path)
    assert [e["passages"] for e in kept.attach(task.test, "retrieved")] == [e["passages"] for e in first]
    assert kept.seconds == 0.0
    assert first[0]["passages"][0] == "beta: fact number beta"
    assert kept.ranking(task.test, "retrieved") == Ranking(1.0, 1.0, 1.0, 3)


def test_a_question_with_a_secret_is_searched_for_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "number beta")
    found = passages_of(tmp_path).find(["what is number beta?"])
    kept = passages_of(tmp_path)
    assert (kept.find(["what is number beta?"]), kept.seconds) == (found, 0.0)


def test_what_was_found_with_other_options_is_not_reused(tmp_path: Path) -> None:
    task = task_with_corpus()
    passages_of(tmp_path).attach(task.test, "retrieved")
    for other in (Retrieval(k=3), Retrieval(k=2, chunk_words=2)):
        passages = passages_of(tmp_path, other)
        passages.attach(task.test, "retrieved")
        assert passages.seconds > 0


def test_knowledge_decides_what_is_read(tmp_path: Path) -> None:
    test = task_with_corpus().test
    passages = passages_of(tmp_path, Retrieval(k=1))
    assert [e["passages"] for e in passages.attach(test[:1], "gold")] == [["beta: fact number beta"]]
    assert [e["passages"] for e in passages.attach(test[:1], "none")] == [[]]
    assert passages.ranking(test, "none") == Ranking(0.0, 0.0, 0.0, 3)
    assert passages.hits(test, "none") == {"1": False, "2": False, "3": False}


def test_noisy_adds_k_passages_that_are_not_gold_in_a_fixed_order(tmp_path: Path) -> None:
    test = task_with_corpus().test
    passages = passages_of(tmp_path, Retrieval(k=2))
    shown = passages.ids(test, "noisy")
    assert [len(set(ids)) for ids in shown] == [3, 3, 3]
    assert all(e["gold"][0] in ids for e, ids in zip(test, shown, strict=True))
    assert passages_of(tmp_path / "other", Retrieval(k=2)).ids(test, "noisy") == shown
    assert {ids.index(e["gold"][0]) for e, ids in zip(test, shown, strict=True)} != {0}


def test_one_index_serves_every_k(tmp_path: Path) -> None:
    indexes, task = Indexes(tmp_path), task_with_corpus()
    assert indexes.of(task, Retrieval(k=1)) is indexes.of(task, Retrieval(k=5))
    assert indexes.of(task, Retrieval(k=1)) is not indexes.of(task, Retrieval(k=1, chunk_words=8))


def test_a_program_looks_up_with_words_of_its_own(tmp_path: Path) -> None:
    passages = passages_of(tmp_path, Retrieval(k=1))
    for kept in (True, False):
        with dspy.context(rm=passages.live("retrieved", kept=kept)):
            assert dspy.Retrieve(k=1)("something about delta").passages == ["delta: fact number delta"]
    assert passages.live("gold") is None


def test_chunks_cover_every_word_and_remember_their_passage() -> None:
    words = [f"w{n}" for n in range(23)]
    parts, parent = chunked([Passage("a", " ".join(words), "T"), Passage("b", "short")], 8)
    assert {w for p in parts if parent[p.id] == "a" for w in p.text.split()} == set(words)
    assert all(len(p.text.split()) <= 8 and p.title == "T" for p in parts if parent[p.id] == "a")
    assert parts[-1] == Passage("b", "short")


def test_no_chunk_has_the_id_of_another_passage() -> None:
    words = " ".join(f"w{n}" for n in range(20))
    parts, parent = chunked([Passage("a.md", words), Passage("a.md#2", "short"), Passage("a.md#3", words)], 8)
    assert len({p.id for p in parts}) == len(parts) == len(parent)
    assert [p.id for p in parts if parent[p.id] == "a.md#2"] == ["a.md#2"]


def test_a_chunk_of_a_gold_passage_is_a_hit(tmp_path: Path) -> None:
    corpus = (Passage("long", " ".join(["filler"] * 30 + ["needle"])), Passage("other", "nothing here"))
    example = dspy.Example(id="q", question="where is the needle", answer="x", gold=["long"]).with_inputs("question")
    passages = Passages(task_with_corpus(corpus, (example,)), Retrieval(k=1, chunk_words=10), Indexes(tmp_path))
    (shown,) = passages.attach([example], "retrieved")
    assert "needle" in shown["passages"][0]
    assert len(shown["passages"][0].split()) <= 10
    assert passages.hits([example], "retrieved") == {"q": True}


def test_ranking_measures_match_their_definitions() -> None:
    assert reciprocal_rank(["x", "g"], {"g"}) == 0.5
    assert reciprocal_rank(["x", "y"], {"g"}) == 0.0
    assert ndcg(["g", "h", "x"], {"g", "h"}, 3) == 1.0
    assert ndcg(["x", "g"], {"g"}, 2) == pytest.approx(0.6309297535714575)  # 1 / log2(3)
    found = rank_quality([["g", "x"], ["x", "g"], ["x"]], [{"g", "h"}, {"g"}, set()])
    assert found is not None
    assert (found.recall, found.mrr, found.with_gold) == (0.75, 0.75, 2)
    assert rank_quality([["x"]], [set()]) is None


def test_retrieval_is_a_factor_only_where_something_is_retrieved() -> None:
    experiment = Experiment(
        "x",
        (TaskSpec("t", program="rag"),),
        (tiny.SPEC,),
        (MethodSpec("few_shot"),),
        knowledge=(Knowledge("none", "none"), Knowledge("retrieved", "retrieved"), Knowledge("noisy", "gold")),
        retrieval=(Retrieval(k=1), Retrieval("hybrid", 1, options={"alpha": 0.3})),
    )
    cells = plan(experiment)
    labels = [(c.knowledge.label, c.retrieval.label if c.retrieval else "") for c in cells]
    assert labels == [
        ("none", ""),
        ("retrieved", "bm25 k=1"),
        ("retrieved", "hybrid k=1 alpha=0.3"),
        ("noisy>gold", "bm25 k=1"),
        ("noisy>gold", "hybrid k=1 alpha=0.3"),
    ]
    hashes = {"split_sha256": "s", "program_sha256": "p", "model_sha256": "m", "limit": None}
    assert len({c.key(**hashes, retriever="") for c in cells}) == 5
    assert cells[2].key(**hashes, retriever="a") != cells[2].key(**hashes, retriever="b")
    # Neither patience nor who pays changes an answer.
    patient = replace(cells[0], model=replace(tiny.SPEC, timeout=600, api_key="${OTHER_KEY}"))
    assert (patient, patient.key(**hashes, retriever="")) == (cells[0], cells[0].key(**hashes, retriever=""))


def test_what_train_reads_is_no_factor_of_an_untrained_arm() -> None:
    experiment = Experiment(
        "x",
        (TaskSpec("t", program="rag"),),
        (tiny.SPEC,),
        (MethodSpec("zero_shot"), MethodSpec("sft")),
        knowledge=(Knowledge("gold", "retrieved"), Knowledge("none", "retrieved"), Knowledge("noisy", "gold")),
        train_sizes=(8,),
        seeds=(0, 1),
    )
    assert [c.title for c in plan(experiment) if c.method.name == "zero_shot"] == [
        "zero_shot, retrieved, bm25 k=3, seed=0",
        "zero_shot, gold, seed=0",
    ]
    assert len(plan(experiment)) == 2 + 3 * 2


def test_a_list_of_retrievals_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        f"version: 1\ntasks: [stdlib_rag]\nmodels: [{tiny.model()}]\nmethods: [zero_shot]\n"
        "knowledge: [retrieved, noisy]\n"
        "retrieval:\n  - {backend: bm25, k: 1}\n  - {backend: hybrid, k: 5, alpha: 0.25, chunk_words: 50}\n"
    )
    experiment, problems = read_experiment(file)
    assert problems == []
    assert experiment is not None
    assert experiment.retrieval == (Retrieval("bm25", 1), Retrieval("hybrid", 5, 50, {"alpha": 0.25}))
    assert len(plan(experiment)) == 4


def test_a_question_more_is_a_line_more(tmp_path: Path) -> None:
    search = passages_of(tmp_path).live("retrieved")
    assert search is not None
    seen = b""
    for number in range(1, 5):
        search(f"what is {number}?")
        (file,) = (tmp_path / "passages").glob("bm25-k2-*.jsonl")
        assert file.read_bytes().startswith(seen)
        seen = file.read_bytes()
        assert seen.count(b"\n") == number
    with file.open("a") as f:
        f.write('["torn by a kill')
    assert [len(ids) for ids in passages_of(tmp_path).find(["what is 1?", "what is new?"])] == [2, 2]


def test_found_passages_are_kept_as_json_lines(tmp_path: Path) -> None:
    passages_of(tmp_path).attach(task_with_corpus().test, "retrieved")
    (file,) = (tmp_path / "passages").glob("bm25-k2-*.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    assert {line["question"] for line in lines} == {"what is beta?", "what is gamma?", "what is delta?"}
