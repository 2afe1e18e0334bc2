"""Training text: the train examples as the serving side would render them, token for token."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from models.local import safe_messages
from models.prompt import engine_of, first_messages
from programs.demos import fields_of
from programs.task import UserError


@dataclass(frozen=True)
class TrainingText:
    """Rows for TRL, and what is worth knowing of them."""

    rows: list[dict[str, list[dict[str, str]]]]
    """`{"prompt": [messages], "completion": [message]}`: loss falls on the completion alone."""
    lengths: list[int]
    """Tokens of each row."""
    dropped: int
    """Rows longer than the model's context; never cut, counted."""
    sha256: str
    """Hash of the token ids of all prompts, as the serving side encodes them."""


def render_training_text(program: dspy.Module, examples: Sequence[dspy.Example], lm: dspy.LM) -> TrainingText:
    """Render every example by the calling context's DSPy adapter and the model's own chat template.

    Raises:
        UserError: the program has several predictors, or the examples lack a field of its one predictor.
    """
    predictors = program.named_predictors()
    if len(predictors) != 1:
        names = ", ".join(n for n, _ in predictors)
        raise UserError(f"sft trains programs of one predictor, and this one has {len(predictors)} ({names}); split it")
    predictor = predictors[0][1].deepcopy()
    predictor.demos = []
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    engine = engine_of(lm)
    rows, lengths, dropped, digest = [], [], 0, hashlib.sha256()
    for e in examples:
        demo = fields_of(e, predictor)
        if demo is None:
            missing = sorted(set(predictor.signature.fields) - set(e.keys()))
            raise UserError(f"train example {e['id']} lacks {', '.join(missing)}; add it to the data or to `fields`")
        prompt = safe_messages(engine.tokenizer, first_messages(program, e, predictor))
        answer = adapter.format_assistant_message_content(predictor.signature, demo)
        completion = safe_messages(engine.tokenizer, [{"role": "assistant", "content": answer}])
        prompt_ids = engine.encode(prompt)
        length = len(row_ids(engine.tokenizer, [*prompt, *completion]))
        if length > engine.context:
            dropped += 1
            continue
        digest.update(json.dumps(prompt_ids).encode())
        rows.append({"prompt": prompt, "completion": completion})
        lengths.append(length)
    if not rows:
        raise UserError(
            f"all {dropped} training rows exceed the model's context of {engine.context} tokens; shorten them"
        )
    return TrainingText(rows, lengths, dropped, digest.hexdigest())


def row_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Return the token ids of a finished conversation."""
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
