"""Price prompts under the prefix caching of API providers, which read the unchanging start of a prompt from a cache.

A request costs (S x share + Q) x input price + O x output price, where S, Q and O are the tokens of the unchanging
prefix, the question and the answer, and share is h x read + (1 - h) x write at a hit rate h. With requests that arrive
at random, r a second, and a prefix that stays cached for T seconds after it was last read, a request misses when none
came in the T seconds before it: h = 1 - exp(-r T).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.break_even import break_even_requests
from crossover.eval.analysis.cost import Cost
from crossover.programs.score import Row

SECONDS_A_MONTH = 365.25 / 12 * 86_400

LEAST_PREFIX = 1024
"""Tokens of the shortest prefix that providers cache."""

VOLUMES = (1_000, 100_000, 10_000_000)
"""Requests a month in the table of prefix caching."""

STRETCHES = (1, 4, 16)
"""Multiples of the measured prefix in the table of prefix caching."""


class TokenPrice(NamedTuple):
    """What an API charges for tokens."""

    input: float
    """Dollars for a million prompt tokens."""
    output: float
    """Dollars for a million answer tokens."""
    read: float = 0.1
    """Price of a token read from the cache, as a share of the input price."""
    write: float = 1.25
    """Price of a token written to the cache, as a share of the input price."""
    seconds: float = 300.0
    """How long a prefix stays in the cache after it was last read."""


class RequestTokens(NamedTuple):
    """Tokens of one request."""

    prefix: float
    """The unchanging start of every prompt."""
    question: float
    """The rest of the prompt."""
    answer: float


def hit_rate(requests_per_month: float, seconds: float) -> float:
    """Return the share of requests that find their prefix in the cache, if requests arrive at random."""
    return -math.expm1(-requests_per_month / SECONDS_A_MONTH * seconds)


def request_usd(tokens: RequestTokens, price: TokenPrice, *, hits: float | None = None) -> float:
    """Return the dollars of one request at hit rate `hits`, or without a cache when that is None.

    A prefix shorter than `LEAST_PREFIX` is paid in full.
    """
    share = 1.0
    if hits is not None and tokens.prefix >= LEAST_PREFIX:
        share = hits * price.read + (1 - hits) * price.write
    prompt = tokens.prefix * share + tokens.question
    return (prompt * price.input + tokens.answer * price.output) / 1e6


def tokens_of(rows: Sequence[Row]) -> RequestTokens:
    """Return the mean tokens of a request, with the shortest prompt as a slight overestimate of the prefix."""
    answered = [r for r in rows if r.prompt_tokens]
    if not answered:
        return RequestTokens(0, 0, 0)
    prefix = min(r.prompt_tokens for r in answered)
    prompt = sum(r.prompt_tokens for r in answered) / len(answered)
    return RequestTokens(prefix, prompt - prefix, sum(r.completion_tokens for r in answered) / len(answered))


def prefix_lines(
    arm: Arm, rows: Sequence[Row], price: TokenPrice, *, tuned: Arm | None, months: float
) -> Iterator[str]:
    """Yield a table of hit rate, price and break-even of an in-context arm by length of prefix and volume."""
    tokens = tokens_of(rows)
    yield ""
    yield f"{arm.name} with prefix caching, at ${price.input:g} and ${price.output:g} per million tokens in and out"
    yield f"{'prefix':>9}  {'requests a month':>16}  {'hit rate':>8}  {'$ per 1k':>9}  {'uncached':>9}  break-even"
    for stretch in STRETCHES:
        longer = RequestTokens(stretch * tokens.prefix, tokens.question, tokens.answer)
        for volume in VOLUMES:
            hits = hit_rate(volume, price.seconds)
            cached, plain = (1000 * request_usd(longer, price, hits=h) for h in (hits, None))
            yield (
                f"{longer.prefix:>9,.0f}  {volume:>16,}  {hits:>8.1%}  {cached:>9.3g}  {plain:>9.3g}  "
                f"{_break_even(arm, cached, tuned, months)}"
            )


def _break_even(arm: Arm, per_1k: float, tuned: Arm | None, months: float) -> str:
    """Return as text the requests after which the tuned arm has paid for itself; a dash for an unknown price."""
    if tuned is None or None in (arm.cost.fit, tuned.cost.fit, tuned.cost.per_1k_requests):
        return "-"
    count = break_even_requests(Cost(arm.cost.fit, per_1k, None), tuned.cost, months=months)
    return "never" if count is None else f"{count:,.0f}"
