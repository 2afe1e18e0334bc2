"""The plain prompt format: `name: value` lines, a bare value as the answer, demonstrations as turns.

Base models continue a pattern more easily than they follow rules; this format takes about a third of the tokens of
DSPy's ChatAdapter. Instructions become the system turn. Models that were trained to follow them read there, too, what
each output field may hold; a base model is shown the instructions alone, and those only if the program has its own.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import dspy
from dspy.adapters.utils import parse_value, serialize_for_json
from dspy.utils.exceptions import AdapterParseError

from crossover.models.answer_types import described
from crossover.models.grammars import ConstrainedFormat, lines


def _render_input(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return "\n".join(f"[{n}] {v}" for n, v in enumerate(value, 1))
    return json.dumps(serialize_for_json(value), ensure_ascii=False)


def _render_output(value: Any) -> str:
    """Return a text as it is, None as an empty text, and any other value as JSON, which `parse` reads back."""
    simple = "" if value is None else serialize_for_json(value)
    return simple if isinstance(simple, str) else json.dumps(simple, ensure_ascii=False)


@lru_cache(maxsize=256)
def _default_instructions(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """Return DSPy's own instructions for these fields; cached, because building a signature is slow."""
    return str(dspy.Signature(f"{', '.join(inputs)} -> {', '.join(outputs)}").instructions)


def _output_description(signature: type[dspy.Signature]) -> str:
    """Return a line for each output field that has a description or a type to tell, and how to answer."""
    fields = signature.output_fields
    shown = {name: described(name, field) for name, field in fields.items()}
    if len(fields) > 1:
        lines = [f"{name}: <{text or 'text'}>" for name, text in shown.items()]
        return "\n".join(["Answer with one line for each field, as `name: value`:", *lines])
    (name,) = fields
    return "\n\n".join([*(f"{name}: {text}" for text in shown.values() if text), f"Answer with the {name} alone."])


def _quoted(text: str, names: Iterable[str]) -> str:
    """Return the value with `> ` before every later line that would be read as the start of another field."""
    first, *rest = text.split("\n")
    starts = tuple(f"{n}:" for n in names)
    return "\n".join([first, *(f"> {line}" if line.lstrip().startswith(starts) else line for line in rest)])


class PlainAdapter(ConstrainedFormat, dspy.ChatAdapter):
    """Render a signature as `name: value` lines and read the bare value back.

    It subclasses DSPy's chat adapter because DSPy's weight optimizers ask for one; nothing of that format is shown.
    """

    layout = staticmethod(lines)

    def __init__(self, *, instruct: bool = False) -> None:
        """Describe the output fields if `instruct`, to a model that was trained to follow instructions."""
        # The JSON fallback would be a second call, which other formats do not get either.
        super().__init__(use_json_adapter_fallback=False)
        self.instruct = instruct

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages; an empty system turn is left out."""
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        return [m for m in messages if m["content"]]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """Return the instructions and, for a model that follows them, what each output field may hold.

        Empty for any other model if DSPy made the instructions of the field names.
        """
        instructions = str(signature.instructions).strip()
        if self.instruct:
            return f"{instructions}\n\n{_output_description(signature)}"
        default = _default_instructions(tuple(signature.input_fields), tuple(signature.output_fields))
        return "" if instructions == default else instructions

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return one `name: value` line per input field, without empty lists and absent values."""
        del prefix, main_request
        shown = [(n, inputs.get(n)) for n in signature.input_fields]
        lines = [f"{n}: {_render_input(v)}" for n, v in shown if v is not None and v != []]
        return "\n".join(lines) + suffix

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the bare value of the one output field, or `name: value` lines for several."""
        values = {n: _render_output(outputs.get(n, missing_field_message)) for n in signature.output_fields}
        if len(values) == 1:
            return next(iter(values.values()))
        return "\n".join(f"{n}: {_quoted(v, values)}" for n, v in values.items())

    def format_finetune_data(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> dict[str, list[dict[str, Any]]]:
        """Return prompt and answer as one conversation, for DSPy's weight optimizers."""
        answer = {"role": "assistant", "content": self.format_assistant_message_content(signature, outputs)}
        return {"messages": [*self.format(signature, demos, inputs), answer]}

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the output fields of an answer.

        Raises:
            AdapterParseError: a field is absent or of the wrong type.
        """
        # The signature makes this anew each time.
        fields = signature.output_fields
        names = list(fields)
        if len(names) == 1:
            texts = {names[0]: completion.strip()}
        else:
            texts, current = {}, ""
            for line in completion.splitlines():
                name, colon, value = line.partition(":")
                if colon and name.strip() in names and name.strip() not in texts:
                    current = name.strip()
                    texts[current] = value.strip()
                elif current:
                    texts[current] += "\n" + line
        try:
            return {n: parse_value(texts[n].strip(), fields[n].annotation) for n in names}
        except (KeyError, ValueError) as e:
            raise AdapterParseError(
                adapter_name="PlainAdapter", signature=signature, lm_response=completion, message=f"no valid {e}"
            ) from e
