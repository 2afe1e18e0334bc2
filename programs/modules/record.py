"""Fill in the fields of a record: the attributes of a product, the entries of a form, several labels at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from crossover.programs.kinds import Kind


class Record(dspy.Module):
    """Predict every output field, each of its own type, from the input fields."""

    def __init__(self, inputs: Sequence[str], kinds: Mapping[str, Kind], instructions: str = "") -> None:
        """Build the signature from the task's field names and kinds; empty instructions leave DSPy's own."""
        super().__init__()
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
        for name, kind in kinds.items():
            described = dspy.OutputField(desc=kind.description) if kind.description else dspy.OutputField()
            fields[name] = (kind.annotation, described)
        self.predict = dspy.Predict(dspy.Signature(fields, instructions or None))

    def forward(self, **inputs: str) -> dspy.Prediction:
        """Return the prediction for one example."""
        return self.predict(**inputs)


def build(inputs: Sequence[str], *, kinds: Mapping[str, Kind], instructions: str) -> dspy.Module:
    """Return the program for a task's fields and their kinds."""
    return Record(inputs, kinds, instructions)
