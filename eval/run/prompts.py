"""Render the prompts of finished cells again: they are not stored, but follow from a saved program and its data."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import dspy
from dspy import lm15

from crossover.eval.report.data import ReportData
from crossover.eval.report.examples import disagreements, shown_arms
from crossover.eval.run.passages import Indexes, Passages
from crossover.eval.store.cells import cell_folder
from crossover.eval.store.result import Result
from crossover.eval.tracking.package import shaped
from crossover.eval.tracking.traces import Request
from crossover.models.engine import Engine, wrapped
from crossover.models.load import load_model
from crossover.models.prompt import messages_of
from crossover.models.prompt_formats import prompt_format
from crossover.models.scripted import answered, load_tokenizer, scripted_lm
from crossover.models.source import weights_source
from crossover.models.spec import ModelSpec
from crossover.programs.task import Task

LONGEST_HEAD, LONGEST_TAIL = 800, 1600
"""Characters of a message that the page shows of its beginning and of its end, where the question stands."""


class _Replay:
    """A hook that records the messages of each request, and gives the recorded answer in place of the model."""

    def __init__(self, answer: str) -> None:
        self.answer, self.requests = answer, list[list[dict[str, str]]]()

    def complete(self, request: lm15.Request, inner: Engine) -> lm15.Response:
        """Record one request."""
        self.requests.append(messages_of(request))
        return answered(request, self.answer or " ")


class Prompt(NamedTuple):
    """What a program read and sent for one question."""

    passages: tuple[str, ...]
    messages: tuple[dict[str, str], ...]
    """Of the first request; the later ones hold answers that are not stored."""
    fault: str
    """Why there are no messages; empty where there are."""


class CellPrompts:
    """The prompts of one finished cell; no weights are loaded."""

    def __init__(self, store: Path, result: Result, task: Task) -> None:
        """Load the saved program, its prompt format and the tokenizer."""
        self._knowledge = result.cell.knowledge.test
        self._passages = Passages(task, result.cell.retrieval, Indexes(store))
        model = result.cell.model
        self._lm, self._adapter = _model(model, str(result.notes.get("prompt_format") or model.prompt_format))
        state = json.loads((cell_folder(store, result.key) / "program.json").read_text(encoding="utf-8"))
        self._program = shaped(task.program, state, self._lm, task.outputs)
        self._program.load_state(state)

    def of(self, question: dspy.Example, answer: str, *, search: bool = True) -> Prompt:
        """Return the prompt of a question; the recorded `answer` stands for the model's.

        Without `search`, a program that searches while it runs goes no further than to its first search.
        """
        (shown,) = self._passages.attach([question], self._knowledge)
        replay, fault = _Replay(answer), ""
        searcher = self._passages.live(self._knowledge) if search else None
        with dspy.context(lm=wrapped(self._lm, replay), adapter=self._adapter, rm=searcher):
            try:
                self._program(**shown.inputs())
            # An answer that cannot be parsed ends a program in many ways; its messages were recorded before.
            except Exception as e:
                fault = "" if replay.requests else f"{type(e).__name__}: {e}"
        messages = replay.requests[0] if replay.requests else ()
        return Prompt(tuple(shown.get("passages") or ()), tuple(messages), fault)


def requests_of(store: Path, result: Result, task: Task, examples: Sequence[dspy.Example]) -> list[Request]:
    """Return what the model was asked for examples of a finished cell.

    Raises:
        UserError: the passages or the model's tokenizer cannot be read any more.
    """
    prompts, raw = CellPrompts(store, result, task), {r.id: r.raw for r in result.rows}
    found = [prompts.of(e, raw[str(e["id"])], search=False) for e in examples]
    return [Request(p.passages, p.messages) for p in found]


@cache
def _model(spec: ModelSpec, name: str) -> tuple[dspy.LM, dspy.Adapter]:
    """Return a model without its weights, and the prompt format of that name; the cells of a run share them."""
    if not spec.runs_here:
        model = load_model(spec)
        return model.lm, model.in_format(name).prompt_format
    from crossover.models.text import FALLBACK_TEMPLATE

    tokenizer, context = load_tokenizer(weights_source(spec.name), trust_remote_code=spec.trust_remote_code)
    lm = scripted_lm({}, tokenizer, context).copy(max_tokens=spec.max_tokens)
    instruct = tokenizer.chat_template != FALLBACK_TEMPLATE
    return lm, prompt_format(name, decode=spec.decode, instruct=instruct)


def prompts_of(store: Path, data: ReportData) -> Mapping[tuple[str, str], list[tuple[str, str]]]:
    """Return the messages behind the answers that the page shows, by cell key and example id.

    A cell whose prompts cannot be rendered again is left out: the page is worth writing without them.
    """
    found = {}
    for verdict in data.comparison.verdicts:
        task, arms = data.finished.tasks[verdict.task], shown_arms(data, verdict)
        samples, _ = disagreements(data, verdict.task, arms)
        raw = {d.id: {a.cell: a.raw for a in d.answers.values()} for d in samples}
        questions = [e for e in task.test if str(e["id"]) in raw]
        for result in (data.results(arm)[0] for arm in arms):
            try:
                prompts = CellPrompts(store, result, task)
                for e in questions:
                    messages = prompts.of(e, raw[str(e["id"])].get(result.key, ""), search=False).messages
                    found[result.key, str(e["id"])] = [(m["role"], _shortened(m["content"])) for m in messages]
            # What a program or a tokenizer of somebody else's raises is not known.
            except Exception:
                continue
    return found


def _shortened(text: str) -> str:
    """Return a message without its middle, where it is long: the demonstrations."""
    left_out = len(text) - LONGEST_HEAD - LONGEST_TAIL
    if left_out <= 0:
        return text
    return f"{text[:LONGEST_HEAD]}\n… ({left_out:,} more characters) …\n{text[-LONGEST_TAIL:]}"
