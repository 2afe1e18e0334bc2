"""Convert between text and a local model's tokens: chat template, control tokens, pieces of a stream."""

from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

FALLBACK_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{{ '\n=> ' if m['role'] == 'user' else '\n\n' }}{% endfor %}"
)
"""For base models without a chat template: the answer follows an arrow and ends at the line break."""


def safe_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages with the model's control tokens broken up, so that data can never end a turn."""
    controls = [t for t in tokenizer.all_special_tokens if len(t) > 1]
    cleaned = []
    for m in messages:
        content = m["content"]
        for t in controls:
            content = content.replace(t, f"{t[0]} {t[1:]}")
        cleaned.append({"role": m["role"], "content": content})
    return cleaned


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
