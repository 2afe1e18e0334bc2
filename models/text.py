"""Convert between text and a local model's tokens: chat template, control tokens, pieces of a stream."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

FALLBACK_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '\n=> ' if m['role'] == 'user' else '\n\n' }}{% endfor %}"
)
"""For base models without a chat template: the answer follows an arrow and ends at the line break."""

SYSTEM_INTO_USER = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' %}{% set messages = [{'role': messages[1]['role'],"
    " 'content': messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)
"""Goes before a template that takes no system turn (Gemma 1 and 2): what follows sees it in the user's turn."""
MARK = "q7"
"""A text that no template writes by itself."""


def mend_tokenizer(tokenizer: Any) -> list[str]:
    """Give a tokenizer what its chat template needs, and return what a reader of the results must know of it.

    A template without a system turn shows the instructions in the user's turn; a tokenizer without tokens that end a
    turn or fill a batch gets the one that its template ends a turn with.
    """
    remarks = []
    if isinstance(tokenizer.chat_template, str) and not _shows_system(tokenizer):
        tokenizer.chat_template = SYSTEM_INTO_USER + tokenizer.chat_template
        remarks.append("the chat template takes no system turn: the instructions stand in the user's turn")
    end = turn_end(tokenizer)
    if tokenizer.eos_token is None and end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        remarks.append(f"the tokenizer names no token that ends a turn: {tokenizer.eos_token}, as its template has it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return remarks


def _shows_system(tokenizer: Any) -> bool:
    try:
        return MARK in _rendered(tokenizer, [("system", MARK), ("user", "a")])
    except (TemplateError, ValueError):
        return False


def turn_end(tokenizer: Any) -> int | None:
    """Return the token that the chat template writes right after an answer; None where it writes text or nothing."""
    try:
        tail = _rendered(tokenizer, [("user", "a"), ("assistant", MARK)]).rpartition(MARK)[2].strip()
    except (TemplateError, ValueError):
        return None
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None


def stop_tokens(ends: int | Sequence[int] | None, tokenizer: Any, at_line: bool) -> frozenset[int]:
    """Return the tokens that end an answer: the model's `ends`, the template's, and `at_line` every line break."""
    own = set[int]() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    # Some models are published with another one in their generation_config than their template writes.
    own |= {end for end in (turn_end(tokenizer),) if end is not None}
    if at_line:
        own |= {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
    return frozenset(own)


def answer_opening(tokenizer: Any) -> str:
    """Return what the chat template writes between the prompt and the last answer, such as empty `<think>` tags."""
    prompt = [{"role": "user", "content": "a"}]
    try:
        start = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        whole = _rendered(tokenizer, [("user", "a"), ("assistant", MARK)]).partition(MARK)[0]
    except (TemplateError, ValueError):
        return ""
    return whole.removeprefix(start) if whole.startswith(start) else ""


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the texts of a tokenizer's special tokens, those of one character apart."""
    return [t for t in tokenizer.all_special_tokens if len(t) > 1]


def break_controls(content: str, controls: Iterable[str]) -> str:
    """Return the text with a space inside every control token, so that data can never end a turn."""
    for t in controls:
        content = content.replace(t, f"{t[0]} {t[1:]}")
    return content


def safe_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages with the model's control tokens broken up."""
    controls = control_tokens(tokenizer)
    return [{"role": m["role"], "content": break_controls(m["content"], controls)} for m in messages]


def text_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text that each token adds, without white space at the end of the answer."""
    seen, sent = list[int](), ""
    for token in tokens:
        seen.append(token)
        text = str(tokenizer.decode(seen, skip_special_tokens=True)).strip()
        # A character of several tokens decodes to U+FFFD until its last token is there.
        if len(text) > len(sent) and text.startswith(sent) and not text.endswith("\ufffd"):
            yield text[len(sent) :]
            sent = text
