"""Answer a question from the passages that were retrieved for it."""

from collections.abc import Sequence
from typing import Any

import dspy


class Rag(dspy.Module):
    """Predict the output field from passages and input fields.

    The passages come with the example: they are retrieved once per question and kept, so that every arm reads the same.
    """

    def __init__(self, inputs: Sequence[str], output: str, instructions: str = "") -> None:
        """Build the signature from the task's field names; empty instructions leave DSPy's own."""
        super().__init__()
        fields: dict[str, Any] = {"passages": (list[str], dspy.InputField())}
        fields |= {name: (str, dspy.InputField()) for name in inputs}
        fields[output] = (str, dspy.OutputField())
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or None))

    def forward(self, passages: Sequence[str], **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example; an empty list of passages is a closed book."""
        return self.predict(passages=list(passages), **inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; an open answer has no labels."""
    return Rag(inputs, output, instructions)
