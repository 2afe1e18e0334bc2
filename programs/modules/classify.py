"""Classify the input into one of a fixed set of labels."""

from collections.abc import Sequence
from typing import Any

import dspy

from crossover.models.answer_types import MOST_LABELS_SHOWN, has_commas, one_of


class Classify(dspy.Module):
    """Predict the output field, which is one of the labels, from the input fields."""

    def __init__(self, inputs: Sequence[str], output: str, labels: Sequence[str], instructions: str = "") -> None:
        """Build the signature from the task's field names; empty instructions leave DSPy's own."""
        super().__init__()
        shown = 0 < len(labels) <= MOST_LABELS_SHOWN
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
        answer = dspy.OutputField(desc=f"one of: {', '.join(labels)}") if shown else dspy.OutputField()
        # Not shown to the model; a frame that decodes among the labels alone reads them here.
        answer.json_schema_extra["labels"] = list(labels)
        fields[output] = (str, answer)
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or None))

    def forward(self, **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example."""
        return self.predict(**inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields and labels."""
    program = Classify(inputs, output, labels, instructions)
    # Not in the class, whose source is part of every cell's key: few labels hold commas.
    if has_commas(labels) and len(labels) <= MOST_LABELS_SHOWN:
        signature = program.predict.signature.with_updated_fields(output, desc=one_of(labels))
        program.predict.signature = signature
    return program
