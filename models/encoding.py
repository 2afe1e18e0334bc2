"""Encode prompts for one tokenizer: the beginning that many prompts share is rendered and tokenized once."""

import re
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment

from crossover.models.text import break_controls, control_tokens

Messages = Sequence[dict[str, str]]

PROBES = ("q7", 'q7 "\\ <&>\n\n \u00e9  7q')
"""Contents that show whether a template writes a last message as it stands; no template writes them by itself."""
REMEMBERED = 8
"""Beginnings that an encoder remembers."""


class Beginning(NamedTuple):
    """The part of a prompt that does not depend on the content of its last message."""

    ids: np.ndarray
    """Token ids up to the last control token before the content, int32, shape (tokens,)."""
    before: str
    """Text between that token and the content."""
    after: str
    """Text behind the content."""


class PromptEncoder:
    """Turn messages into the token ids of their prompt; those of a known beginning are not computed again.

    Prompts are split behind a control token, where a tokenizer splits any text. They are encoded whole where there is
    no such token, where the template looks into the last message, and where the first prompt of a beginning shows that
    the tokens of its parts are not those of the whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Encode for `tokenizer`, whose template must not change any more."""
        self.tokenizer = tokenizer
        self._controls = control_tokens(tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        self._borders = [t.content for t in added if not (t.normalized or t.rstrip or t.single_word)]
        self._sought = sought_texts(tokenizer.get_chat_template())
        self._beginnings: dict[object, Beginning | None] = {}
        """None for one that cannot be split off; the oldest first."""
        self._seen_once: deque[object] = deque(maxlen=REMEMBERED)

    def encode(self, messages: Messages) -> list[int]:
        """Return the token ids of a prompt, up to the start of the answer."""
        ids: list[int] = self.encode_all(messages)[0].tolist()
        return ids

    def encode_all(self, messages: Messages, contents: Sequence[str] | None = None) -> list[np.ndarray]:
        """Return the token ids of a prompt for each content of the last message, int32, each of shape (tokens,).

        Without contents, the one of the last message is taken.
        """
        last = [messages[-1]["content"]] if contents is None else contents
        contents = [break_controls(c, self._controls) for c in last]
        beginning = self._beginning(messages, contents)
        if beginning is None:
            return [self._whole(messages, c) for c in contents]
        plain = [c for c in contents if self._is_shown_as_it_stands(c)]
        joined = dict(zip(plain, self._joined(beginning, plain), strict=True)) if plain else {}
        return [joined[c] if c in joined else self._whole(messages, c) for c in contents]

    def _beginning(self, messages: Messages, contents: Sequence[str]) -> Beginning | None:
        """Return the beginning of these prompts, split off when it comes a second time or with several contents."""
        key = (*((m["role"], m["content"]) for m in messages[:-1]), messages[-1]["role"])
        if key not in self._beginnings:
            if len(contents) == 1 and key not in self._seen_once:
                self._seen_once.append(key)
                return None
            if len(self._beginnings) == REMEMBERED:
                del self._beginnings[next(iter(self._beginnings))]
            self._beginnings[key] = self._split_off(messages, contents[0])
        return self._beginnings[key]

    def _split_off(self, messages: Messages, content: str) -> Beginning | None:
        around = [self._text(messages, probe).rpartition(probe) for probe in PROBES]
        if len({(before, after) for before, _, after in around}) > 1:
            return None
        before, _, after = around[0]
        border = max((before.rfind(t) + len(t) for t in self._borders if t in before), default=0)
        if not border:
            return None
        beginning = Beginning(self._tokens([before[:border]])[0], before[border:], after)
        tried = [content, *PROBES] if self._is_shown_as_it_stands(content) else PROBES
        same = all(np.array_equal(self._joined(beginning, [c])[0], self._whole(messages, c)) for c in tried)
        return beginning if same else None

    def _joined(self, beginning: Beginning, contents: Sequence[str]) -> list[np.ndarray]:
        ends = self._tokens([f"{beginning.before}{c}{beginning.after}" for c in contents])
        return [np.concatenate([beginning.ids, end]) for end in ends]

    def _is_shown_as_it_stands(self, content: str) -> bool:
        """Return whether the template can have no reason to write anything else than this content."""
        return content == content.strip() != "" and not any(text in content for text in self._sought)

    def _whole(self, messages: Messages, content: str) -> np.ndarray:
        return self._tokens([self._text(messages, content)])[0]

    def _text(self, messages: Messages, content: str) -> str:
        """Return the prompt with `content` in the last message, which holds no control tokens any more."""
        turns = [{"role": m["role"], "content": break_controls(m["content"], self._controls)} for m in messages[:-1]]
        turns.append({"role": messages[-1]["role"], "content": content})
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _tokens(self, texts: list[str]) -> list[np.ndarray]:
        none = {"return_attention_mask": False, "return_token_type_ids": False}
        rows = self.tokenizer(texts, add_special_tokens=False, **none)["input_ids"]
        return [np.asarray(row, np.int32) for row in rows]


def sought_texts(template: str) -> list[str]:
    """Return the texts that a chat template may look for in a message, such as `</think>`."""
    literals = [str(t.value) for t in Environment().lexer.tokenize(template) if t.type == "string"]
    return [text.strip() for text in literals if len(text.strip()) > 2 and re.search(r"[^\w\s]", text)]
