"""Text that comes from data, made safe to look at: what cannot be seen is shown, what is long is cut."""

from crossover.eval.report.table import money
from crossover.eval.report.visible import visible

__all__ = ["cut", "dollars", "field_text", "visible"]

LONGEST = 1200
"""Characters of one field of an example that a report shows."""


def cut(text: object, most: int = LONGEST) -> str:
    """Return the text, visible, at most so long; what is left out is counted."""
    shown = visible(text)
    return shown if len(shown) <= most else f"{shown[:most]}… ({len(shown) - most:,} more characters)"


def field_text(value: object) -> str:
    """Return the value of a field of an example as text; a list holds alternatives or passages."""
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


def dollars(value: float | None) -> str:
    """Return dollars as people write them; an unknown price is said."""
    if value is None:
        return "unpriced"
    return f"${value:,.0f}" if value >= 100 else f"${money(value)}"
