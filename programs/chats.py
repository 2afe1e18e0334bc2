"""Read conversations as fine-tuning files hold them: `{"messages": [{"role": …, "content": …}, …]}`."""

from collections.abc import Mapping, Sequence
from typing import Any

from crossover.programs.records import Record

KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Column to the keys of speaker and text: OpenAI's form and ShareGPT's."""
ANSWERING = ("assistant", "gpt", "model")
ASKING = ("user", "human")


def with_question(record: Record) -> Record:
    """Return a conversation that ends with an answer as `question` and `answer`; any other record as it is.

    The question is the user's text, or the whole talk so far where there was more of it. System messages are left out.
    """
    for column, (speaker, text) in KEYS.items():
        turns = _turns(record.values.get(column), speaker, text)
        if len(turns) < 2 or turns[-1][0] not in ANSWERING or "question" in record.values:
            continue
        *before, (_, answer) = turns
        asked = before[0][1] if len(before) == 1 else "\n".join(f"{who}: {what}" for who, what in before)
        others = {k: v for k, v in record.values.items() if k != column}
        return Record(others | {"question": asked, "answer": answer}, record.where)
    return record


def _turns(value: Any, speaker: str, text: str) -> Sequence[tuple[str, str]]:
    """Return who says what in a list of messages, system messages left out; nothing where it is no such list."""
    if not isinstance(value, list) or not all(isinstance(m, Mapping) and isinstance(m.get(text), str) for m in value):
        return ()
    return [(str(m.get(speaker)), m[text]) for m in value if m.get(speaker) in (*ANSWERING, *ASKING)]
