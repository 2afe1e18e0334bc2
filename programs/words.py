"""Count and cut text by words, also in scripts that put no space between them."""

import re

UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, for a class of a regular expression."""
_WORD = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")
"""Two letters of a script without spaces count as a word."""


def word_count(text: str) -> int:
    """Return the number of words."""
    return sum(1 for _ in _WORD.finditer(text))


def windows(text: str, size: int, step: int) -> list[str]:
    """Return windows of `size` words, each `step` words after the one before, the last one with what is left.

    White space becomes single spaces. A text without words is one window.
    """
    text = " ".join(text.split())
    spans = [m.span() for m in _WORD.finditer(text)]
    starts = range(0, max(1, len(spans) - size + step), step)
    parts = [spans[n : n + size] for n in starts]
    return [text[part[0][0] : part[-1][1]] if part else text for part in parts]
