"""Write a report in the form that a file's suffix names."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from crossover.eval.report.evidence import Evidence, checks
from crossover.eval.report.markdown import markdown
from crossover.eval.report.page import html_page
from crossover.eval.report.table import arm_json, render, to_json
from crossover.eval.report.text import visible
from crossover.models.errors import UserError


def table(evidence: Evidence) -> str:
    """Return one CSV line an arm: the numbers of `--json` but those by label, nested keys joined by `_`."""
    lines = []
    for arm in evidence.comparison.arms:
        nested = arm_json(arm) | {"kind": arm.kind}
        del nested["labels"]
        flat: dict[str, object] = {}
        for key, value in nested.items():
            if isinstance(value, dict):
                flat |= {f"{key}_{inner}": x for inner, x in value.items()}
            else:
                flat[key] = "; ".join(map(str, value)) if isinstance(value, list) else value
        verdict = next(v for v in evidence.comparison.verdicts if v.task == arm.task)
        lines.append(flat | {"chosen": arm.name == verdict.choose})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def junit(evidence: Evidence) -> str:
    """Return one test suite a task, one test case a gate and an integrity check, as CI systems read them."""
    root = ElementTree.Element("testsuites", name=visible(f"crossover {evidence.comparison.experiment}"))
    for task in evidence.comparison.split_sha256:
        cases = [(f"{c.subject}: {c.name}", c.failure) for c in checks(evidence, task)]
        cases += [(f"gate {o.gate}", "" if o.passed else o.found) for o in evidence.outcomes if o.task == task]
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


FORMS: dict[str, Callable[[Evidence], str]] = {
    ".html": html_page,
    ".md": markdown,
    ".json": lambda e: json.dumps(to_json(e.comparison), indent=1) + "\n",
    ".csv": table,
    ".xml": junit,
    ".txt": lambda e: render(e.comparison),
}
"""Suffix to what writes it."""


def check_suffix(path: Path) -> None:
    """Refuse a file that could not be written in any form.

    Raises:
        UserError: the suffix is not one that can be written, or the folder does not exist.
    """
    if path.suffix not in FORMS:
        raise UserError(f"-o {path}: no form for {path.suffix or 'a file without suffix'}; use {', '.join(FORMS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"-o {path}: no folder {path.parent}; make it first")


def write_report(evidence: Evidence, path: Path) -> None:
    """Write the report in the form of the file's suffix.

    Raises:
        UserError: the file cannot be written.
    """
    check_suffix(path)
    text = FORMS[path.suffix](evidence)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(f"-o {path}: cannot be written ({e.strerror}); name another file") from None
