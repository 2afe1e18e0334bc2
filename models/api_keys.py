"""Secrets come from environment variables and are removed from every text that is shown, stored or sent to MLflow."""

import json
import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

PROVIDER_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
"""Variables of the providers whose keys are looked for."""
SHORTEST_KEY = 6
"""A shorter value is no key, and removing it would blank out common words."""
NO_KEYS = frozenset(("ollama", "no-key", "nokey", "no_key", "not-needed", "dummy", "password", "changeme", "secret"))
"""What is written where a server wants any key: no secrets, but parts of models' names, ids and common texts."""
IDS = frozenset(("id", "ids"))
"""Keys of a mapping whose values are names."""
SECRET_NAMES = re.compile(r"(API_KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
CREDENTIALS = re.compile(r"://[^/\s@\"'<>]+@")
REFERENCE = re.compile(r"\$\{(\w+)\}")
_referenced = set[str]()
"""Variables that a file names in an address or as a key, whatever they are called."""


def reference(text: str) -> str:
    """Return the variable's name in `${NAME}`, or an empty string for any other text."""
    match = REFERENCE.fullmatch(text)
    return match[1] if match else ""


def expanded(text: str) -> str:
    """Return an address or key with each `${NAME}` replaced by its value, which is a secret from then on."""
    _referenced.update(REFERENCE.findall(text))
    return REFERENCE.sub(lambda match: os.environ.get(match[1], ""), text)


def redact(text: str, values: Iterable[str] = ()) -> str:
    """Return the text without `values`, any secret of the environment, or the user name and password of a URL."""
    text = CREDENTIALS.sub("://[key]@", text)
    for form in _forms(frozenset({*values, *_secrets()})):
        if form in text:
            text = text.replace(form, "[key]")
    return text


def redact_all(value: Any) -> Any:
    """Return the value with all texts in it redacted, those in lists and mappings too.

    Names stay: the keys of mappings, and what a mapping holds under `id` or `ids`. A password such as `123456` may be
    part of an id, which would then name nothing.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {k: v if k in IDS else redact_all(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(v) for v in value]
    return value


def redact_json(text: str, encode: Callable[[Any], str] = json.dumps) -> str:
    """Return a JSON document as `redact_all` changes its value, with its numbers untouched; `encode` writes it anew."""
    # Hardly any text holds a secret, and one look at the whole is far faster than one at each value.
    return text if redact(text) == text else encode(redact_all(json.loads(text)))


def _secrets() -> Iterable[str]:
    # Every row that is written asks: the values of other variables are not even decoded.
    return (os.environ.get(name, "") for name in _secret_names(tuple(os.environ), frozenset(_referenced)))


@lru_cache(maxsize=8)
def _secret_names(variables: tuple[str, ...], referenced: frozenset[str]) -> list[str]:
    return [name for name in variables if name in referenced or SECRET_NAMES.search(name.upper())]


@lru_cache(maxsize=64)
def _forms(values: frozenset[str]) -> list[str]:
    """Return the values as text, JSON and URLs write them, the longest first, so that none hides a part of another."""
    whole = [v for v in values if len(v) >= SHORTEST_KEY and v.casefold() not in NO_KEYS]
    forms = {
        f for v in whole for f in (v, quote(v, safe=""), json.dumps(v)[1:-1], json.dumps(v, ensure_ascii=False)[1:-1])
    }
    return sorted(forms, key=len, reverse=True)
