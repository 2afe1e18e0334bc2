"""The plain prompt format: `name: value` lines, a bare value as the answer, demonstrations as turns.

Base models continue a pattern more easily than they follow rules; this format takes about a third of the tokens of
DSPy's ChatAdapter. Instructions become the system turn, if the program has any of its own.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import dspy
from dspy.adapters.utils import parse_value
from dspy.utils.exceptions import AdapterParseError

from crossover.models.constrained import response_format


def _render(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return "\n".join(f"[{n}] {v}" for n, v in enumerate(value, 1))
    return json.dumps(value, ensure_ascii=False, default=str)


@lru_cache(maxsize=256)
def _default_instructions(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """Return DSPy's own instructions for these fields; cached, because building a signature is slow."""
    return str(dspy.Signature(f"{', '.join(inputs)} -> {', '.join(outputs)}").instructions)


def _labels(signature: type[dspy.Signature]) -> list[str]:
    """Return the labels of the only output field; empty if it has none, or if there are several output fields."""
    outputs = list(signature.output_fields.values())
    return list(outputs[0].json_schema_extra.get("labels", ())) if len(outputs) == 1 else []


def _quoted(text: str, names: Iterable[str]) -> str:
    """Return the value with `> ` before every later line that would be read as the start of another field."""
    first, *rest = text.split("\n")
    starts = tuple(f"{n}:" for n in names)
    return "\n".join([first, *(f"> {line}" if line.lstrip().startswith(starts) else line for line in rest)])


class PlainAdapter(dspy.ChatAdapter):
    """Render a signature as `name: value` lines and read the bare value back.

    It subclasses DSPy's chat adapter because DSPy's weight optimizers ask for one; nothing of that format is shown.
    """

    def __init__(self, decode: str = "") -> None:
        """Decode freely, or, for `labels`, allow nothing but the labels of an output field that has any."""
        # The JSON fallback would be a second call, which other formats do not get either.
        super().__init__(use_json_adapter_fallback=False)
        self.decode = decode

    def __call__(
        self,
        lm: dspy.LM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Ask the model, restricted to the labels where that is wanted."""
        if self.decode == "labels" and (labels := _labels(signature)):
            lm_kwargs = {**lm_kwargs, "response_format": response_format(labels)}
        answers: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return answers

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the messages; an empty system turn is left out."""
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        return [m for m in messages if m["content"]]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """Return the instructions; empty for those that DSPy generates from the field names."""
        default = _default_instructions(tuple(signature.input_fields), tuple(signature.output_fields))
        instructions = str(signature.instructions).strip()
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
        lines = [f"{n}: {_render(v)}" for n, v in shown if v is not None and v != []]
        return "\n".join(lines) + suffix

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """Return the bare value of the one output field, or `name: value` lines for several."""
        values = {n: _render(outputs.get(n, missing_field_message) or "") for n in signature.output_fields}
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
        names = list(signature.output_fields)
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
            return {n: parse_value(texts[n].strip(), signature.output_fields[n].annotation) for n in names}
        except (KeyError, ValueError) as e:
            raise AdapterParseError(
                adapter_name="PlainAdapter", signature=signature, lm_response=completion, message=f"no valid {e}"
            ) from e
