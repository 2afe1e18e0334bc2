"""The one record of usage: calls, tokens, seconds and dollars."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


def add_usd(*amounts: float | None) -> float | None:
    """Return the sum in dollars; one unknown amount makes it unknown."""
    known = [usd for usd in amounts if usd is not None]
    return sum(known) if len(known) == len(amounts) else None


@dataclass
class Usage:
    """Calls, tokens, seconds and dollars of a call, a fit or a run; records add up with `+`."""

    calls: int = 0
    """Language-model calls."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    train_tokens: int = 0
    """Tokens seen by training steps."""
    seconds: float = 0.0
    """Wall time."""
    usd: float | None = 0.0
    """Dollars for API calls; None when a price is unknown. Machine time is priced by the judge, from `seconds`."""
    metric_calls: int = 0
    """Predictions scored while searching."""

    @classmethod
    def of_call(cls, tokens: Mapping[str, Any], *, usd: float | None = 0.0) -> "Usage":
        """Return one call with the token counts that DSPy reports for it."""
        return cls(
            calls=1,
            prompt_tokens=int(tokens.get("prompt_tokens") or 0),
            cached_tokens=int((tokens.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            completion_tokens=int(tokens.get("completion_tokens") or 0),
            usd=usd,
        )

    @classmethod
    def of_calls(cls, usage_data: Mapping[str, Iterable[Mapping[str, Any]]]) -> "Usage":
        """Return the sum of the calls that a DSPy usage tracker has seen, without their price."""
        return sum((cls.of_call(tokens) for calls in usage_data.values() for tokens in calls), cls())

    @property
    def tokens(self) -> int:
        """Return the tokens of prompts and answers together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum; an unknown price makes the sum unknown."""
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.train_tokens + other.train_tokens,
            self.seconds + other.seconds,
            add_usd(self.usd, other.usd),
            self.metric_calls + other.metric_calls,
        )
