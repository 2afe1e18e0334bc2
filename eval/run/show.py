"""Show one test example as the model of a finished cell saw it: messages, answer, gold and score."""

import json
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from crossover.eval.report.text import field_text
from crossover.eval.run.passages import Indexes, Passages
from crossover.eval.store.cells import cell_folder
from crossover.eval.store.recorded import params_with
from crossover.eval.store.result import Result
from crossover.eval.tracking.package import recorded_task, shaped
from crossover.models.engine import Engine, wrapped
from crossover.models.errors import UserError
from crossover.models.load import load_model
from crossover.models.prompt import messages_of
from crossover.models.prompt_formats import prompt_format
from crossover.models.scripted import answered, load_tokenizer, scripted_lm
from crossover.models.source import weights_source
from crossover.models.spec import ModelSpec
from crossover.programs.score import Row
from crossover.programs.task import Task


class _Replay:
    """A hook that records the messages of each request, and gives the recorded answer in place of the model."""

    def __init__(self, answer: str) -> None:
        self.answer, self.requests = answer, list[list[dict[str, str]]]()

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Record one request."""
        self.requests.append(messages_of(request))
        return answered(request, self.answer or " ")


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
    cell, lines = result.cell, list[str]()
    passages = Passages(task, cell.retrieval, Indexes(store))
    (shown,) = passages.attach([question], cell.knowledge.test)
    if shown.get("passages"):
        lines += ["", "passages:", *_indented("\n".join(shown["passages"]))]
    lm, adapter = _model(result)
    replay = _Replay(row.raw)
    state = json.loads((cell_folder(store, result.key) / "program.json").read_text(encoding="utf-8"))
    program = shaped(task.program, state, lm)
    program.load_state(state)
    with dspy.context(lm=wrapped(lm, replay), adapter=adapter, rm=passages.live(cell.knowledge.test)):
        try:
            program(**shown.inputs())
        # An answer that cannot be parsed ends a program in many ways; its messages were recorded before.
        except Exception as e:
            lines += [] if replay.requests else ["", f"messages: cannot be rendered again: {type(e).__name__}: {e}"]
    for message in replay.requests[0] if replay.requests else ():
        lines += ["", f"{message['role']} (rendered again from the saved program):", *_indented(message["content"])]
    if len(task.program().predictors()) > 1:
        lines += ["", "the later steps of the program are not shown: their messages hold answers that are not stored"]
    return lines


def _model(result: Result) -> tuple[dspy.LM, dspy.Adapter]:
    """Return the cell's model without its weights, and its prompt format."""
    spec: ModelSpec = result.cell.model
    name = str(result.notes.get("prompt_format") or spec.prompt_format)
    if not spec.runs_here:
        model = load_model(spec)
        return model.lm, model.in_format(name).prompt_format
    from crossover.models.text import FALLBACK_TEMPLATE

    tokenizer, context = load_tokenizer(weights_source(spec.name), trust_remote_code=spec.trust_remote_code)
    lm = scripted_lm({}, tokenizer, context).copy(max_tokens=spec.max_tokens)
    instruct = tokenizer.chat_template != FALLBACK_TEMPLATE
    return lm, prompt_format(name, decode=spec.decode, instruct=instruct)


def _indented(text: Any) -> list[str]:
    return [f"  {line}" for line in str(text).splitlines()]
