"""Cut examples into splits by seeded hash, so that a split never depends on file order or on chance."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class _Spaces(dict[int, str]):
    """Punctuation as spaces, for `str.translate`; each character is looked up once."""

    def __missing__(self, code: int) -> str:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else chr(code)
        return self[code]


_SPACES = _Spaces()


def fold(text: str) -> str:
    """Return the text as it counts for equality: casefolded, without punctuation, with single spaces."""
    kept = text.casefold().translate(_SPACES)
    return " ".join(kept.split()) or " ".join(text.split())


def opening(text: str) -> str:
    """Return the first eight words as they count for equality: what near-duplicates share."""
    return " ".join(fold(text).split()[:8])


def fraction(text: str, *, seed: int = 0) -> float:
    """Return a number in [0, 1) that depends on nothing but the seed and the text."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") / 2**64


def split_by_hash(
    rows: Iterable[T], *, group: Callable[[T], str], shares: Mapping[str, float], seed: int = 0
) -> dict[str, list[T]]:
    """Return the rows by split; rows of one group stand in one split, and `shares` add up to 1."""
    splits: dict[str, list[T]] = {name: [] for name in shares}
    for row in rows:
        position, reached = fraction(group(row), seed=seed), 0.0
        for name, share in shares.items():
            reached += share
            if position < reached or name == list(shares)[-1]:
                splits[name].append(row)
                break
    return splits
