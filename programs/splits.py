"""Split examples by seeded hash, so that a split depends neither on file order nor on chance."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def split_in_proportion(
    rows: Sequence[T], *, keys: Callable[[T], Iterable[str]], label: Callable[[T], str], shares: Mapping[str, float]
) -> dict[str, list[T]]:
    """Return the rows as train and the splits of `shares`, each with its share of every label.

    Rows that share a key stay together. The hash of the keys decides who goes where, so that the order of the rows does
    not. The first rows of every label go into train.
    """

    def place(group: list[int]) -> tuple[str, float]:
        kinds = Counter(label(rows[n]) for n in group)
        return min(kinds, key=lambda k: (-kinds[k], k)), min(fraction(k) for n in group for k in keys(rows[n]))

    order = sorted((place(group), group) for group in joined(rows, keys))
    wanted = {"train": 1 - sum(shares.values()), **shares}
    splits: dict[str, list[int]] = {name: [] for name in wanted}
    reached, seen = 0, set[str]()
    for (kind, _), group in order:
        reached += len(group)
        open_to = [n for n in wanted if n == "train" or (kind in seen and len(group) <= wanted[n] * len(rows))]
        splits[max(open_to, key=lambda n: wanted[n] * reached - len(splits[n]))] += group
        seen.add(kind)
    return {name: [rows[n] for n in sorted(numbers)] for name, numbers in splits.items()}


def joined(rows: Sequence[T], keys: Callable[[T], Iterable[str]]) -> list[list[int]]:
    """Return the numbers of the rows that are linked by a shared key, directly or through others, in groups."""
    parent = list(range(len(rows)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    first: dict[str, int] = {}
    for n, row in enumerate(rows):
        for key in keys(row):
            parent[root(n)] = root(first.setdefault(key, n))
    groups: dict[int, list[int]] = {}
    for n in range(len(rows)):
        groups.setdefault(root(n), []).append(n)
    return list(groups.values())
