"""What MLflow shows of a whole comparison: names and tags of its runs, description, first charts."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossover.eval.analysis.arm import Arm, best_first
from crossover.eval.analysis.compare import Comparison
from crossover.eval.analysis.verdict import Verdict
from crossover.eval.report.markdown import plain_text, table_row
from crossover.eval.report.table import marked_name
from crossover.eval.report.text import figure, p95_words, small_money
from crossover.eval.tracking.logged import arm_metrics, metric_name

COLORS = {
    "context": ("#2563a8", "#0f7f83", "#5e56c4", "#3c7d3f", "#4aa3df", "#7fb069", "#9b8bd9", "#626a78"),
    "weights": ("#bd4b12", "#a8326b", "#86690b", "#e58a4e", "#d977a0", "#c9a227"),
}
"""Colours of the arms of each kind, cool ones in context; MLflow's own, drawn by chance, give two arms the same."""
HEADER = ("arm", "accuracy", "95 %", "p95 ms", "$ per 1,000", "$ to fit")
MOST_ARMS, MOST_CAUTIONS = 20, 3
COLUMNS = (
    "tags.`verdict`",
    "metrics.`accuracy`",
    "metrics.`accuracy_low`",
    "metrics.`accuracy_high`",
    "metrics.`cost_usd_per_1k`",
    "metrics.`latency_p95_ms`",
    "metrics.`fit_usd`",
)
"""Columns of the runs table, in the order shown."""


def run_tags(arm: Arm, comparison: Comparison) -> list[dict[str, str]]:
    """Return the tags of each run of an arm, in the order of its seeds: name, colour, and what the verdict says of it.

    The task comes first where there are several: MLflow's lists cut the end of a name.
    """
    verdict = next(v for v in comparison.verdicts if v.task == arm.task)
    findings = {
        "chosen": arm.name == verdict.choose,
        "barred": bool(arm.integrity),
        "not compared": arm.name not in comparison.compared[arm.task],
        "tied": arm.name in verdict.ties,
    }
    found = next((f for f, applies in findings.items() if applies), "not chosen")
    title = f"{arm.task}: {arm.name}" if len(comparison.verdicts) > 1 else arm.name
    seeds = [f", seed {seed}" if len(arm.seeds) > 1 else "" for seed in arm.seeds]
    alike = [(a.task, a.name) for a in comparison.arms if a.kind == arm.kind]
    color = COLORS[arm.kind][alike.index((arm.task, arm.name)) % len(COLORS[arm.kind])]
    return [{"mlflow.runName": title + seed, "mlflow.runColor": color, "verdict": found} for seed in seeds]


def parent_tags(comparison: Comparison) -> dict[str, str]:
    """Return winner, verdict and confidence; of each task as `winner.TASK` where the experiment has several."""
    tags = dict[str, str]()
    for number, v in enumerate(comparison.verdicts, 1):
        task = f".{metric_name(v.task, str(number))}" if len(comparison.verdicts) > 1 else ""
        tags |= {f"winner{task}": v.choose or "none", f"verdict{task}": _headline(v), f"confidence{task}": v.confidence}
    return tags


def parent_metrics(comparison: Comparison) -> dict[str, float]:
    """Return the metrics of each winner as `winner/accuracy`, and those of each arm as `accuracy/ARM`."""
    metrics = dict[str, float]()
    for arm in comparison.arms:
        title = metric_name(f"{arm.name} {arm.task}" if len(comparison.verdicts) > 1 else arm.name, arm.cells[0])
        metrics |= {f"{k}/{title}": v for k, v in arm_metrics(arm).items()}
    for number, verdict in enumerate(comparison.verdicts, 1):
        if (chosen := comparison.chosen(verdict)) is not None:
            task = f"{metric_name(verdict.task, str(number))}/" if len(comparison.verdicts) > 1 else ""
            metrics |= {f"winner/{task}{k}": v for k, v in arm_metrics(chosen).items()}
    return metrics


def _headline(v: Verdict) -> str:
    return f"USE {v.choose}" if v.choose else "NO VERDICT"


def description(comparison: Comparison) -> str:
    """Return the comparison as Markdown: of each task the verdict, the reason, the arms and the doubts."""
    lines = [f"**{plain_text(comparison.partial)}**", ""] if comparison.partial else []
    if len(comparison.verdicts) > 1:
        # MLflow folds all but the first lines.
        verdicts = [(plain_text(_headline(v)), plain_text(v.task), v.confidence) for v in comparison.verdicts]
        lines += [*(f"- **{use}** for {task} (confidence: {how})" for use, task, how in verdicts), ""]
    for v in comparison.verdicts:
        task = f" for {v.task}" if len(comparison.verdicts) > 1 else ""
        lines += [f"## {plain_text(_headline(v) + task)}", ""]
        lines += [f"Confidence: **{v.confidence}**. {plain_text(v.because)}", ""]
        lines += [f"As good, as far as this test can tell: {', '.join(map(plain_text, v.ties))}.", ""] if v.ties else []
        lines += [table_row(HEADER), "|---|" + "---:|" * (len(HEADER) - 1)]
        arms = [a for a in comparison.arms if a.task == v.task and a.name in comparison.compared[v.task]]
        lines += [_arm_row(a, chosen=a.name == v.choose) for a in best_first(arms)[:MOST_ARMS]]
        doubts = comparison.cautions.get(v.task, ())[:MOST_CAUTIONS]
        lines += ["", *(f"- {plain_text(doubt)}" for doubt in doubts)]
        lines += ["", "What would change this:", "", *(f"- {plain_text(flip)}" for flip in v.flips)] if v.flips else []
        lines.append("")
    lines += [f"- {plain_text(failure)}" for failure in comparison.failures]
    return "\n".join([*lines, "The whole report is the artifact `report.html`, every figure in `comparison.json`.", ""])


def _arm_row(arm: Arm, *, chosen: bool) -> str:
    name, s = plain_text(marked_name(arm)), arm.score
    return table_row(
        [
            f"**{name}**" if chosen else name,
            f"{s.mean:.3f}" if s.n else "–",
            f"{s.low:.3f} to {s.high:.3f}" if s.n else "–",
            p95_words(arm.latency, figure) or "–",
            small_money(arm.cost.per_1k_requests),
            small_money(arm.cost.fit),
        ]
    )


def charts(parent: str, *, curves: Sequence[str], arms: int) -> dict[str, Any]:
    """Return the state of MLflow's runs page that shows the arms as bars and the table by accuracy.

    It has the form of the links that the page's own Share button makes. `parent` is the run that no chart shows,
    `curves` are those of learning curves.
    """
    decide, learn, train = "crossover-decide", "crossover-learn", "crossover-train"
    bars = ("accuracy", "cost_usd_per_1k", "latency_p95_ms", "fit_usd")
    cards: list[dict[str, Any]] = [
        {"type": "BAR", "metricKey": key, "metricSectionId": decide, "displayName": key} for key in bars
    ]
    axes = {"xaxis": "cost_usd_per_1k", "yaxis": "accuracy"}
    scatter = {axis: {"key": key, "type": "METRIC"} for axis, key in axes.items()}
    cards.append({"type": "SCATTER", "metricSectionId": decide, "displayName": "accuracy by cost", **scatter})
    lines = {"learning/accuracy": learn} if curves else {}
    for key, section in (lines | {"training/loss": train}).items():
        cards.append({"type": "LINE", "metricKey": key, "metricSectionId": section, "displayName": key, **LINE})
    shared = {"runsCountToCompare": max(10, arms), "deleted": False, "isGenerated": False}
    names = {decide: "Which arm", learn: "Accuracy over train size", train: "Training"}
    sections = [(uuid, names[uuid], True) for uuid in dict.fromkeys(c["metricSectionId"] for c in cards)]
    sections += [(f"crossover-{name}", name, False) for name in ("detail", "Model metrics", "winner")]
    return {
        "orderByKey": "metrics.`accuracy`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "runsPinned": [parent],
        "runsExpanded": {parent: True},
        "runsHiddenMode": "SHOWALL",
        "runsVisibilityMap": {parent: False},
        "compareRunCharts": [{"uuid": f"crossover-{n}"} | shared | card for n, card in enumerate(cards)],
        "compareRunSections": [
            {"uuid": u, "name": name, "display": shown, "isReordered": True, "deleted": False, "isGenerated": False}
            for u, name, shown in sections
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


LINE: Mapping[str, Any] = {
    "xAxisKey": "step",
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
}
"""Settings that the page expects of every line chart."""
