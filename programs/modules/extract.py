"""Extract the entities of a text: names of people and products, amounts, dates, or any other types of the task."""

from collections.abc import Sequence
from typing import Any

import dspy

from crossover.programs.entities import NONE


class Extract(dspy.Module):
    """Predict the output field, one `type: words` a line, from the input fields."""

    def __init__(self, inputs: Sequence[str], output: str, types: Sequence[str], instructions: str = "") -> None:
        """Build the signature from the task's field names; empty instructions leave DSPy's own."""
        super().__init__()
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
        form = f"one `type: words` a line, words as they stand in the text, `{NONE}` if there is nothing"
        fields[output] = (str, dspy.OutputField(desc=f"{form}; types: {', '.join(types)}"))
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or None))

    def forward(self, **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example."""
        return self.predict(**inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; the labels are the types of entities."""
    return Extract(inputs, output, labels, instructions)
