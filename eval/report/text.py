"""Format text, money and columns for every report, and make text that comes from data safe to look at."""

import math
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossover.eval.analysis.latency import LatencySummary


LONGEST = 1200
"""Characters of one field of an example that a report shows."""
WIDTH = 110
"""Columns that text is wrapped to, unless a caller knows the width of the terminal."""
SMALLEST_MONEY = 0.001
"""Dollars below which a sum is next to nothing."""


def visible(text: object) -> str:
    """Return the text with each control, format and lone surrogate character as its code; line ends and tabs stay.

    A right-to-left override would turn the rest of the page around, a zero-width space would hide a difference. U+FFFE
    and U+FFFF, which XML forbids, become codes too.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c in "\n\t" or not _hidden(c) else f"⟨U+{ord(c):04X}⟩" for c in shown)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") or ord(character) & 0xFFFE == 0xFFFE


def cut(text: object, most: int = LONGEST) -> str:
    """Return the first `most` visible characters of the text, and how many more there are."""
    shown = visible(text)
    return shown if len(shown) <= most else f"{shown[:most]}… ({len(shown) - most:,} more characters)"


def field_text(value: object) -> str:
    """Return a field of an example as text, one line for each item of a list."""
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


def money(value: float | None) -> str:
    """Return dollars with two significant digits or more; an unknown price is "unpriced", an infinite one "never"."""
    if value is None:
        return "unpriced"
    if math.isinf(value):
        return "never"
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"


def dollars(value: float | None) -> str:
    """Return dollars with their sign, as people write them."""
    if value is None or math.isinf(value):
        return money(value)
    return f"${value:,.0f}" if value >= 100 else f"${money(value)}"


def figure(value: float) -> str:
    """Return a positive number with three significant digits, and its thousands separated."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def p95_words(latency: "LatencySummary", number: Callable[[float], str] = "{:.0f}".format) -> str:
    """Return the p95 in milliseconds, as `≥` the lower end of its interval where too few requests bound it from above.

    Empty without timings.
    """
    if not latency.n:
        return ""
    p95 = latency.p95
    return number(p95.mean) if p95.high < math.inf else f"≥{number(p95.low or latency.p50.mean)}"


def small_money(value: float | None) -> str:
    """Return dollars with three significant digits, `–` for next to nothing, and "unpriced" for None."""
    if value is None:
        return "unpriced"
    if value < SMALLEST_MONEY:
        return "–"
    if math.isinf(value):
        return "never"
    return f"{value:.2f}" if 1 <= value < 10 else figure(value)


def p_value(p: float) -> str:
    """Return a p value with two significant digits, or that it is below 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with aligned columns: the first to the left, the others (numbers) to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            t.ljust(w) if c == 0 else t.rjust(w) for c, (t, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def wrapped(text: str, lead: str = "  ", width: int = WIDTH) -> list[str]:
    """Return the text as lines of at most `width` columns, the first after `lead`, the others indented as far."""
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


def message(text: object, width: int | None, lead: int = 2) -> str:
    """Return a message with control characters shown, wrapped to `width` columns unless that is None.

    Further lines are indented by `lead` columns; a line that fits stays as it is, spaces included.
    """
    shown = visible(text)
    if width is None:
        return shown
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * lead, break_on_hyphens=False, break_long_words=False)
    return "\n".join(line if len(line) <= width else wrap.fill(line) for line in shown.splitlines())
