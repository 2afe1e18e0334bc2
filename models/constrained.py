"""Constrained decoding: an answer follows a grammar, token by token, by the library llguidance."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
    ends: tuple[int, ...]
    """Token ids that end an answer, the usual one first; empty where a line break of the grammar does."""
    start: LLMatcher
    """Its state before the opening."""
    lark: str
    """The whole grammar, for a server that reads it with a tokenizer of its own: the ends are part of it."""


class Constraint:
    """The grammar's state in the answer of one row."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        """Start after the opening."""
        self._matcher, self._ends = grammar.matcher.deep_copy(), grammar.ends
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
        if token in self._ends:
            self.ended = True
            return []
        ahead, forced = _ahead(self._matcher)
        self.ended = ahead.is_stopped()
        return [*forced, *self._ends[:1]] if self.ended else []


def replayed(grammar: CompiledGrammar, tokens: Sequence[int], max_tokens: int) -> tuple[list[int], bool]:
    """Return the tokens of an answer that a server wrote under a grammar, and whether it is whole.

    The server counts each token and forces none: here as anywhere, `max_tokens` counts those that the model chose.

    Raises:
        RuntimeError: the server broke the grammar.
    """
    constraint, kept = Constraint(grammar._replace(matcher=grammar.start)), list[int]()
    for token in tokens:
        if len(kept) - len(grammar.opening) >= max_tokens:
            break
        kept.append(token)
        forced = constraint.advance(token)
        if constraint.ended:
            return kept + forced, True
    return kept, False


def _ahead(matcher: LLMatcher) -> tuple[LLMatcher, list[int]]:
    """Return a copy behind the tokens that the grammar forces next, and these.

    A copy, because a matcher that is rolled back over the tokens of a choice loses its place.
    """
    ahead, forced = matcher.deep_copy(), [] if matcher.is_stopped() else matcher.compute_ff_tokens()
    ahead.consume_tokens(forced)
    return ahead, forced


def forbidden_tokens(constraints: Sequence[Constraint], vocabulary: int) -> torch.Tensor:
    """Return which tokens must not come next, bool, shape (constraints, vocabulary)."""
    bits = np.frombuffer(b"".join(c.mask() for c in constraints), np.uint8).reshape(len(constraints), -1)
    return torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little", count=vocabulary) == 0)


class Grammars:
    """The grammars of one tokenizer's answers, each compiled once."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        ends: Iterable[int],
        *,
        at_line: bool,
        opened: bool = False,
    ) -> None:
        """Read the tokenizer, which takes about a second.

        `vocabulary` is the width of the model's logits. Answers end with a token of `ends`, or with a line break if
        `at_line`. Before `opened` ones stands other text, such as empty `<think>` tags.
        """
        known = sorted(ends, key=lambda token: token != tokenizer.eos_token_id)
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=known or None)
        self._ends = () if at_line else tuple(known)
        self._close = ' "\\n"' if at_line else ""
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        # Some tokenizers write a space before the first word of every text.
        self._opened = opened
        self._spaced = not opened and self._tokenizer.decode_bytes(self._encode("a")).startswith(b" ")
        self._compiled: dict[str, CompiledGrammar] = {}

    def compiled(self, schema: Mapping[str, Any]) -> CompiledGrammar:
        """Return the grammar of a request's schema.

        Raises:
            lm15.UnsupportedFeatureError: llguidance cannot hold answers to it.
        """
        key = json.dumps(schema)
        if key not in self._compiled:
            grammar = grammar_of(schema)
            matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(self._lark(grammar)))
            if matcher.is_error():
                raise lm15.UnsupportedFeatureError(f"no grammar for constrained decoding: {matcher.get_error()}")
            ahead, opening = _ahead(matcher)
            # An answer that is forced to its end is decoded all the same, so that it has a token to end with.
            whole = ahead.is_stopped()
            begun = (matcher, []) if whole else (ahead, opening)
            self._compiled[key] = CompiledGrammar(*begun, self._ends, matcher, self._lark(grammar, ends=self._ends))
        return self._compiled[key]

    def _lark(self, grammar: Grammar, ends: Sequence[int] = ()) -> str:
        """Return the whole grammar: its choices spelled in tokens, what stands around an answer, and one of `ends`."""
        begins = grammar.rules.removeprefix("answer: ").split()[0]
        choices = [
            f"{name}: {' | '.join(self._tokens(t, first=name == begins) for t in texts)}"
            for name, texts in grammar.choices.items()
        ]
        space = '" " ' if self._spaced and begins not in grammar.choices else ""
        end = ["end: " + " | ".join(f"<[{i}]>" for i in ends)] if ends else []
        close = f"{self._close}{' end' if end else ''}"
        return "\n".join([f"start: {space}answer{close}", grammar.rules, *choices, *end])

    def _tokens(self, text: str, *, first: bool) -> str:
        ids = self._encode(text) if first and not self._opened else self._tokenizer.tokenize_str(text)
        return " ".join(f"<[{i}]>" for i in ids)
