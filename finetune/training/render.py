"""Render training text as the serving side renders prompts, token for token."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from crossover.finetune.training.targets import Call
from crossover.models.errors import UserError
from crossover.models.jsonl import append_lines, replacing
from crossover.models.prompt import engine_of, first_messages
from crossover.models.text import safe_messages
from crossover.models.token_engine import TokenEngine


@dataclass(frozen=True)
class TrainingText:
    """Rows for TRL, with their lengths and hash."""

    rows: list[dict[str, list[dict[str, str]]]]
    """`{"prompt": [messages], "completion": [message]}`: loss falls on the completion alone."""
    lengths: list[int]
    """Tokens of each row."""
    dropped: int
    """Rows longer than the model's context; never cut, counted."""
    sha256: str
    """Hash of the token ids of all rows."""


def render_training_text(program: dspy.Module, calls: Sequence[Call], lm: dspy.LM) -> TrainingText:
    """Render every call by the calling context's DSPy adapter and the model's own chat template.

    Raises:
        UserError: no row fits the model's context.
    """
    engine = engine_of(lm)
    rows, lengths, dropped, digest = [], [], 0, hashlib.sha256()
    for call in calls:
        prompt, completion = render_call(program, call, engine.tokenizer)
        whole = row_ids(engine.tokenizer, [*prompt, *completion])
        if len(whole) > engine.context:
            dropped += 1
            continue
        digest.update(json.dumps(whole).encode())
        rows.append({"prompt": prompt, "completion": completion})
        lengths.append(len(whole))
    if not rows:
        raise UserError(
            f"all {dropped} training rows exceed the model's context of {engine.context} tokens; shorten them"
        )
    return TrainingText(rows, lengths, dropped, digest.hexdigest())


def render_call(program: dspy.Module, call: Call, tokenizer: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the prompt of a call without demonstrations, and the message that answers it.

    A field that the call has no answer for, such as a reasoning, is an empty text.
    """
    predictor = dict(program.named_predictors())[call.predictor].deepcopy()
    predictor.demos = []
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    example = dspy.Example(**call.inputs).with_inputs(*call.inputs)
    prompt = safe_messages(tokenizer, first_messages(program, example, predictor))
    answer = adapter.format_assistant_message_content(predictor.signature, call.outputs, missing_field_message="")
    return prompt, safe_messages(tokenizer, [{"role": "assistant", "content": answer}])


def write_jsonl(text: TrainingText, file: Path) -> None:
    """Write the rows in the format of other trainers: prompt and completion, each a list of messages."""
    with replacing(file) as draft:
        append_lines(draft, text.rows)


def perplexity(text: TrainingText, lm: dspy.LM, *, rows: int = 16) -> float:
    """Return the perplexity of the completions of the first rows under the untrained model.

    The lower, the less a training has to change (arXiv 2402.11192).
    """
    engine: TokenEngine = engine_of(lm)
    total, count = 0.0, 0
    for row in text.rows[:rows]:
        given = len(engine.encode(row["prompt"]))
        ids = row_ids(engine.tokenizer, [*row["prompt"], *row["completion"]])
        answer = len(ids) - given
        total -= float(engine.token_logprobs(ids, answer).sum())
        count += answer
    return math.exp(total / count)


def row_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the token ids of a finished conversation."""
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
