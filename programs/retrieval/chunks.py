"""Cut long passages into overlapping windows of words, each a passage of its own."""

from collections.abc import Sequence
from dataclasses import replace

from crossover.programs.retrieval.base import Passage

OVERLAP = 0.25
"""Share of a window that the next one repeats, so that a sentence cut by one is whole in another."""


def chunked(corpus: Sequence[Passage], words: int) -> tuple[list[Passage], dict[str, str]]:
    """Return the windows of all passages, and window id to passage id; 0 words leaves passages whole.

    A window has the title of its passage; a passage that fits one window keeps its id.
    """
    if not words:
        return list(corpus), {p.id: p.id for p in corpus}
    step, parts, parent = max(1, round(words * (1 - OVERLAP))), list[Passage](), dict[str, str]()
    for passage in corpus:
        text = passage.text.split()
        starts = range(0, max(1, len(text) - words + step), step)
        for n, start in enumerate(starts):
            part = (
                passage
                if len(starts) == 1
                else replace(passage, id=f"{passage.id}#{n}", text=" ".join(text[start : start + words]))
            )
            parts.append(part)
            parent[part.id] = passage.id
    return parts, parent
