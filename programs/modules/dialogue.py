"""Reply in a conversation, grounded in retrieved passages."""

from collections.abc import Sequence
from typing import Any

import dspy

from crossover.programs.fields import HISTORY

TASK = "Say the next turn of the conversation, with what the passages tell."


class Dialogue(dspy.Module):
    """Predict the next turn from passages, the turns so far and the other input fields.

    The input `history` holds the turns so far, one a line, oldest first; it is empty where a conversation starts.
    Every input is shown as it is, so that training reads the text that serving reads.
    """

    def __init__(self, inputs: Sequence[str], output: str, instructions: str = "") -> None:
        """Build the signature from the task's field names; empty instructions leave the program's own."""
        super().__init__()
        turns = dspy.InputField(desc="the turns so far, oldest first")
        fields: dict[str, Any] = {"passages": (list[str], dspy.InputField())}
        fields |= {name: (str, turns if name == HISTORY else dspy.InputField()) for name in inputs}
        fields[output] = (str, dspy.OutputField(desc="the next turn"))
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or TASK))

    def forward(self, passages: Sequence[str], **inputs: str) -> dspy.Prediction:
        """Return the next turn."""
        return self.predict(passages=list(passages), **inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; a turn has no labels."""
    return Dialogue(inputs, output, instructions)
