"""A small experiment on a provider's model, asked at a server on loopback."""

import json
from pathlib import Path

from openai_server import Messages, obedient_student

METHODS = "[zero_shot, {few_shot: {demos: 2}}]"


def first_word(model: str, messages: Messages) -> str:
    """Answer as a model that half understands: right for questions of one kind."""
    return obedient_student(messages)


def write_remote(folder: Path, url: str, *, methods: str = METHODS, test: int = 12, more: str = "") -> Path:
    """Write data and experiment file; a third of the labels is not what the model will say."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, start, count in (("train", 0, 12), ("val", 100, 6), ("test", 200, test)):
        rows = [
            {"id": f"{split}{n}", "text": f"kind{n % 4} of {n}", "label": f"kind{n % 4}" if n % 3 else "other"}
            for n in range(start, start + count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    file = folder / "remote.yaml"
    file.write_text(f"""\
version: 1
name: words
tasks:
  - name: words
    program: classify
    data: {{train: train.jsonl, val: val.jsonl, test: test.jsonl}}
    fields: {{text: input, label: output}}
models: [{{name: openai/gpt-4o-mini, prompt_format: plain, max_tokens: 8, api_base: "{url}"}}]
methods: {methods}
{more}
""")
    return file
