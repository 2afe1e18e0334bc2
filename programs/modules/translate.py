"""Translate a text into another language."""

from collections.abc import Sequence

import dspy

INSTRUCTIONS = "Translate `{inputs}` into the language of `{output}`. Keep placeholders and markup as they are."


class Translate(dspy.Module):
    """Predict the output field from the input fields: the text, and whatever helps to translate it."""

    def __init__(self, inputs: Sequence[str], output: str, instructions: str = "") -> None:
        """Build the signature from the task's field names; a column named `german` tells the language by itself."""
        super().__init__()
        fields = {name: (str, dspy.InputField()) for name in inputs} | {output: (str, dspy.OutputField())}
        said = instructions or INSTRUCTIONS.format(inputs="`, `".join(inputs), output=output)
        self.predict = dspy.Predict(dspy.Signature(fields, said))

    def forward(self, **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example."""
        return self.predict(**inputs)


def build(inputs: Sequence[str], *, output: str, labels: Sequence[str], instructions: str) -> dspy.Module:
    """Return the program for a task's fields; a translation has no labels."""
    return Translate(inputs, output, instructions)
