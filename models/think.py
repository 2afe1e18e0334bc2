"""Take the reasoning that some models write before an answer out of its text."""

import re

THOUGHTS = re.compile(r"\A\s*<think>.*?</think>\s*", re.S)


def without_thoughts(text: str) -> str:
    """Return an answer without the reasoning that a model writes before it between `<think>` tags."""
    return THOUGHTS.sub("", text)
