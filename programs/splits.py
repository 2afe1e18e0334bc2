"""Split examples by seeded hash, so that a split depends neither on file order nor on chance."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class _Spaces(dict[int, str]):
    """Map punctuation to spaces, for `str.translate`; each character is looked up once."""

    def __missing__(self, code: int) -> str:
        self[code] = " " if unicodedata.category(chr(code)).startswith("P") else chr(code)
        return self[code]


_SPACES = _Spaces()


def fold(text: str) -> str:
    """Return the text normalised for comparison: casefolded, without punctuation, with single spaces."""
    words = text.casefold().translate(_SPACES)
    return " ".join(words.split()) or " ".join(text.split())


def opening(text: str) -> str:
    """Return the first eight words normalised for comparison; near-duplicates share them."""
    return " ".join(fold(text).split()[:8])


def fraction(text: str, *, seed: int = 0) -> float:
    """Return a pseudo-random number in [0, 1) that depends on the seed and the text alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") / 2**64


def split_by_hash(
    rows: Iterable[T], *, group: Callable[[T], str], shares: Mapping[str, float], seed: int = 0
) -> dict[str, list[T]]:
    """Return the rows by split; rows of one group go into the same split, and `shares` add up to 1."""
    splits: dict[str, list[T]] = {name: [] for name in shares}
    for row in rows:
        position, reached = fraction(group(row), seed=seed), 0.0
        for name, share in shares.items():
            reached += share
            if position < reached or name == list(shares)[-1]:
                splits[name].append(row)
                break
    return splits
