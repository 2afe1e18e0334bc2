"""Place marks on the axes of a figure, in percent, for the template to draw with HTML and SVG in the page's colours."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Axis(NamedTuple):
    """An axis with its ends and the labels of its ticks."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    """Values, in any order, with their labels; those outside the ends are not drawn."""
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value in percent of the axis; what lies far outside is placed a little outside."""
        if self.log:
            place = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0
        else:
            place = (value - self.low) / (self.high - self.low)
        return round(100 * max(-0.2, min(1.2, place)), 2)

    def shown_ticks(self) -> list[tuple[float, str]]:
        """Return place and label of each tick that lies on the axis."""
        return [(self.at(value), text) for value, text in self.ticks if self.low <= value <= self.high]


class Line(NamedTuple):
    """A line, or the outline of an area."""

    name: str
    hue: str
    """Class of page.css that sets the colour, such as `context-1`."""
    dash: str
    """`solid`, `dash` or `dot`."""
    path: str
    """Path of SVG in a square of 100 by 100."""


class Dot(NamedTuple):
    """A point with the text that shows when it is pointed at."""

    left: float
    bottom: float
    hue: str
    shape: str
    """Class of page.css: `front`, `behind`, `round`, `square`, `ring`, or `spot`, which shows when pointed at."""
    tip: tuple[str, ...]
    text: str = ""
    height: tuple[float, float] | None = None
    """Ends of a vertical interval."""
    width: tuple[float, float] | None = None
    """Ends of a level interval."""


class Figure(NamedTuple):
    """Axes and the marks on them; later ones lie on top."""

    x: Axis
    y: Axis
    dots: tuple[Dot, ...]
    lines: tuple[Line, ...] = ()
    areas: tuple[Line, ...] = ()


def path(x: Axis, y: Axis, points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """Return the path of SVG through the points."""
    steps = (f"{x.at(a):g} {round(100 - y.at(b), 2):g}" for a, b in points)
    return "M" + "L".join(steps) + "Z" * closed


def interval(axis: Axis, low: float, high: float) -> tuple[float, float]:
    """Return the places of the ends of an interval, cut off at the ends of the axis."""
    return max(0.0, min(100.0, axis.at(low))), max(0.0, min(100.0, axis.at(high)))


def even_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values from `low` to `high`, `most` or one more of them."""
    rough = (high - low) / most
    unit: float = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values for a logarithmic axis, about eight at most."""
    if high < 10 * low:
        return even_ticks(low, high, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 3 else (1, 3) if len(decades) <= 4 else (1,)
    every = math.ceil(len(decades) / 8)
    return [float(f"{m}e{d}") for d in decades[::every] for m in digits]
