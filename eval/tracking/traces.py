"""Log examples of the arms as MLflow traces with their score, and the test set as an evaluation dataset.

Both are written after the run, so that no measurement is traced. All arms show the same examples, which lets MLflow's
evaluation view set the answers of two arms side by side.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import dspy

from crossover.eval.analysis.labels import gold_of
from crossover.eval.experiment.splits import sample
from crossover.eval.report.text import field_text, visible
from crossover.eval.store.names import file_name
from crossover.eval.store.result import Result
from crossover.eval.tracking.logged import answer_text, examples_by_id
from crossover.eval.tracking.tracker import Tracker, typed
from crossover.models.api_keys import redact, redact_all
from crossover.programs.score import Row
from crossover.programs.task import Task

MOST_TRACES = 50
"""Examples of an arm that are traced."""
MOST_RECORDS = 1000
"""Test examples that the evaluation dataset holds."""
LONGEST_PREVIEW = 1000
"""Characters of question and answer in MLflow's list of traces."""
TRACED = "crossover.traces"
"""Tag of a run whose traces are logged: their number."""


class Request(NamedTuple):
    """Input of the model for one example."""

    passages: Sequence[str]
    messages: Sequence[Mapping[str, str]]
    """Role and content of each message of the program's first call; empty where they cannot be rendered again."""


RequestsOf = Callable[[Result, Task, Sequence[dspy.Example]], Sequence[Request]]
"""Renders the model's input for examples of a result."""


def no_requests(result: Result, task: Task, examples: Sequence[dspy.Example]) -> list[Request]:
    """Return requests without passages and messages."""
    return [Request((), ()) for _ in examples]


def log_traces(tracker: Tracker, run_id: str, result: Result, task: Task, requests: RequestsOf) -> None:
    """Log up to `MOST_TRACES` examples of a result as traces of its run, once.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    from mlflow.tracing.client import TracingClient

    rows = {r.id: r for r in result.rows}
    examples = [e for e in sample(list(examples_by_id(task, result).values()), MOST_TRACES) if str(e["id"]) in rows]
    with typed():
        run = tracker.client.get_run(run_id)
        if not examples or TRACED in run.data.tags:
            return
        try:
            asked = requests(result, task, examples)
        # What a program or a tokenizer of somebody else's raises is not known; traces are worth logging without it.
        except Exception:
            asked = no_requests(result, task, examples)
        client, spans = TracingClient(tracker.uri), list[Any]()
        for number, (example, request) in enumerate(zip(examples, asked, strict=True)):
            trace = _Trace(run_id, example, rows[str(example["id"])], task, run.info.start_time + number)
            client.start_trace(trace.info(run.info.experiment_id, run.data.tags["mlflow.runName"]))
            spans += trace.spans(request, result)
        client.log_spans(run.info.experiment_id, spans)
        tracker.client.set_tag(run_id, TRACED, str(len(examples)))


class _Trace:
    """One example as MLflow's entities; its ids follow from run and example, so that it is never logged twice."""

    def __init__(self, run_id: str, example: dspy.Example, row: Row, task: Task, began_ms: int) -> None:
        self.run_id, self.example, self.row, self.task, self.began_ms = run_id, example, row, task, began_ms
        self.digest = hashlib.sha256(f"{run_id}:{row.id}".encode()).hexdigest()[:32]
        self.question = {k: v for k, v in example.inputs().items() if k != "passages"}

    def info(self, experiment_id: str, name: str) -> Any:
        """Return the trace without its spans: question, answer, score and gold answer."""
        from mlflow.entities import AssessmentSource, Expectation, Feedback, TraceInfo, TraceLocation, TraceState

        metric = AssessmentSource(source_type="CODE", source_id=self.task.metric_name)
        people = AssessmentSource(source_type="HUMAN", source_id="test set")
        scored = [] if self.row.score is None else [Feedback(name="score", value=self.row.score, source=metric)]
        return TraceInfo(
            trace_id=f"tr-{self.digest}",
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=self.began_ms,
            state=TraceState.ERROR if self.row.failure else TraceState.OK,
            request_preview=visible(" / ".join(map(field_text, self.question.values())))[:LONGEST_PREVIEW],
            response_preview=visible(redact(answer_text(self.row, self.task.outputs)))[:LONGEST_PREVIEW],
            client_request_id=visible(self.row.id),
            execution_duration=round(1000 * self.row.seconds),
            trace_metadata={"mlflow.sourceRun": self.run_id, "mlflow.trace_schema.version": "3"},
            tags={"mlflow.traceName": name, "mlflow.trace.spansLocation": "TRACKING_STORE"},
            assessments=[
                *scored,
                Expectation(name="expected_response", value=gold_of(self.task, self.example), source=people),
            ],
        )

    def spans(self, request: Request, result: Result) -> list[Any]:
        """Return the spans: the program, and in it what it read, what the model was asked and said, and the parsing."""
        row, cell, answer = self.row, result.cell, redact_all(dict(self.row.output))
        found = float(result.notes.get("retrieval_ms") or 0) / 1000 if request.passages else 0.0
        spans = [self._span(0, cell.method.label, "CHAIN", (0, row.seconds), self.question, answer, error=row.failure)]
        if request.passages:
            documents = [{"page_content": p, "metadata": {}} for p in request.passages]
            spans.append(self._span(1, "retrieval", "RETRIEVER", (0, found), self.question, documents))
        tokens = {
            "input_tokens": row.prompt_tokens,
            "output_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        }
        said = {"choices": [{"message": {"role": "assistant", "content": redact(row.raw)}, "finish_reason": "stop"}]}
        # MLflow asks LiteLLM for the price of a model under its own key; importing it takes seconds, for no price here.
        named = "model" if result.local else "mlflow.llm.model"
        extra = {"mlflow.chat.tokenUsage": tokens, named: cell.model.name, "calls": row.calls}
        asked = {"messages": [dict(m) for m in request.messages]}
        spans.append(self._span(2, "model", "CHAT_MODEL", (found, row.seconds), asked, said, extra=extra))
        end, wrong = (row.seconds, row.seconds), "the answer could not be read" if row.unparsed else ""
        spans.append(self._span(3, "parse", "PARSER", end, {"text": redact(row.raw)}, answer, error=wrong))
        return spans

    def _span(
        self,
        number: int,
        name: str,
        kind: str,
        seconds: tuple[float, float],
        inputs: Any,
        outputs: Any,
        *,
        error: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> Any:
        from mlflow.entities import Span

        start, end = (1_000_000 * self.began_ms + int(1e9 * s) for s in seconds)
        attributes = {
            "mlflow.traceRequestId": f"tr-{self.digest}",
            "mlflow.spanType": kind,
            "mlflow.spanInputs": inputs,
            "mlflow.spanOutputs": outputs,
            **(extra or {}),
        }
        return Span.from_dict(
            {
                "name": name,
                "trace_id": f"tr-{self.digest}",
                "span_id": f"{int(self.digest[:15], 16) + number:016x}",
                "parent_span_id": f"{int(self.digest[:15], 16):016x}" if number else None,
                "start_time_unix_nano": start,
                "end_time_unix_nano": end,
                "status": {"code": "ERROR" if error else "OK", "message": redact(error)},
                "attributes": {k: json.dumps(v, default=str) for k, v in attributes.items()},
            }
        )


def log_dataset(tracker: Tracker, parent: str, experiment: str, task: Task, split_sha256: str) -> None:
    """Make the first `MOST_RECORDS` test examples of a task an evaluation dataset of MLflow, once for each split.

    Raises:
        TrackingError: MLflow could not be reached or written.
    """
    from mlflow.tracing.client import TracingClient

    name = f"{file_name(f'{experiment}.{task.name}')}.test.{split_sha256[:8]}"
    with typed():
        experiment_id = tracker.experiment_of(parent)
        if tracker.client.search_datasets([experiment_id], f"name = '{name}'", max_results=1):
            return
        made = tracker.client.create_dataset(name, [experiment_id], {"split_sha256": split_sha256})
        records = [
            {
                "inputs": json.loads(json.dumps(dict(e.inputs()), default=str)),
                "expectations": {"expected_response": gold_of(task, e)},
                "tags": {"example": str(e["id"])},
            }
            for e in sample(task.test, MOST_RECORDS)
        ]
        TracingClient(tracker.uri).store.upsert_dataset_records(made.dataset_id, records)
