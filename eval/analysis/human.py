"""Write a sheet of answers for people to grade without knowing the arm, read the grades back, and correct the judge."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossover.eval.analysis.ppi import corrected_mean, kappa
from crossover.eval.analysis.stats import Estimate
from crossover.eval.store.cells import save_human
from crossover.eval.store.result import Result
from crossover.models.errors import UserError
from crossover.programs.fields import right_answers, text_of
from crossover.programs.judge import GRADES
from crossover.programs.splits import fraction
from crossover.programs.task import Task

Ratings = Mapping[str, Mapping[str, str]]
"""Example id to the grades of a person by criterion."""


@dataclass(frozen=True)
class HumanCheck:
    """Human grades of a sample of the answers of an arm, compared with the judge."""

    n: int
    """Examples rated by every criterion."""
    kappa: Mapping[str, float]
    """Cohen's kappa of judge and people by criterion; NaN where both gave one and the same grade to everything."""
    corrected: Estimate
    """Estimate of the mean score that people would have given the arm."""


def item_of(key: str, answer: str) -> str:
    """Return the name of an answer on the sheet, which does not reveal the arm."""
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()[:12]


def sheet(task: Task, results: Sequence[Result], criteria: Sequence[str], examples: int) -> str:
    """Return a CSV of the distinct answers of all arms to a random sample of the examples, in random order."""
    scored = {r.id for result in results for r in result.rows if not r.failure}
    chosen = sorted((e for e in task.test if str(e["id"]) in scored), key=lambda e: fraction(f"human {e['id']}"))
    by_id = {str(e["id"]): e for e in chosen[:examples]}
    answers = {(r.id, _answer(task, r.output)) for x in results for r in x.rows if r.id in by_id and not r.failure}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", *task.inputs, "reference", "answer", *criteria])
    for key, answer in sorted(answers, key=lambda pair: item_of(*pair)):
        e = by_id[key]
        output = task.outputs[0]
        reference = " | or: ".join(map(text_of, right_answers(e[output], is_list=output in task.lists)))
        shown = [*(text_of(e[i]) for i in task.inputs), reference, answer]
        writer.writerow([item_of(key, answer), *map(inert, shown), *("" for _ in criteria)])
    return text.getvalue()


def import_sheet(store: Path, file: Path, task: Task, results: Sequence[Result], criteria: Sequence[str]) -> int:
    """Store the grades of a filled sheet with the cells that gave the answers, and return how many answers have grades.

    Raises:
        UserError: the sheet belongs to other runs, or holds an unknown grade.
    """
    rated = _read(file, criteria)
    known = set[str]()
    for result in results:
        ratings = dict(result.human)
        for row in result.rows:
            item = item_of(row.id, _answer(task, row.output))
            if item in rated and not row.failure:
                ratings[row.id] = rated[item]
                known.add(item)
        result.human = ratings
        save_human(store, result)
    if unknown := rated.keys() - known:
        raise UserError(f"{file}: item {min(unknown)!r} is no answer of these runs; export the sheet again")
    return len(known)


def _read(file: Path, criteria: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the grades of a filled sheet by item and criterion, without items that have no grade."""
    try:
        lines = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines(keepends=True)))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: cannot be read ({type(e).__name__}); give the filled sheet as CSV in UTF-8") from e
    if lines and (missing := {"item", *criteria} - lines[0].keys()):
        raise UserError(f"{file}: no column {min(missing)!r}; keep the columns of the exported sheet")
    rated = dict[str, dict[str, str]]()
    for number, line in enumerate(lines, 2):
        grades = {c: (line[c] or "").strip().lower() for c in criteria}
        for name, grade in grades.items():
            if grade and grade not in GRADES:
                raise UserError(f"{file}: row {number}: {name} is {grade!r}; write {', '.join(GRADES)} or nothing")
        if filled := {c: g for c, g in grades.items() if g}:
            rated[line["item"]] = filled
    return rated


def human_check(results: Sequence[Result], scores: Mapping[str, float]) -> HumanCheck | None:
    """Compare judge and people on the seeds of an arm with these mean scores, or return None without ratings."""
    criteria = list(dict.fromkeys(c for r in results for c in r.notes.get("judge", {}).get("criteria", {})))
    pairs: dict[str, list[tuple[str, str]]] = {c: [] for c in criteria}
    means: dict[str, list[float]] = {}
    for result in results:
        if not result.human:
            continue
        for row in result.rows:
            human, judge = result.human.get(row.id, {}), row.output.get("judgement", {}).get("grades", {})
            for c in human.keys() & judge.keys():
                pairs[c].append((human[c], judge[c]))
            if criteria and human.keys() >= set(criteria):
                means.setdefault(row.id, []).append(sum(GRADES[human[c]] for c in criteria) / len(criteria))
    rated = {i: sum(m) / len(m) for i, m in means.items() if len(m) == len(results) and i in scores}
    if not rated:
        return None
    rest = [s for i, s in scores.items() if i not in rated]
    corrected = corrected_mean(list(rated.values()), [scores[i] for i in rated], rest)
    return HumanCheck(len(rated), {c: kappa(pairs[c], list(GRADES)) for c in criteria}, corrected)


def _answer(task: Task, output: Mapping[str, object]) -> str:
    return text_of(output.get(task.outputs[0]))


def inert(text: str) -> str:
    """Return the text quoted where a spreadsheet would take it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
