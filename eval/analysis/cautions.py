"""State the doubts about a comparison that a reader must see, such as too few examples; `CAUTIONS` lists them."""

from collections import Counter
from collections.abc import Callable, Sequence

from crossover.eval.analysis.arm import Arm
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.families import families_of
from crossover.eval.analysis.rules import MARGIN
from crossover.eval.analysis.stats import ALPHA, FEW

LEAST_SEEDS = 3
"""With fewer seeds their spread is unknown, or too uncertain to be of use."""

MANY_ARMS = 8
"""From this many arms on, the best score is noticeably inflated by luck."""

MOST_UNPARSED = 0.05
"""Share of unparsed answers above which the prompt format is in doubt."""


def cautions(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> tuple[str, ...]:
    """Return the doubts about one task's arms and contrasts, one sentence each."""
    return tuple(sentence for _, caution in CAUTIONS if (sentence := caution(arms, contrasts)))


def _few_examples(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    undecided = [c for c in _raced_to_the_end(arms, contrasts) if c.finding == "inconclusive"]
    # Where several arms lead, no pair of the others is tested, however clear it is.
    blunt = [c for c in undecided if c.detectable > MARGIN and c.difference.p > c.level]
    if not blunt:
        return ""
    sharpest = min(blunt, key=lambda c: c.detectable)
    n, least = sharpest.difference.n, sharpest.detectable
    shown = f"show differences of {least:.3f} at best" if least < 1 else "are too few to show any difference"
    be = "is" if len(blunt) == 1 else "are"
    return f"{len(blunt)} of {len(contrasts)} comparisons {be} inconclusive: {n} examples {shown}"


def _raced_to_the_end(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts between arms that were scored on all examples."""
    dropped = {a.name for a in arms if a.dropped}
    return [c for c in contrasts if dropped.isdisjoint((c.a, c.b))]


def _dropped_arms(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    dropped = [a for a in arms if a.dropped]
    if not dropped:
        return ""
    return (
        f"{len(dropped)} of {len(arms)} arms were dropped in the race, by a test that holds however often one looks: "
        f"the chance that any arm within {MARGIN:g} of the best is among them is at most {ALPHA:.0%}. Their scores and "
        "differences are of the examples before, and look a little worse than they are: the moment was chosen by them"
    )


def _few_clusters(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    count = len(set(arms[0].clusters.values()))
    if not 0 < count < FEW:
        return ""
    return f"{count} clusters: below {FEW} the intervals are rough; add examples from other clusters, not more of these"


def _few_seeds(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    learning = [a for a in arms if a.learns]
    fewest = min((len(a.seeds) for a in learning), default=LEAST_SEEDS)
    if fewest >= LEAST_SEEDS:
        return ""
    unseen = "the spread between seeds is not in the intervals" if fewest == 1 else "their spread is known badly"
    return f"{fewest} seed{'s' * (fewest > 1)} an arm: {unseen}; run --seeds 0,1,2 or more"


def _restless_seeds(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    restless = [c for c in contrasts if c.difference.seed_error > c.difference.error]
    if not restless:
        return ""
    names = ", ".join(f"{c.a} - {c.b}" for c in restless[:3])
    return f"in {names} the seeds differ more than the examples do: more seeds help, not more examples"


def _many_arms(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    # The variants that val chose were not chosen on test.
    if (count := len(families_of(arms))) < MANY_ARMS:
        return ""
    return (
        f"{count} arms were read on one test set: the differences and the interval in the verdict allow for it, "
        "the arms' own intervals do not, and the best score is likely to be a little lower on new data"
    )


def _uneven_failures(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    partly = [c for c in _raced_to_the_end(arms, contrasts) if c.difference.n < max(a.score.n for a in arms)]
    if not partly:
        return ""
    fewest = min(c.difference.n for c in partly)
    return f"failed rows left {len(partly)} comparisons with fewer examples ({fewest} at least); see the failed column"


def _unparsed_answers(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    many = [a for a in arms if a.unparsed > MOST_UNPARSED * a.rows]
    if not many:
        return ""
    shares = ", ".join(f"{a.unparsed / a.rows:.0%} of {a.name}'s" for a in many)
    return (
        f"{shares} answers could not be parsed, were empty or were none of the labels, and score 0: read `raw` in "
        "their rows, and try another prompt format or a higher `max_tokens`"
    )


ENDINGS = {
    "length": ("was cut at `max_tokens`", "were cut at `max_tokens`"),
    "refusal": ("is a refusal", "are refusals"),
    "reasoning": ("is reasoning without an answer", "are reasoning without an answer"),
    "empty": ("is empty", "are empty"),
}
"""What `Row.ending` says, in words: of one answer, and of several."""


def _broken_answers(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    counts = [f"{n} of {a.name}'s {a.rows} answers {ENDINGS[k][n > 1]}" for a in arms for k, n in a.endings.items()]
    if not counts:
        return ""
    cut = any("length" in a.endings for a in arms)
    return "; ".join(counts) + (": a higher `max_tokens` lets them end" if cut else "")


def _unread_val(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    families = families_of(arms)
    apart = Counter(f[0].family for f in families if len(f) == 1)
    names = ", ".join(name for name, count in apart.items() if count > 1)
    if not names:
        return ""
    return (
        f"the variants of {names} have no scores on val to choose by, and each is compared as an arm; `crossover run` "
        "again reads val"
    )


def _variants(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> str:
    counts = [f"{len(f)} of {f[0].family}" for f in families_of(arms) if len(f) > 1]
    if not counts:
        return ""
    return (
        f"variants of one method: {', '.join(counts)}. The one that scores best on val stands for its method; the "
        "others are shown, and not tested. `compare: all` compares every variant"
    )


CAUTIONS: tuple[tuple[str, Callable[[Sequence[Arm], Sequence[Contrast]], str]], ...] = (
    ("too few examples for the margin", _few_examples),
    ("too few clusters", _few_clusters),
    ("too few seeds", _few_seeds),
    ("seeds differ more than examples", _restless_seeds),
    ("many arms on one test set", _many_arms),
    ("failed rows left examples out", _uneven_failures),
    ("many answers could not be parsed", _unparsed_answers),
    ("answers are not whole", _broken_answers),
    ("arms were dropped in a race", _dropped_arms),
    ("variants without scores on val", _unread_val),
    ("variants stand back for the one that val chose", _variants),
)
"""Each doubt and the function that words it, or returns an empty string when the doubt does not apply."""
