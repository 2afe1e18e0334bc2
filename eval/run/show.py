"""Show one test example as the model of a finished cell saw it: messages, answer, gold and score."""

from pathlib import Path
from typing import Any

import dspy

from crossover.eval.report.text import field_text
from crossover.eval.run.prompts import CellPrompts
from crossover.eval.store.recorded import params_with
from crossover.eval.store.result import Result
from crossover.eval.tracking.package import recorded_task
from crossover.models.errors import UserError
from crossover.programs.score import Row
from crossover.programs.task import Task


def question_lines(store: Path, result: Result, example: str | None) -> list[str]:
    """Return the lines that show one example of a finished cell; the first wrong one when none is named.

    Messages are not stored: they are rendered again from the cell's saved program and the data of its experiment.

    Raises:
        UserError: the cell has no such example.
    """
    row = _row(result, example)
    cell = result.cell
    lines = [
        f"cell {result.key}: {cell.task}  {cell.model.name}  {cell.title}",
        f"example {row.id}, one of {len(result.rows)}",
    ]
    task = recorded_task(params_with(store, result.key), cell.task)
    question = None
    # The hash of a judged task's splits names the judge, which is not loaded here.
    if task is not None and ("judge" in result.notes or task.split_sha256() == result.split_sha256):
        question = next((e for e in task.test if str(e["id"]) == row.id), None)
    if task is None or question is None:
        lines.append("its question cannot be shown: the data is gone or has changed since the run")
    else:
        lines += _messages(store, result, task, question, row)
    lines += ["", "raw answer:", *_indented(row.raw or "(not recorded)"), "", "parsed answer:"]
    parsed = [f"{k}: {field_text(v)}" for k, v in row.output.items()]
    lines += _indented("\n".join(parsed) or "(none: it could not be parsed)")
    if task is not None and question is not None:
        gold = [f"{name}: {field_text(question[name])}" for name in task.outputs]
        lines += ["", "gold:", *_indented("\n".join(gold))]
    return [*lines, "", f"score: {'none, failed by ' + row.failure if row.score is None else f'{row.score:g}'}"]


def _row(result: Result, example: str | None) -> Row:
    """Return the row of an example, or the first that is not right."""
    if example is None:
        return next((r for r in result.rows if r.score != 1.0), result.rows[0])
    row = next((r for r in result.rows if r.id == example), None)
    if row is None:
        some = ", ".join(r.id for r in result.rows[:5])
        raise UserError(f"{result.key}: no example {example!r}; use one of {some}, …")
    return row


def _messages(store: Path, result: Result, task: Task, question: dspy.Example, row: Row) -> list[str]:
    """Return the passages and the messages of the first request, and how many more requests the program makes."""
    prompt, lines = CellPrompts(store, result, task).of(question, row.raw), list[str]()
    if prompt.passages:
        lines += ["", "passages:", *_indented("\n".join(prompt.passages))]
    lines += ["", f"messages: cannot be rendered again: {prompt.fault}"] if prompt.fault else []
    for message in prompt.messages:
        lines += ["", f"{message['role']} (rendered again from the saved program):", *_indented(message["content"])]
    if len(task.program().predictors()) > 1:
        lines += ["", "the later steps of the program are not shown: their messages hold answers that are not stored"]
    return lines


def _indented(text: Any) -> list[str]:
    return [f"  {line}" for line in str(text).splitlines()]
