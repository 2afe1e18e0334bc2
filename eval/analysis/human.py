"""A sheet of answers for people to grade, blind to which arm gave them, and the way back of what they said."""

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
from crossover.programs.fields import answers_of, text_of
from crossover.programs.judge import GRADES
from crossover.programs.splits import fraction
from crossover.programs.task import Task

Ratings = Mapping[str, Mapping[str, str]]
"""Example id to a person's grades by criterion."""


@dataclass(frozen=True)
class HumanCheck:
    """How people graded a sample of an arm's answers, beside the judge."""

    n: int
    """Examples rated by every criterion."""
    kappa: Mapping[str, float]
    """Agreement of judge and people by criterion; NaN where nobody ever differed in anything."""
    corrected: Estimate
    """The arm's mean as people would have graded it."""


def item_of(key: str, answer: str) -> str:
    """Return the name of an answer on the sheet, which tells nothing of who gave it."""
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()[:12]


def sheet(task: Task, results: Sequence[Result], criteria: Sequence[str], examples: int) -> str:
    """Return a CSV of the different answers of all arms to a random sample of the examples, in random order."""
    scored = {r.id for result in results for r in result.rows if not r.failure}
    chosen = sorted((e for e in task.test if str(e["id"]) in scored), key=lambda e: fraction(f"human {e['id']}"))
    by_id = {str(e["id"]): e for e in chosen[:examples]}
    answers = {(r.id, _answer(task, r.output)) for x in results for r in x.rows if r.id in by_id and not r.failure}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", *task.inputs, "reference", "answer", *criteria])
    for key, answer in sorted(answers, key=lambda pair: item_of(*pair)):
        e = by_id[key]
        reference = " | or: ".join(text_of(v) for v in answers_of(e[task.outputs[0]]))
        shown = [*(text_of(e[i]) for i in task.inputs), reference, answer]
        writer.writerow([item_of(key, answer), *map(_inert, shown), *("" for _ in criteria)])
    return text.getvalue()


def import_sheet(store: Path, file: Path, task: Task, results: Sequence[Result], criteria: Sequence[str]) -> int:
    """Keep the grades of a filled sheet with the cells whose answers they are, and return how many answers have any.

    Raises:
        UserError: the sheet is not of these runs, or holds a grade that is none.
    """
    rated = _read(file, criteria)
    known = set[str]()
    for result in results:
        kept = dict(result.human)
        for row in result.rows:
            item = item_of(row.id, _answer(task, row.output))
            if item in rated and not row.failure:
                kept[row.id] = rated[item]
                known.add(item)
        result.human = kept
        save_human(store, result)
    if unknown := rated.keys() - known:
        raise UserError(f"{file}: item {min(unknown)!r} is no answer of these runs; export the sheet again")
    return len(known)


def _read(file: Path, criteria: Sequence[str]) -> dict[str, dict[str, str]]:
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
    """Return how people graded an arm, given the results of its seeds and its mean scores; None without ratings."""
    criteria = [c for r in results for c in r.notes.get("judge", {}).get("criteria", {})]
    criteria = list(dict.fromkeys(criteria))
    pairs: dict[str, list[tuple[str, str]]] = {c: [] for c in criteria}
    means: dict[str, list[float]] = {}
    for result in results:
        if not result.human:
            continue
        for row in result.rows:
            said, judged = result.human.get(row.id, {}), row.output.get("judgement", {}).get("grades", {})
            for c in said.keys() & judged.keys():
                pairs[c].append((said[c], judged[c]))
            if criteria and said.keys() >= set(criteria):
                means.setdefault(row.id, []).append(sum(GRADES[said[c]] for c in criteria) / len(criteria))
    rated = {i: sum(m) / len(m) for i, m in means.items() if len(m) == len(results) and i in scores}
    if not rated:
        return None
    rest = [s for i, s in scores.items() if i not in rated]
    corrected = corrected_mean(list(rated.values()), [scores[i] for i in rated], rest)
    return HumanCheck(len(rated), {c: kappa(pairs[c], list(GRADES)) for c in criteria}, corrected)


def _answer(task: Task, output: Mapping[str, object]) -> str:
    return text_of(output.get(task.outputs[0]))


def _inert(text: str) -> str:
    """Return the text so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
