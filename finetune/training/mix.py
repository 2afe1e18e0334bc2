"""Mix general rows among the task's own, against forgetting."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import dspy

from crossover.finetune.training.render import TrainingText, row_ids
from crossover.models.errors import UserError
from crossover.models.prompt import engine_of
from crossover.models.text import safe_messages


def read_general(file: Path) -> list[dict[str, list[dict[str, str]]]]:
    """Read a file of `{"prompt": …, "completion": …}` lines, each value a text or a list of messages.

    Raises:
        UserError: the file is missing or empty, or a line has another form.
    """
    if not file.is_file():
        raise UserError(f"sft mix_file {file}: no such file; name JSON lines with prompt and completion")
    rows = []
    # Not by `splitlines`, which also ends a line at characters that JSON may hold, such as U+2028.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({k: _messages(row[k], r) for k, r in (("prompt", "user"), ("completion", "assistant"))})
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file}:{number}: not a row with prompt and completion ({e}); correct the line") from e
    if not rows:
        raise UserError(f"sft mix_file {file}: it is empty; name JSON lines with prompt and completion")
    return rows


def _messages(value: object, role: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is neither text nor messages")
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in value]


def with_general(
    text: TrainingText, general: Sequence[Mapping[str, list[dict[str, str]]]], share: float, lm: dspy.LM, seed: int
) -> TrainingText:
    """Add general rows, drawn by the seed, until they are this share of all rows, or there are no more.

    Rows that exceed the context are skipped.
    """
    engine = engine_of(lm)
    rows, lengths = list(text.rows), list(text.lengths)
    wanted = len(rows) + round(share / (1 - share) * len(rows))
    for row in random.Random(seed).sample(general, len(general)):
        if len(rows) >= wanted:
            break
        safe = {k: safe_messages(engine.tokenizer, messages) for k, messages in row.items()}
        length = len(row_ids(engine.tokenizer, [*safe["prompt"], *safe["completion"]]))
        if length <= engine.context:
            rows.append(safe)
            lengths.append(length)
    return replace(text, rows=rows, lengths=lengths)
