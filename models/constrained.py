"""Constrained decoding among a fixed set of answers: a trie of their token ids gives the tokens that may come next."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Trie = dict[int, "Trie"]
"""Next token id to the trie of what may follow it; a token that ends the answer leads to an empty trie."""


def response_format(answers: Sequence[str]) -> dict[str, Any]:
    """Return the request's `response_format` that allows these answers alone: a JSON schema, as OpenAI writes it."""
    return {"type": "json_schema", "json_schema": {"name": "choice", "schema": {"enum": list(answers)}}}


def allowed_answers(response_format: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the answers that a request's format, as DSPy hands it on, allows; empty when it lists none."""
    schema = (response_format or {}).get("schema") or {}
    return tuple(str(a) for a in schema.get("enum") or ())


def build_trie(answers: Iterable[Sequence[int]], end: int) -> Trie:
    """Return the trie of the answers' token ids, each followed by the token `end`."""
    root: Trie = {}
    for ids in answers:
        node = root
        for token in [*ids, end]:
            node = node.setdefault(token, {})
    return root
