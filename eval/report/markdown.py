"""Write a report as a pull-request comment: verdicts and tables in sight, the details folded."""

import re
from collections.abc import Sequence

from crossover.eval.analysis.compare import MOST_PAIRS
from crossover.eval.analysis.contrast import Contrast
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.report.data import ReportData, checks, ledger, merged, versions
from crossover.eval.report.examples import disagreements
from crossover.eval.report.table import break_even_line
from crossover.eval.report.text import cut, dollars, p95_words, p_value, visible

MOST = 65_000
"""Characters of a comment, a little below the limit of GitHub, 65,536."""

SAMPLES = 6
"""Examples of disagreement shown of one task."""
HEADER = ("arm", "score", "95 % interval", "n", "unparsed", "failed", "p95 ms", "to fit", "per 1,000")


def markdown(data: ReportData) -> str:
    """Return the report, without the details that do not fit a comment, and with a note of how many those are."""
    head, details = [f"## {plain_text(data.comparison.experiment)}", ""], list[tuple[str, str]]()
    head += [f"**{plain_text(str(data.comparison.partial))}**", ""] if data.comparison.partial else []
    failed = [o for o in data.outcomes if not o.passed]
    head += [f"- **gate failed** {plain_text(o.task)}: {plain_text(o.detail)}" for o in failed] + [""] * bool(failed)
    for verdict in data.comparison.verdicts:
        head += _verdict(data, verdict)
    for verdict in data.comparison.verdicts:
        details += _details(data, verdict)
    details.append(("To repeat it", _repeat(data)))
    text, room = "\n".join(head), MOST - 200
    if len(text) > room:
        text = text[:room].rpartition("\n")[0]
    left_out = []
    for title, body in details:
        block = f"<details><summary>{plain_text(title)}</summary>\n\n{body}\n\n</details>\n"
        if len(text) + len(block) + 1 > room:
            left_out.append(title)
        else:
            text += f"\n{block}"
    note = f"\n{len(left_out)} sections do not fit a comment; `crossover report -o report.html` has them.\n"
    return text.rstrip("\n") + "\n" + note * bool(left_out)


def plain_text(value: object) -> str:
    """Return text escaped so that Markdown reads no tag, table cell, mention or link in it."""
    escaped = visible(value).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped).replace("@", "&#64;")


def _code(value: object) -> str:
    """Return data as a code span, with visible line ends."""
    shown = cut(value, 400).replace("\n", "⏎").replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if shown else "(empty)"


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _verdict(data: ReportData, v: Verdict) -> list[str]:
    """Return the verdict of one task and its table."""
    headline = f"use **{plain_text(v.choose)}**" if v.choose else "**no recommendation yet**"
    lines = [f"### {plain_text(v.task)}: {headline} ({v.confidence})", "", plain_text(v.because), ""]
    if v.ties:
        lines += [f"As good, as far as this test can tell: {', '.join(map(plain_text, v.ties))}.", ""]
    lines += [table_row(list(HEADER)), "|---|" + "---:|" * (len(HEADER) - 1)]
    for a in data.arms(v.task):
        name = f"**{plain_text(a.name)}**" if a.name == v.choose else plain_text(a.name)
        score = [f"{a.score.mean:.3f}", f"{a.score.low:.3f} to {a.score.high:.3f}"] if a.score.n else ["–", "–"]
        prices = [dollars(x) for x in (a.cost.fit, a.cost.per_1k_requests)]
        speed = p95_words(a.latency) or "–"
        counts = [str(a.score.n), str(a.unparsed), str(a.failed)]
        lines.append(table_row([name + " (barred)" * bool(a.integrity), *score, *counts, speed, *prices]))
    cautions = [f"- {plain_text(caution)}" for caution in data.comparison.cautions.get(v.task, ())]
    return [*lines, "", *cautions, ""] if cautions else [*lines, ""]


def _details(data: ReportData, v: Verdict) -> list[tuple[str, str]]:
    """Return title and body of the folded sections of one task, the most important first."""
    contrasts, shown = data.contrasts(v.task), data.reference_arm(v)
    if len(contrasts) > MOST_PAIRS:
        contrasts = [c for c in contrasts if shown.name in (c.a, c.b)]
    found = []
    if v.flips or v.break_even:
        lines = [f"- {plain_text(f)}" for f in v.flips]
        lines += [f"- {plain_text(break_even_line(v.break_even))}"] if v.break_even else []
        found.append((f"{v.task}: what would change this", "\n".join(lines)))
    if contrasts:
        head = ["difference", "delta", "95 % interval", "p (Holm)", "finding", "detectable"]
        rows = [table_row(head), "|---|" + "---:|" * (len(head) - 1), *map(_contrast, contrasts)]
        found.append((f"{v.task}: paired differences", "\n".join(rows)))
    found.append((f"{v.task}: checks of a fair comparison", _checks(data, v.task)))
    samples, count = disagreements(data, v.task, [a for a in data.arms(v.task) if a.score.n or a is shown][:4])
    blocks = []
    for d in samples[:SAMPLES]:
        lines = [f"- {plain_text(name)}: {_code(value)}" for name, value in d.inputs] + [f"- gold: {_code(d.gold)}"]
        lines += [
            f"    - {plain_text(a.arm)} ({'failed' if a.score is None else f'{a.score:.2g}'}): {_code(a.text)}"
            for a in d.answers.values()
        ]
        blocks.append("\n".join(lines))
    if blocks:
        found.append(
            (f"{v.task}: {len(blocks)} of {count} examples on which the arms disagree", "\n\n---\n\n".join(blocks))
        )
    found.append((f"{v.task}: ledger, dollars", _ledger(data, v.task)))
    return found


def _contrast(c: Contrast) -> str:
    d = c.difference
    name = f"{plain_text(c.a)} − {plain_text(c.b)}"
    return table_row(
        [name, f"{d.delta:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}", p_value(c.p_holm), c.finding, f"{c.detectable:.3f}"]
    )


def _checks(data: ReportData, task: str) -> str:
    lines = []
    for subject, c in merged(checks(data, task)):
        failure = f" **{plain_text(c.failure)}**" if c.failure else ""
        lines.append(f"- {'❌' if c.failure else '✅'} {plain_text(subject)}: {plain_text(c.name)}{failure}")
    return "\n".join(lines)


def _ledger(data: ReportData, task: str) -> str:
    head = [
        "arm",
        "labels",
        "optimizer",
        "teacher",
        "training",
        "discarded",
        "fit in all",
        "test",
        "all seeds",
        "per 1,000",
        "1,000 right",
        "hosting a month",
    ]
    rows = [table_row(head), "|---|" + "---:|" * (len(head) - 1)]
    for line in ledger(data, task):
        k, c = line.kinds, line.cost
        usd = [
            k.labels,
            k.optimizer,
            k.teacher,
            k.training,
            k.discarded,
            c.fit,
            line.test_usd,
            line.paid_usd,
            c.per_1k_requests,
            line.per_1k_correct,
            c.hosting_per_month,
        ]
        rows.append(table_row([plain_text(line.arm), *map(dollars, usd)]))
    return "\n".join(rows)


def _repeat(data: ReportData) -> str:
    command = data.experiment.command
    lines = [f"    {visible(command)}", ""] if command else []
    lines += [f"- split of {plain_text(t)}: `{split}`" for t, split in data.comparison.split_sha256.items()]
    lines += [f"- {plain_text(name)} {plain_text(version)}" for name, version in versions()]
    return "\n".join(lines)
