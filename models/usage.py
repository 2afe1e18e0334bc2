"""What was used to get somewhere: calls, tokens, seconds, dollars."""

from dataclasses import dataclass


@dataclass
class Usage:
    """Calls, tokens, seconds and dollars; records add up with `+`."""

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

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum; an unknown price makes the sum unknown."""
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.train_tokens + other.train_tokens,
            self.seconds + other.seconds,
            usd,
            self.metric_calls + other.metric_calls,
        )
