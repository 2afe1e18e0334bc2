"""Write a report to a file, in the form that its suffix names."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from crossover.eval.analysis.human import inert
from crossover.eval.report.data import ReportData, checks
from crossover.eval.report.markdown import markdown
from crossover.eval.report.schema import arm_json, to_json
from crossover.eval.report.table import render
from crossover.eval.report.text import visible
from crossover.models.api_keys import redact, redact_json
from crossover.models.errors import UserError
from crossover.models.jsonl import write_text


def csv_table(data: ReportData) -> str:
    """Return one CSV line for each arm: the numbers of `--json` save those by label, nested keys joined by `_`."""
    lines = []
    for arm in data.comparison.arms:
        nested = arm_json(arm)
        del nested["labels"]
        nested["fields"] = {name: e["mean"] for name, e in nested["fields"].items()}
        flat: dict[str, object] = {}
        for key, value in nested.items():
            if isinstance(value, dict):
                flat |= {f"{key}_{inner}": x for inner, x in value.items()}
            else:
                flat[key] = "; ".join(map(str, value)) if isinstance(value, list) else value
        verdict = next(v for v in data.comparison.verdicts if v.task == arm.task)
        flat = {key: inert(visible(value)) if isinstance(value, str) else value for key, value in flat.items()}
        lines.append(flat | {"chosen": arm.name == verdict.choose})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def junit(data: ReportData) -> str:
    """Return a JUnit file with one test suite for each task and one test case for each check and gate."""
    root = ElementTree.Element("testsuites", name=visible(f"crossover {data.comparison.experiment}"))
    for task in data.comparison.split_sha256:
        cases = [(f"{c.subject}: {c.name}", c.failure) for c in checks(data, task)]
        cases += [(f"gate {o.gate}", "" if o.passed else o.detail) for o in data.outcomes if o.task == task]
        failures = sum(bool(failure) for _, failure in cases)
        suite = ElementTree.SubElement(
            root, "testsuite", name=visible(task), tests=str(len(cases)), failures=str(failures), errors="0"
        )
        for name, failure in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=visible(task), name=visible(name))
            if failure:
                ElementTree.SubElement(case, "failure", message=visible(failure)).text = visible(failure)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def html(data: ReportData) -> str:
    """Return the page."""
    from crossover.eval.report.page import html_page  # loads Plotly and Jinja, which no other form needs

    return html_page(data)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


FORMS: dict[str, Callable[[ReportData], str]] = {
    ".html": html,
    ".md": markdown,
    ".json": lambda e: _json(to_json(e.comparison)),
    ".csv": csv_table,
    ".xml": junit,
    ".txt": lambda e: visible(render(e.comparison)),
}
"""Suffix to the function that writes such a file."""


def check_suffix(path: Path) -> None:
    """Raise unless a report can be written to this path.

    Raises:
        UserError: the suffix names no form, or the folder does not exist.
    """
    if path.suffix not in FORMS:
        raise UserError(f"-o {path}: no form for {path.suffix or 'a file without suffix'}; use {', '.join(FORMS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"-o {path}: no folder {path.parent}; make it first")


def write_report(data: ReportData, path: Path) -> None:
    """Write the report in the form that the suffix of the file names.

    Raises:
        UserError: the file cannot be written.
    """
    check_suffix(path)
    text = FORMS[path.suffix](data)
    text = redact_json(text, _json) if path.suffix == ".json" else redact(text)
    try:
        write_text(path, text)
    except OSError as e:
        raise UserError(f"-o {path}: cannot be written ({e.strerror}); name another file") from None
