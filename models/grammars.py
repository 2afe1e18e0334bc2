"""Write the grammar of an answer, in llguidance's dialect of Lark, for each way in which a format lays out fields.

The layouts are those in which the formats write demonstrations, so that a trained model is held to what it learned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
from pydantic.fields import FieldInfo

from crossover.models.answer_types import is_text, json_schema, labels_of

Fields = Mapping[str, FieldInfo]
KEYWORD = "x-lark"
"""Keyword of a JSON schema that holds a grammar: DSPy's requests carry JSON schemas and nothing else."""
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
"""JSON as `json.dumps` writes it; keywords of a schema that llguidance lacks are ignored, and DSPy checks them."""
INDENTED = {"whitespace_pattern": r"( |\n {2,16})?", "lenient": True}
"""JSON with or without line breaks and indents."""
LINE = r"/[^\n]+/"


def response_format(grammar: str) -> dict[str, Any]:
    """Return the request's `response_format` that holds a local model's answer to the rule `answer` of a grammar."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": {KEYWORD: grammar}}}


def grammar_of(response_format: Mapping[str, Any]) -> str:
    """Return the grammar of a request's format, as DSPy hands it on; one that any JSON schema stands for, too."""
    schema = response_format.get("schema") or {}
    return str(schema[KEYWORD]) if KEYWORD in schema else f"answer: {_json(schema, INDENTED)}"


def lines(fields: Fields) -> str:
    """Return the grammar of the plain format: the bare value of one field, or a line `name: value` for each of several.

    Empty for one text.
    """
    if len(fields) == 1:
        (field,) = fields.values()
        return "" if is_text(field) else f"answer: {_value(field)}"
    rules = [f"field_{n}: {LINE if is_text(f) else _value(f)}" for n, f in enumerate(fields.values())]
    parts = [f"{_literal(f'{name}: ')} field_{n}" for n, name in enumerate(fields)]
    return _grammar(' "\\n" '.join(parts), rules)


def sections(fields: Fields) -> str:
    """Return the grammar of DSPy's chat format: a header before each value, and `completed` at the end."""
    heads = [f"[[ ## {name} ## ]]" for name in (*fields, "completed")]
    rules = []
    for n, field in enumerate(fields.values()):
        end = f"\n\n{heads[n + 1]}" + ("\n" if n + 1 < len(fields) else "")
        if is_text(field):
            escaped = end.replace("[", r"\[").replace("]", r"\]").replace("\n", r"\n")
            rules.append(f"field_{n}[lazy]: /(?s:.*){escaped}/")
        else:
            rules += [f"field_{n}: value_{n} {_literal(end)}", f"value_{n}: {_value(field, ('True', 'False'))}"]
    return _grammar(" ".join([_literal(f"{heads[0]}\n"), *(f"field_{n}" for n in range(len(fields)))]), rules)


def json_object(fields: Fields) -> str:
    """Return the grammar of the JSON object of all fields, indented as DSPy shows it."""
    rules = [f"field_{n}: {_json(json_schema(f), INDENTED)}" for n, f in enumerate(fields.values())]
    openings = [f"{',' if n else '{'}\n  {json.dumps(name)}: " for n, name in enumerate(fields)]
    parts = [f"{_literal(text)} field_{n}" for n, text in enumerate(openings)]
    return _grammar(" ".join([*parts, _literal("\n}")]), rules)


def _grammar(answer: str, rules: Sequence[str]) -> str:
    return "\n".join([f"answer: {answer}", *rules])


def _value(field: FieldInfo, truth: tuple[str, str] = ("true", "false")) -> str:
    texts: Sequence[str] = truth if field.annotation is bool else labels_of(field)
    return " | ".join(map(_literal, texts)) if texts else _json(json_schema(field), ONE_LINE)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any], layout: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': layout}, ensure_ascii=False)}"


class ConstrainedFormat:
    """Mixed into a DSPy format, hold the answers of a local model to a grammar."""

    decode: str = ""
    """`labels`: where the only output is one of a set of labels; `schema` or `auto`: wherever a grammar says more than
    any text; empty or `free`: never."""
    layout: Callable[[Fields], str]
    """Returns the grammar of the output fields."""

    def grammar(self, signature: type[dspy.Signature]) -> str:
        """Return the grammar that an answer is held to; empty for any text."""
        fields = signature.output_fields
        labelled = len(fields) == 1 and labels_of(next(iter(fields.values())))
        held = self.decode in ("schema", "auto") or (self.decode == "labels" and labelled)
        return self.layout(fields) if held else ""

    def __call__(
        self,
        lm: dspy.LM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Ask the model, its answer held to the grammar if there is one."""
        if grammar := self.grammar(signature):
            lm_kwargs = {**lm_kwargs, "response_format": response_format(grammar)}
        # Not a dspy.Adapter: DSPy gives every subclass a `format` and `parse`, which would hide those of the format.
        answers: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]
        return answers
