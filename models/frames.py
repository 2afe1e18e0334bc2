"""Speak to each of two models in its own prompt frame within one DSPy program."""

from typing import Any

import dspy


class TwoFrames(dspy.Adapter):
    """The student's frame for every model but the teacher, which has its own.

    DSPy takes one adapter from the context, and an optimizer runs both models in it.
    """

    def __init__(self, student: dspy.Adapter, teacher: dspy.Adapter, teacher_lm: dspy.LM) -> None:
        """Use `teacher` for calls to the engine of `teacher_lm`, which copies of the model share."""
        super().__init__()
        self.student, self.teacher, self.engine = student, teacher, teacher_lm.engine

    def __call__(
        self,
        lm: dspy.LM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Format, call and parse by the frame of the model that is called."""
        frame = self.teacher if lm.engine is self.engine else self.student
        answers: list[dict[str, Any]] = frame(lm, lm_kwargs, signature, demos, inputs)
        return answers

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages as the student sees them."""
        messages: list[dict[str, Any]] = self.student.format(signature, demos, inputs)
        return messages

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Read the student's answer."""
        values: dict[str, Any] = self.student.parse(signature, completion)
        return values
