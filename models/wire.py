"""Read and write the bodies of chat completions where servers differ: system turns, usage, empty answers."""

from collections.abc import Mapping
from typing import Any

from dspy import lm15

from crossover.models.think import without_thoughts

MOST_TOKENS = 100_000_000
"""No request has more; a larger count is a provider's fault."""


def counts_that_can_be(usage: object) -> dict[str, Any]:
    """Return the token counts of a provider's usage that are whole numbers a request can have, details included."""
    if not isinstance(usage, Mapping):
        return {}
    counts: dict[str, Any] = {k: v for k, v in usage.items() if _is_count(v)}
    most = {"prompt_tokens_details": "prompt_tokens", "completion_tokens_details": "completion_tokens"}
    for details, whole in most.items():
        if isinstance(given := usage.get(details), Mapping) and whole in counts:
            counts[details] = {k: v for k, v in given.items() if _is_count(v) and v <= counts[whole]}
    return counts


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS


def merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with the text of their system turn at the head of the first other turn."""
    if len(messages) < 2 or messages[0]["role"] not in ("system", "developer"):
        return messages
    head, first = messages[0]["content"], messages[1]["content"]
    if isinstance(head, str) and isinstance(first, str):
        content: Any = f"{head}\n\n{first}"
    else:
        content = [p for c in (head, first) for p in ([{"type": "text", "text": c}] if isinstance(c, str) else c)]
    return [messages[1] | {"content": content}, *messages[2:]]


def text_of(body: Mapping[str, Any], response: lm15.Response) -> str:
    """Return the text of an answer, without its reasoning; a refusal in the model's words where that is all."""
    text = "".join(p.text for p in response.message.parts if p.type == "text")
    return without_thoughts(text) or _refusal(body)


def ending(body: Mapping[str, Any], text: str) -> str:
    """Return why an answer is not whole, as in `Answers.ending`, save for `length`; empty for one that is."""
    message = body["choices"][0].get("message") or {}
    if _refusal(body):
        return "refusal"
    if text.strip():
        return ""
    return "reasoning" if message.get("reasoning_content") or message.get("reasoning") else "empty"


def _refusal(body: Mapping[str, Any]) -> str:
    message = body["choices"][0].get("message") or {}
    return str(message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal") or "")
