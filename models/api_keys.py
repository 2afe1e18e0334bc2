"""API keys come from environment variables and are removed from every text that is shown or stored."""

import os
import re
from collections.abc import Iterable

SHORTEST_KEY = 8
"""A shorter value is no key, and removing it would blank out common words."""


def reference(text: str) -> str:
    """Return the variable's name in `${NAME}`, or an empty string for any other text."""
    match = re.fullmatch(r"\$\{(\w+)\}", text)
    return match[1] if match else ""


def redact(text: str, values: Iterable[str] = ()) -> str:
    """Return the text without `values`, any key in the environment, or the user name and password of a URL."""
    text = re.sub(r"://[^/\s@]+@", "://[key]@", text)
    named = (v for k, v in os.environ.items() if re.search(r"(API_KEY|TOKEN|SECRET|PASSWORD)$", k))
    for value in {*values, *named}:
        if len(value) >= SHORTEST_KEY:
            text = text.replace(value, "[key]")
    return text
