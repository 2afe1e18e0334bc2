"""Read a folder of documents as passages: a few paragraphs each, under the name of their file."""

import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from crossover.models.errors import UserError, one_line
from crossover.programs.readers import encoding_of
from crossover.programs.records import Problem, fault, few
from crossover.programs.retrieval.base import Passage
from crossover.programs.words import windows, word_count

PASSAGE_WORDS = 120
"""Words up to which paragraphs that follow each other make one passage; a longer paragraph is cut between sentences."""
SENTENCE = re.compile(r"(\s*)(\S.*?(?:[.!?](?=\s)|[。！？][”’」』）]*|(?=\n)|\Z))", re.DOTALL)
"""White space and a sentence, or what stands in a line."""
BLOCKS = re.compile(r"p|div|section|article|[uo]l|li|table|tr|h[1-6]|br|title|blockquote|pre|d[dt]")
HIDDEN = frozenset(("script", "style", "noscript", "template"))


def read_folder(folder: Path, shown: str) -> tuple[list[Passage], list[Problem]]:
    """Return the passages of all documents below a folder, and the problems of those that cannot be read.

    A passage's title is the path of its file inside the folder; its id is that path, with `#2` and so on for further
    passages of one file.
    """
    passages, problems, others = list[Passage](), list[Problem](), list[str]()
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    for file in files:
        name, read = file.relative_to(folder).as_posix(), TEXTS.get(file.suffix.lower())
        if read is None:
            others.append(name)
            continue
        try:
            texts = list(passages_of(read(file.read_bytes())))
        except UserError as e:
            what, _, remedy = str(e).partition("; ")
            problems.append(fault(f"{shown}/{name}", what, remedy))
            continue
        # pypdf and python-docx raise errors of many kinds for a broken file.
        except Exception as e:
            problems.append(
                fault(f"{shown}/{name}", f"cannot be read: {one_line(e, 120)}", "save it again, or remove it")
            )
            continue
        if not texts:
            problems.append(
                Problem("warning", f"{shown}/{name}", "holds no text", "a scan needs text recognition first")
            )
        ids = [name if n == 1 else f"{name}#{n}" for n in range(1, len(texts) + 1)]
        passages += [Passage(i, t, name) for i, t in zip(ids, texts, strict=True)]
    if others:
        what = f"{len(others)} files are not read, such as {others[0]}"
        problems.append(Problem("note", shown, what, f"read are {', '.join(TEXTS)}"))
    if not passages and not problems:
        problems.append(fault(shown, "no documents", f"put {', '.join(TEXTS)} files there"))
    return passages, few(problems)


def passages_of(text: str) -> Iterator[str]:
    """Yield groups of paragraphs of at most `PASSAGE_WORDS` words."""
    group, words = "", 0
    for before, part in _parts(text):
        size = word_count(part)
        if group and words + size > PASSAGE_WORDS:
            yield group
            group, words = "", 0
        group = f"{group}{before}{part}" if group else part
        words += size
    if group:
        yield group


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Yield paragraphs; one that is longer than a passage in sentences, and such a sentence in pieces.

    Each comes behind what stands between it and the part before.
    """
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if word_count(paragraph) <= PASSAGE_WORDS:
            yield from [("\n", paragraph.strip())] if paragraph.strip() else []
            continue
        for n, sentence in enumerate(SENTENCE.finditer(paragraph)):
            between = "\n" if n == 0 or "\n" in sentence[1] else " " * bool(sentence[1])
            for piece in windows(sentence[2], PASSAGE_WORDS, PASSAGE_WORDS):
                yield between, piece


def gold_passages(names: Sequence[str], answers: Sequence[str], corpus: dict[str, list[Passage]]) -> list[str]:
    """Return the ids of the gold passages, where a name may be that of a file: its passages that hold an answer.

    Args:
        names: Ids of passages, or names of files.
        answers: The right answers of the example.
        corpus: File name to its passages.
    """
    found: list[str] = []
    for name in names:
        passages = corpus.get(name, [])
        holding = [p.id for p in passages if any(a.casefold() in p.text.casefold() for a in answers if a)]
        found += holding or [p.id for p in passages] or [name]
    return found


class _Text(HTMLParser):
    """Gather the text of a page, a paragraph for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in HIDDEN
        self.parts += ["\n\n"] if BLOCKS.fullmatch(tag) else []

    def handle_endtag(self, tag: str) -> None:
        # An end without its start hides nothing.
        self.hidden = max(0, self.hidden - (tag in HIDDEN))
        self.parts += ["\n\n"] if BLOCKS.fullmatch(tag) else []

    def handle_data(self, data: str) -> None:
        self.parts += [] if self.hidden else [re.sub(r"\s+", " ", data)]


def _plain(data: bytes) -> str:
    return data.decode(encoding_of(data))


def _html(data: bytes) -> str:
    parser = _Text()
    parser.feed(_plain(data))
    parser.close()
    return "".join(parser.parts)


def _pdf(data: bytes) -> str:
    try:
        from pypdf import PdfReader
    except ImportError:
        raise UserError("a PDF needs pypdf; pip install -c constraints.txt -e '.[docs]'") from None
    return "\n\n".join(page.extract_text() for page in PdfReader(BytesIO(data)).pages)


def _docx(data: bytes) -> str:
    try:
        from docx import Document
    except ImportError:
        raise UserError("a Word document needs python-docx; pip install -c constraints.txt -e '.[docs]'") from None
    document = Document(BytesIO(data))
    cells = [" | ".join(c.text for c in row.cells) for table in document.tables for row in table.rows]
    return "\n\n".join([*(p.text for p in document.paragraphs), *cells])


TEXTS: dict[str, Callable[[bytes], str]] = {
    **dict.fromkeys((".md", ".markdown", ".txt", ".rst"), _plain),
    **dict.fromkeys((".html", ".htm"), _html),
    ".pdf": _pdf,
    ".docx": _docx,
}
"""Suffix to what turns a document's bytes into text with blank lines between paragraphs."""
