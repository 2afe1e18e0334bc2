"""Print the outcome of a comparison at the width of a terminal: each verdict first, then the figures behind it."""

import math
import shutil
import textwrap
from collections.abc import Callable, Sequence

from crossover.eval.analysis.arm import Arm, best_first
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.report.table import break_even_line, marked_name, passage_sentences
from crossover.eval.report.text import SMALLEST_MONEY, columns, figure, p95_words, small_money, visible, wrapped

NARROWEST, WIDEST, UNKNOWN = 60, 120, 100
"""Least and most columns of the summary, and those of an output that is no terminal."""
MOST_ARMS, MOST_COLUMNS, MOST_CAUTIONS, MOST_CHANGES, MOST_NAMES = 8, 8, 3, 2, 3
LONGEST = 400
"""Characters of one reason or doubt; `--details` shows the whole."""
BAR, BAR_FROM = 10, 90
"""Cells of a bar, and the width from which bars are shown."""
COLORS = {"high": "\x1b[1;32m", "moderate": "\x1b[1;33m", "low": "\x1b[1;31m", "abstain": "\x1b[1;35m"}
"""Confidence to the escape sequence of a verdict's first line: bold green, yellow, red and magenta."""
PLAIN = "\x1b[0m"


def terminal_width() -> int:
    """Return the columns of the terminal, or of $COLUMNS where it is set, within the limits of the summary."""
    return min(max(shutil.get_terminal_size((UNKNOWN, 24)).columns, NARROWEST), WIDEST)


def summary(comparison: Comparison, *, width: int, colored: bool, store_flag: str = "", tracked: bool = True) -> str:
    """Return the verdict of each task with its reason, main figures, doubts and the next command, as text.

    No line is wider than `width` columns, save for a command, which stays whole to be copied. `store_flag` ends each
    command, such as ` --store DIR`; a run that is not `tracked` has nothing to open in MLflow.
    """
    lines = wrapped(visible(comparison.partial), "", width) if comparison.partial else []
    for v in comparison.verdicts:
        lines += ["", *_heading(v, width=width, colored=colored), *_task_lines(comparison, v, width)]
        lines += ["", f"next: {next_command(comparison, v)}{store_flag}"]
    failures = comparison.failures
    shown = [*failures[:MOST_CAUTIONS], *_more(len(failures) - MOST_CAUTIONS, "failures")]
    lines += ["", *(x for failure in shown for x in wrapped(visible(failure), "! ", width))] if failures else []
    lines += ["", "all tables and doubts: the same command with --details"]
    lines += [f"every run, row and artifact: crossover ui{store_flag}"] if tracked else []
    return "\n".join(lines).lstrip("\n") + "\n"


def _more(count: int, things: str) -> list[str]:
    return [f"{count} more {things}, see --details"] if count > 0 else []


def _heading(v: Verdict, *, width: int, colored: bool) -> list[str]:
    """Return the lines that name the choice, coloured by its confidence."""
    lines = wrapped(visible(f"USE {v.choose} for {v.task}" if v.choose else f"NO VERDICT for {v.task}"), "", width)
    return [f"{COLORS[v.confidence]}{line}{PLAIN}" for line in lines] if colored else lines


def _task_lines(comparison: Comparison, v: Verdict, width: int) -> list[str]:
    """Return the reason, the table, the cautions and what would change the verdict of one task."""
    arms = [a for a in comparison.arms if a.task == v.task]
    lines = [x for sentence in _reasons(v) for x in _short(sentence, "  ", width)]
    ranked = best_first(arms)
    shown = [a for n, a in enumerate(ranked) if n < MOST_ARMS or a.name == v.choose]
    lines += ["", *_arms_table(shown, width), *_more(len(ranked) - len(shown), "arms"), *_fields_table(shown, width)]
    if sentences := passage_sentences(shown):
        lines += ["", *(x for sentence in sentences for x in wrapped(sentence, "", width))]
    if any(a.format_choice and (a.cost.fit or 0) >= SMALLEST_MONEY for a in shown):
        lines += ["", *wrapped("fit $: with the trial of prompt formats, which all arms share", "", width)]
    if any(map(_is_estimate, shown)):
        lines += ["", *wrapped("~ a price by tokens that were counted here: the provider names none", "", width)]
    if cautions := _cautions(comparison, v, arms)[:MOST_CAUTIONS]:
        lines += ["", *(x for caution in cautions for x in _short(caution, "! ", width))]
    if v.flips:
        flips = (x for flip in v.flips[:MOST_CHANGES] for x in _short(flip, "- ", width))
        lines += ["", "what would change this:", *flips]
    return lines


def _short(text: str, lead: str, width: int) -> list[str]:
    """Return the text as lines of at most `width` columns, cut after `LONGEST` characters."""
    return wrapped(textwrap.shorten(visible(text), LONGEST, placeholder=" …"), lead, width)


def _reasons(v: Verdict) -> list[str]:
    """Return why: the reason, the ties or else the break-even, and the confidence."""
    reasons = [v.because]
    if v.ties:
        rest = f" and {len(v.ties) - MOST_NAMES} more" if len(v.ties) > MOST_NAMES else ""
        reasons.append(f"As good, as far as this test can tell: {', '.join(v.ties[:MOST_NAMES])}{rest}.")
    elif v.choose and v.break_even is not None and v.break_even.value is not None:
        line = break_even_line(v.break_even)
        reasons.append(f"{line[0].upper()}{line[1:]}.")
    return [*reasons, f"Confidence: {v.confidence}."] if v.choose else reasons


def _cautions(comparison: Comparison, v: Verdict, arms: Sequence[Arm]) -> list[str]:
    """Return the doubts about one task, the gravest first: broken rules, then those about the chosen arm."""
    learning = comparison.learning.get(v.task)
    by_arm = sorted(arms, key=lambda a: a.name != v.choose)
    return [
        *(f"{a.name}: {w}" for a in arms for w in a.integrity),
        *(f"{a.name}: {w}" for a in by_arm[:1] for w in a.warnings if v.choose),
        *comparison.cautions.get(v.task, ()),
        *(learning.warnings if learning else ()),
        *(f"{a.name}: {w}" for a in by_arm[bool(v.choose) :] for w in a.warnings),
    ]


def _arms_table(shown: Sequence[Arm], width: int) -> list[str]:
    """Return the lines of a table of arms; a name that is too long gets its own line."""
    titles = [*FIGURES, *_extra_titles(shown, width)]
    while len((figures := _figures(shown, titles))[0]) + len("arm") > width and len(titles) > len(FIGURES):
        titles.pop()
    names = ["arm", *(visible(marked_name(a)) for a in shown)]
    if titles[-1] == BAR_TITLE and max(map(len, names)) + len(figures[0]) > width:
        # A name on a line of its own is a worse loss.
        figures = _figures(shown, titles[:-1])
    first = max(len(name) for name in names if len(name) <= max(width - len(figures[0]), len("arm")))
    lines = []
    for name, rest in zip(names, figures, strict=True):
        lines += [name.ljust(first) + rest] if len(name) <= first else [*wrapped(name, "", width), " " * first + rest]
    return lines


def _fields_table(shown: Sequence[Arm], width: int) -> list[str]:
    """Return a blank line and the score of each field of the arms' answers; empty where answers have one field."""
    names = list(dict.fromkeys(name for a in shown for name in a.fields))
    fitting = names
    while fitting:
        scores = ([f"{a.fields[n].mean:.3f}" if n in a.fields else "–" for n in fitting] for a in shown)
        rows = [(marked_name(a), *line) for a, line in zip(shown, scores, strict=True)]
        table = columns([("score by field", *fitting), *rows])
        if max(map(len, table)) <= width:
            return ["", *map(visible, table), *_more(len(names) - len(fitting), "fields")]
        fitting = fitting[:-1]
    return ["", *_more(len(names), "fields")] if names else []


def _figures(arms: Sequence[Arm], titles: Sequence[str]) -> list[str]:
    """Return the titles and then the figures of each arm as aligned lines, without the names."""
    texts = FIGURES | EXTRAS
    return columns([("", *titles), *(("", *(texts[title](a) for title in titles)) for a in arms)])


def _extra_titles(arms: Sequence[Arm], width: int) -> list[str]:
    """Return the columns to add to `FIGURES`, the most telling first: what failed, val, and the bar."""
    shown = {
        "failed": any(a.failed for a in arms),
        "unparsed": any(a.unparsed for a in arms),
        "val": any(a.val is not None for a in arms),
        "n": len({a.score.n for a in arms}) > 1,
        BAR_TITLE: width >= BAR_FROM,
    }
    return [title for title, applies in shown.items() if applies][: MOST_COLUMNS - len(FIGURES) - 1]


def _bar(arm: Arm) -> str:
    """Return the score from 0 to 1 as cells: filled below the interval, half filled where the interval touches."""
    if not arm.score.n:
        return ""
    low, high = math.floor(BAR * arm.score.low), math.ceil(BAR * arm.score.high)
    return "█" * low + "▒" * (high - low) + "·" * (BAR - high)


def _is_estimate(arm: Arm) -> bool:
    """Return whether a price follows from tokens that were counted here, in place of the provider's own number."""
    return arm.tokens_estimated and arm.cost.per_1k_requests is not None


BAR_TITLE = "0        1"
FIGURES: dict[str, Callable[[Arm], str]] = {
    "score": lambda a: f"{a.score.mean:.3f}" if a.score.n else "–",
    "95 %": lambda a: f"{a.score.low:.3f}-{a.score.high:.3f}" if a.score.n else "–",
    "p95 ms": lambda a: p95_words(a.latency, figure) or "–",
    "$ per 1k": lambda a: "~" * _is_estimate(a) + small_money(a.cost.per_1k_requests),
    "fit $": lambda a: small_money(a.cost.fit),
}
"""Title and text of each column that every table has."""
EXTRAS: dict[str, Callable[[Arm], str]] = {
    "val": lambda a: "–" if a.val is None else f"{a.val:.3f}",
    "failed": lambda a: str(a.failed),
    "unparsed": lambda a: str(a.unparsed),
    "n": lambda a: str(a.score.n),
    BAR_TITLE: _bar,
}
"""Title and text of each column that some tables have."""


def next_command(comparison: Comparison, v: Verdict) -> str:
    """Return the command that writes the chosen arm, or without one shows an answer that the best arm got wrong."""
    arm = comparison.chosen(v) or best_first([a for a in comparison.arms if a.task == v.task])[0]
    key = arm.cells[0][:12]
    return f"crossover export {key} ./model" if v.choose else f"crossover show {key}"
