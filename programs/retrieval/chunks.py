"""Cut long passages into overlapping windows of words, each a passage of its own."""

from collections.abc import Sequence
from dataclasses import replace

from crossover.programs.retrieval.base import Passage
from crossover.programs.words import windows

OVERLAP = 0.25
"""Share of a window that the next one repeats, so that a sentence cut by one is whole in another."""


def chunked(corpus: Sequence[Passage], words: int) -> tuple[list[Passage], dict[str, str]]:
    """Return the windows of all passages, and window id to passage id; 0 words leaves passages whole.

    A window has the title of its passage; a passage that fits one window keeps its id.
    """
    if not words:
        return list(corpus), {p.id: p.id for p in corpus}
    step, known = max(1, round(words * (1 - OVERLAP))), {p.id for p in corpus}
    parts, parent = list[Passage](), dict[str, str]()
    for passage in corpus:
        texts = windows(passage.text, words, step)
        for n, text in enumerate(texts):
            part = passage if len(texts) == 1 else replace(passage, id=f"{passage.id}#{n}", text=text)
            while part is not passage and part.id in known:
                # The passages of one file are named so too.
                part = replace(part, id=f"{part.id}~")
            parts.append(part)
            parent[part.id] = passage.id
    return parts, parent
