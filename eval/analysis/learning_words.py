"""Word learning curves and crossovers for the table and the page."""

from crossover.eval.analysis.learning import Learning, SizeEstimate
from crossover.eval.analysis.saturation import REACH


def learning_sentences(learning: Learning) -> list[str]:
    """Return one sentence for each fitted curve and each crossover."""
    sentences = []
    for c in learning.curves:
        if c.limit is None or c.enough is None:
            words = "follows no law that names a limit, for the residuals exceed their standard errors"
        else:
            value, low, high = c.limit
            pays = f"doubling buys less than a point from {size_words(c.enough)} examples on"
            if c.enough.value is None:
                pays = f"doubling buys a point up to {REACH:g} times the sizes measured {_interval(c.enough)}"
            words = f"tends to {value:.3f} [{low:.3f}, {high:.3f}]; {pays}"
        one = "; one seed a size: what another would change is in no interval" if c.seeds == 1 else ""
        sentences.append(f"{c.name}: {words}{one}")
    for x in learning.crossovers:
        if x.size.value is None and not x.foretold:
            words = f"is not ahead of {x.context} at {x.measured:,} examples, and no law says what more would do"
        elif x.size.value is None:
            words = f"does not overtake {x.context} up to {REACH:g} times the sizes measured {_interval(x.size)}"
        elif x.throughout:
            words = f"is ahead of {x.context} from the smallest size on, {size_words(x.size)} examples"
        elif x.beyond:
            words = f"overtakes {x.context} at {size_words(x.size)} examples, beyond what was measured"
        else:
            words = f"overtakes {x.context} between {x.after:,} and {size_words(x.size)} examples"
        sentences.append(f"{x.weights} {words}")
    return sentences


def size_words(size: SizeEstimate) -> str:
    """Return a size with its interval as text."""
    return f"{number_words(size.value)} {_interval(size)}"


def _interval(size: SizeEstimate) -> str:
    return f"[{number_words(size.low)}, {number_words(size.high)}]"


def number_words(value: float | None) -> str:
    """Return a number of examples as text, `never` for None."""
    return "never" if value is None else f"{value:,.0f}"
