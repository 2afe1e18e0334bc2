"""Price API calls by LiteLLM's table: cached prompt tokens at their own rate, an unknown price never 0.

The table alone, not `litellm.cost_per_token`: that bills cached tokens without a rate of their own as free (250 of
2,980 chat models come out too low), prices ollama at 0, asks the network for a login under `github_copilot/`, and
takes 580 us a call, this 3 us.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

Amount = TypeVar("Amount", float, "np.ndarray[Any, np.dtype[np.float64]]")
TokenCounts = dict[str, dict[str, Any]]
"""Model name to its token counts, as DSPy tracks them."""

ANTHROPIC_WRITE, ANTHROPIC_READ = 1.25, 0.1
"""Anthropic's rates for a prompt written to and read from its five-minute cache, as multiples of the input rate."""

TOKEN_PRICES = ("input_per_million", "output_per_million", "cached_per_million")
"""What a user may state of a model, in dollars; without the last, a cached token costs as much as a fresh one."""
STATED = "as the experiment states them"
"""The source of prices that stand in an experiment."""
_stated = dict[str, dict[str, float]]()
"""Rates in place of the table's, of the experiment that runs in this process."""

TIER = re.compile(r"(?P<key>.+)_above_(?P<thousands>\d+)k_tokens")
"""Name of a rate in LiteLLM's table that replaces another for prompts of more tokens."""


def state_prices(prices: Mapping[str, Mapping[str, float]]) -> None:
    """Price these models by what is stated of them, see `TOKEN_PRICES`, and all others by the table."""
    _stated.clear()
    for name, price in prices.items():
        fresh, answer = price["input_per_million"] / 1e6, price["output_per_million"] / 1e6
        cached = price.get("cached_per_million", price["input_per_million"]) / 1e6
        rates = {"input_cost_per_token": fresh, "output_cost_per_token": answer}
        _stated[name] = rates | {"cache_read_input_token_cost": cached, "cache_creation_input_token_cost": fresh}


def api_price(usage: TokenCounts) -> float | None:
    """Return the dollars of the usage, None when one of its models has no known price."""
    total = 0.0
    for name, counts in usage.items():
        usd = call_price(name, counts)
        if usd is None:
            return None
        total += usd
    return total


def call_price(name: str, counts: dict[str, Any]) -> float | None:
    """Return the dollars of one model's tokens.

    (prompt - read - written) x input + read x cache read + written x cache write + completion x output. LiteLLM's
    prompt count includes the cached tokens for every provider. Where the table has no cache rate, Anthropic's are its
    published multiples, and for any other provider a cached token costs as much as a fresh one: never too low. The
    whole call is charged at the rates of the table's tier that the length of the prompt falls in.
    """
    prompt = int(counts.get("prompt_tokens") or 0)
    rates = table_entry(name)
    for tokens, tier in _tiers(rates):
        rates |= tier if prompt > tokens else {}
    price_in, price_out = rates.get("input_cost_per_token"), rates.get("output_cost_per_token")
    if price_in is None or price_out is None or (not price_in and not price_out and name not in _stated):
        return None
    anthropic = "claude" in name
    details = counts.get("prompt_tokens_details") or {}
    read, written = (int(details.get(k) or 0) for k in ("cached_tokens", "cache_creation_tokens"))
    price_read = rates.get("cache_read_input_token_cost")
    price_write = rates.get("cache_creation_input_token_cost")
    if price_read is None:
        price_read = price_in * (ANTHROPIC_READ if anthropic else 1.0)
    if price_write is None:
        price_write = price_in * (ANTHROPIC_WRITE if anthropic else 1.0)
    fresh = max(0, prompt - read - written)
    completion = int(counts.get("completion_tokens") or 0)
    return float(fresh * price_in + read * price_read + written * price_write + completion * price_out)


def token_rates(name: str) -> list[tuple[int, float, float]]:
    """Return for each tier of prompts the tokens above which it begins, and dollars of a prompt and of an answer token.

    Caching apart. Empty where the price is unknown.
    """
    found = []
    for tokens in (0, *(tokens for tokens, _ in _tiers(table_entry(name)))):
        prompt, answer = tokens + 1, 1_000_000
        read, both = (call_price(name, {"prompt_tokens": prompt, "completion_tokens": n}) for n in (0, answer))
        if read is not None and both is not None:
            found.append((tokens, read / prompt, (both - read) / answer))
    return found


def _tiers(rates: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the tokens above which each tier begins, ascending, and the rates that change there."""
    tiers: dict[int, dict[str, Any]] = {}
    for key, rate in rates.items():
        if rate is not None and (match := TIER.fullmatch(key)):
            tiers.setdefault(1000 * int(match["thousands"]), {})[match["key"]] = rate
    return sorted(tiers.items())


def table_entry(name: str) -> dict[str, Any]:
    """Return the table's entry of a model, by its whole name or without its provider, with what is stated of its rates.

    Empty where it has none.
    """
    import litellm

    entries = (litellm.model_cost.get(key) for key in (name, name.partition("/")[2]))
    entry: dict[str, Any] = dict(next(filter(None, entries), {}))
    if name in _stated:
        # The tiers of the table too give way.
        entry = {k: v for k, v in entry.items() if "_cost" not in k} | _stated[name]
    return entry


def tokens_usd(price: Mapping[str, float], read: Amount, cached: Amount, written: Amount) -> Amount:
    """Return the dollars of tokens by a stated price, see `TOKEN_PRICES`; `cached` of those that were `read`."""
    fresh, answer, kept = (price.get(k, price["input_per_million"]) for k in TOKEN_PRICES)
    return ((read - cached) * fresh + cached * kept + written * answer) / 1e6


def price_source(name: str) -> str:
    """Return where a model's price comes from: the experiment, or LiteLLM's table."""
    return STATED if name in _stated else _table_source()


@cache
def _table_source() -> str:
    """Return LiteLLM's version, the hash of its table, and the day it was installed."""
    distribution = importlib.metadata.distribution("litellm")
    for file in distribution.files or []:
        if file.name == "model_prices_and_context_window_backup.json":
            table = Path(str(file.locate()))
            digest = hashlib.sha256(table.read_bytes()).hexdigest()[:12]
            day = date.fromtimestamp(table.stat().st_mtime).isoformat()
            return f"LiteLLM {distribution.version}, table {digest}, installed {day}"
    return f"LiteLLM {distribution.version}"
