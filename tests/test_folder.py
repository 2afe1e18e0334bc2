"""A folder of documents as people have it becomes passages, under the names of the files."""

import json
from pathlib import Path

import docx
from pypdf import PdfWriter

from crossover.programs.data import load_and_check
from crossover.programs.folder import PASSAGE_WORDS, gold_passages, passages_of, read_folder
from crossover.programs.retrieval.base import Passage
from crossover.programs.retrieval.chunks import chunked
from crossover.programs.spec import TaskSpec
from crossover.programs.words import word_count


def folder(path: Path) -> Path:
    """Fill a folder with a document of each kind."""
    (path / "sub").mkdir(parents=True)
    (path / "a.md").write_text(
        "# Leave\n\nStaff have 28 days.\n\n" + "word " * 100 + "\n\n" + "The office closes. " * 20
    )
    (path / "sub" / "b.HTML").write_text(
        "<html><head><style>p {x}</style></head><body><h1>Health</h1><p>A note\n is <b>needed</b>.</p></body></html>"
    )
    (path / "c.txt").write_bytes("Prämie: 5 €".encode("cp1252"))
    document = docx.Document()
    document.add_paragraph("Trips are booked early.")
    document.add_table(1, 2).cell(0, 1).text = "130 euros"
    document.save(str(path / "d.docx"))
    blank = PdfWriter()
    blank.add_blank_page(100, 100)
    blank.write(path / "e.pdf")
    (path / "f.pdf").write_bytes(b"no pdf")
    (path / "logo.png").write_bytes(b"")
    return path


def test_each_document_gives_passages_with_its_name(tmp_path: Path) -> None:
    passages, problems = read_folder(folder(tmp_path / "docs"), "docs")
    texts = {p.id: p.text for p in passages}
    assert list(texts) == ["a.md", "a.md#2", "c.txt", "d.docx", "sub/b.HTML"]
    assert {p.title for p in passages} == {"a.md", "c.txt", "d.docx", "sub/b.HTML"}
    assert texts["a.md"].startswith("# Leave\nStaff have 28 days.\nword word")
    assert (texts["c.txt"], texts["sub/b.HTML"]) == ("Prämie: 5 €", "Health\nA note is needed .".replace(" .", "."))
    assert texts["d.docx"] == "Trips are booked early.\n| 130 euros"
    assert [(p.level, p.where, p.what.partition(":")[0]) for p in problems] == [
        ("warning", "docs/e.pdf", "holds no text"),
        ("error", "docs/f.pdf", "cannot be read"),
        ("note", "docs", "1 files are not read, such as logo.png"),
    ]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    parts = list(passages_of("One two three four. " * 100 + "x " * 300))
    assert all(len(p.split()) <= PASSAGE_WORDS for p in parts)
    assert parts[0].endswith("four.")
    assert " ".join(" ".join(parts).split()) == " ".join(("One two three four. " * 100 + "x " * 300).split())


def test_a_script_without_spaces_is_cut_too() -> None:
    text = "申请人应当在三十日内提交材料。" * 60
    parts = list(passages_of(text))
    assert len(parts) > 1
    assert all(word_count(p) <= PASSAGE_WORDS and p.endswith("。") for p in parts)
    assert "".join(parts) == text
    chunks, _ = chunked([Passage("a", text.replace("。", ""))], 50)
    assert {word_count(c.text) for c in chunks[:-1]} == {50}
    assert word_count("Das Haus 是白色的 .") == 5


def test_an_end_tag_without_its_start_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>A</p></noscript><p>the policy</p><script>x()</script><p>ends</p>")
    passages, _ = read_folder(tmp_path, "docs")
    assert passages[0].text.split() == ["A", "the", "policy", "ends"]


def test_the_gold_of_a_document_is_its_passages_with_the_answer() -> None:
    corpus = {"a.md": [Passage("a.md", "Staff have 28 days.", "a.md"), Passage("a.md#2", "It closes.", "a.md")]}
    assert gold_passages(["a.md"], ["28 Days"], corpus) == ["a.md"]
    assert gold_passages(["a.md"], ["none of it"], corpus) == ["a.md", "a.md#2"]
    assert gold_passages(["b.md"], ["x"], corpus) == ["b.md"]


def test_a_task_retrieves_from_a_folder(tmp_path: Path) -> None:
    folder(tmp_path / "docs")
    (tmp_path / "docs" / "f.pdf").unlink()
    rows = [{"question": f"how many {i}?", "answer": "28", "source": "a.md"} for i in range(200)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    roles = {"question": "input", "answer": "output", "source": "gold"}
    task, problems = load_and_check(
        TaskSpec("q", "rag", {"file": "q.jsonl"}, fields=roles, corpus="docs"), base=tmp_path
    )
    assert task is not None, problems
    assert task.test[0].gold == ["a.md"]
    assert len(task.corpus) == 5
