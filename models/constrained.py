"""Constrained decoding: an answer follows a grammar, token by token, by the library llguidance."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from dspy import lm15
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from crossover.models.grammars import Grammar, grammar_of


class CompiledGrammar(NamedTuple):
    """A grammar for one tokenizer; the constraints of all rows start as copies of it."""

    matcher: LLMatcher
    """Its state after the opening."""
    opening: list[int]
    """Token ids that every answer begins with."""
    end: int | None
    """Token id that ends an answer which the grammar leaves nothing to add to; None where a line break does."""


class Constraint:
    """The grammar's state in the answer of one row."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        """Start after the opening."""
        self._matcher, self._end = grammar.matcher.deep_copy(), grammar.end
        self.ended = False

    def mask(self) -> bytes:
        """Return the tokens that may come next, one bit each, the lowest first, in whole 32-bit words."""
        return self._matcher.compute_bitmask()

    def advance(self, token: int) -> list[int]:
        """Accept the next token, and return all further ones if the grammar leaves no choice up to the end.

        Raises:
            RuntimeError: the mask did not allow the token, or llguidance has given up on the grammar.
        """
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} breaks its grammar: {self._matcher.get_error()}")
        if token == self._end:
            self.ended = True
            return []
        forced = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        # On a copy: a matcher that is rolled back over a choice's tokens loses its place.
        ahead = self._matcher.deep_copy()
        ahead.consume_tokens(forced)
        self.ended = ahead.is_stopped()
        if not self.ended:
            return []
        return forced if self._end is None else [*forced, self._end]


def forbidden_tokens(constraints: Sequence[Constraint], vocabulary: int) -> torch.Tensor:
    """Return which tokens must not come next, bool, shape (constraints, vocabulary)."""
    bits = np.frombuffer(b"".join(c.mask() for c in constraints), np.uint8).reshape(len(constraints), -1)
    return torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little", count=vocabulary) == 0)


class Grammars:
    """The grammars of one tokenizer's answers, each compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, *, at_line: bool) -> None:
        """Read the tokenizer, which takes about a second; answers end with a line break if `at_line`, else with eos.

        `vocabulary` is the width of the model's logits.
        """
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)))
        self._end: int | None = None if at_line else tokenizer.eos_token_id
        self._close = ' "\\n"' if at_line else ""
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        # Some tokenizers write a space before the first word of every text.
        self._spaced = self._tokenizer.decode_bytes(self._encode("a")).startswith(b" ")
        self._compiled: dict[str, CompiledGrammar] = {}

    def compiled(self, schema: Mapping[str, Any]) -> CompiledGrammar:
        """Return the grammar of a request's schema.

        Raises:
            lm15.UnsupportedFeatureError: llguidance cannot hold answers to it.
        """
        key = json.dumps(schema)
        if key not in self._compiled:
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(self._lark(grammar_of(schema))))
            if matcher.is_error():
                raise lm15.UnsupportedFeatureError(f"no grammar for constrained decoding: {matcher.get_error()}")
            opening = matcher.compute_ff_tokens()
            matcher.consume_tokens(opening)
            self._compiled[key] = CompiledGrammar(matcher, opening, self._end)
        return self._compiled[key]

    def _lark(self, grammar: Grammar) -> str:
        """Return the whole grammar: its choices spelled in tokens, and what stands around an answer."""
        begins = grammar.rules.removeprefix("answer: ").split()[0]
        choices = [
            f"{name}: {' | '.join(self._tokens(t, first=name == begins) for t in texts)}"
            for name, texts in grammar.choices.items()
        ]
        space = '" " ' if self._spaced and begins not in grammar.choices else ""
        return "\n".join([f"start: {space}answer{self._close}", grammar.rules, *choices])

    def _tokens(self, text: str, *, first: bool) -> str:
        ids = self._encode(text) if first else self._tokenizer.tokenize_str(text)
        return " ".join(f"<[{i}]>" for i in ids)
