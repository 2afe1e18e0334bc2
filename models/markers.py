"""DSPy's chat and JSON frames for data that holds the frame's own markers.

Text such as `[[ ## completed ## ]]` inside an example would start a section of its own in the prompt, and end the
answer where a model repeats it. It is broken up on the way to the model and made whole again on the way back.
"""

from typing import Any

import dspy

WHOLE, BROKEN = "[[ ##", "[ [ ##"


def swapped(value: Any, old: str, new: str) -> Any:
    """Return the value with the text replaced, in lists and mappings too."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list | tuple):
        return [swapped(v, old, new) for v in value]
    if isinstance(value, dict | dspy.Example):
        return {k: swapped(v, old, new) for k, v in value.items()}
    return value


class SafeChatAdapter(dspy.ChatAdapter):
    """The chat frame, in which data cannot pass for a marker."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages, the data's markers broken up."""
        messages: list[dict[str, Any]] = super().format(
            signature, swapped(demos, WHOLE, BROKEN), swapped(inputs, WHOLE, BROKEN)
        )
        return messages

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Read the answer, and make markers in it whole again."""
        return {k: swapped(v, BROKEN, WHOLE) for k, v in super().parse(signature, completion).items()}


class SafeJSONAdapter(dspy.JSONAdapter):
    """The JSON frame, in which data cannot pass for a marker."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages, the data's markers broken up."""
        messages: list[dict[str, Any]] = super().format(
            signature, swapped(demos, WHOLE, BROKEN), swapped(inputs, WHOLE, BROKEN)
        )
        return messages

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Read the answer, and make markers in it whole again."""
        return {k: swapped(v, BROKEN, WHOLE) for k, v in super().parse(signature, completion).items()}
