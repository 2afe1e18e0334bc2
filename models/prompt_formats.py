"""The prompt formats: DSPy adapters that turn a signature into messages and an answer into its fields."""

from typing import Any

import dspy

from crossover.models.grammars import ConstrainedFormat, json_object, sections
from crossover.models.plain import PlainAdapter
from crossover.models.spec import FORMATS

MARKER, BROKEN_MARKER = "[[ ##", "[ [ ##"


def prompt_format(name: str, *, decode: str = "free", instruct: bool = False) -> dspy.Adapter:
    """Return the prompt format `plain`, `chat` or `json`; none of them makes a second call when parsing fails.

    `decode` is that of a local model. A model that was trained to follow instructions (`instruct`) is shown more in
    `plain`; DSPy's own formats show everything to every model.

    Raises:
        ValueError: there is no such format.
    """
    if name == "plain":
        chosen: PlainAdapter | SafeChatAdapter | SafeJSONAdapter = PlainAdapter(instruct=instruct)
    elif name == "chat":
        chosen = SafeChatAdapter(use_json_adapter_fallback=False)
    elif name == "json":
        chosen = SafeJSONAdapter()
    else:
        raise ValueError(f"prompt format {name!r} is not one of {', '.join(FORMATS)}")
    chosen.decode = decode
    return chosen


def replaced(value: Any, old: str, new: str) -> Any:
    """Return the value with the text replaced, in lists and mappings too."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list | tuple):
        return [replaced(v, old, new) for v in value]
    if isinstance(value, dict | dspy.Example):
        return {k: replaced(v, old, new) for k, v in value.items()}
    return value


class _MarkersBroken(ConstrainedFormat, dspy.Adapter):
    """Break up DSPy's own markers in the data, and make them whole again in the answer.

    Text such as `[[ ## completed ## ]]` inside an example would start a section of its own in the prompt, and end the
    answer where a model repeats it.
    """

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages, the data's markers broken up."""
        demos, inputs = (replaced(data, MARKER, BROKEN_MARKER) for data in (demos, inputs))
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        return messages

    def last_content(self, signature: type[dspy.Signature], inputs: dict[str, Any]) -> str:
        """Return the content of the last message, the data's markers broken up."""
        return super().last_content(signature, replaced(inputs, MARKER, BROKEN_MARKER))

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the answer's fields, their markers whole again."""
        return {k: replaced(v, BROKEN_MARKER, MARKER) for k, v in super().parse(signature, completion).items()}


class SafeChatAdapter(_MarkersBroken, dspy.ChatAdapter):
    """DSPy's chat format, in which data cannot pass for a marker."""

    layout = staticmethod(sections)


class SafeJSONAdapter(_MarkersBroken, dspy.JSONAdapter):
    """DSPy's JSON format, in which data cannot pass for a marker."""

    layout = staticmethod(json_object)


class TwoFormats(dspy.Adapter):
    """The student's format for every model but the teacher, which has its own.

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
        """Format, call and parse in the format of the model that is called."""
        chosen = self.teacher if lm.engine is self.engine else self.student
        answers: list[dict[str, Any]] = chosen(lm, lm_kwargs, signature, demos, inputs)
        return answers

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages in the student's format."""
        messages: list[dict[str, Any]] = self.student.format(signature, demos, inputs)
        return messages

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the fields of an answer in the student's format."""
        values: dict[str, Any] = self.student.parse(signature, completion)
        return values
