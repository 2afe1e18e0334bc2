"""Answer a question, in free text or in a few words."""

from collections.abc import Sequence
from typing import Any

import dspy


class Answer(dspy.Module):
    """Predict the output field from the input fields."""

    def __init__(self, inputs: Sequence[str], output: str, instructions: str = "") -> None:
        """Build the signature from the task's field names; empty instructions leave DSPy's own."""
        super().__init__()
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
        fields[output] = (str, dspy.OutputField())
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or None))

    def forward(self, **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example."""
        return self.predict(**inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; a free answer has no labels."""
    return Answer(inputs, output, instructions)
