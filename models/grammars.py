"""Write the grammar of an answer, in llguidance's dialect of Lark, for each way in which a format lays out fields.

The layouts are those in which the formats write demonstrations, so that a trained model is held to what it learned.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import dspy
from pydantic.fields import FieldInfo

from crossover.models.ahead import sent_ahead
from crossover.models.answer_types import alternatives, is_text, json_schema, labels_of

Fields = Mapping[str, FieldInfo]
Value = str | list[str]
"""The right side of a value's rule, or the texts of which it is one."""
RULES, CHOICES = "x-rules", "x-choices"
"""Keywords of a JSON schema that hold a grammar: DSPy's requests carry JSON schemas and nothing else."""
LAZY = "[lazy]"
"""Before a rule's right side: it matches as little as it can."""
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
"""JSON as `json.dumps` writes it; keywords of a schema that llguidance lacks are ignored, and DSPy checks them."""
INDENTED = {"whitespace_pattern": r"( |\n {2,16})?", "lenient": True}
"""JSON with or without line breaks and indents."""
LINE = r"/[^\n]+/"


class Grammar(NamedTuple):
    """A grammar of answers, for any tokenizer."""

    rules: str
    """Lark, its first rule being `answer`; empty for any text."""
    choices: dict[str, list[str]]
    """Rules that are left out of `rules`, each one of some texts. They are compiled to the tokenizer's own tokens of
    those texts: spelled in other tokens, a text would win by a token that is likely for the sake of other texts."""


def grammar_of(schema: Mapping[str, Any]) -> Grammar:
    """Return the grammar that a request's schema holds under these keywords, or that of JSON which fits the schema."""
    if RULES in schema:
        return Grammar(schema[RULES], schema[CHOICES])
    return Grammar(f"answer: {_json(schema, INDENTED)}", {})


def lines(fields: Fields) -> Grammar:
    """Return the grammar of the plain format: the bare value of one field, or a line `name: value` for each of several.

    Its rules are empty for a single text.
    """
    if len(fields) == 1:
        (field,) = fields.values()
        return Grammar("", {}) if is_text(field) else _grammar(["value_0"], [_value(field)])
    values = [LINE if is_text(f) else _value(f) for f in fields.values()]
    # Tokenizers join a space to the word after it, so the space before a choice is part of the choice.
    values = [[f" {text}" for text in v] if isinstance(v, list) else v for v in values]
    openings = [f"{name}:" if isinstance(v, list) else f"{name}: " for name, v in zip(fields, values, strict=True)]
    parts = [f"{_literal(text)} value_{n}" for n, text in enumerate(openings)]
    return _grammar([' "\\n" '.join(parts)], values)


def sections(fields: Fields) -> Grammar:
    """Return the grammar of DSPy's chat format: a header before each value, and `completed` at the end."""
    heads = [f"[[ ## {name} ## ]]" for name in (*fields, "completed")]
    parts, values = [_literal(f"{heads[0]}\n")], list[Value]()
    for n, field in enumerate(fields.values()):
        end = f"\n\n{heads[n + 1]}" + ("\n" if n + 1 < len(fields) else "")
        if is_text(field):
            escaped = end.replace("[", r"\[").replace("]", r"\]").replace("\n", r"\n")
            parts.append(f"value_{n}")
            values.append(f"{LAZY} /(?s:.*){escaped}/")
        else:
            parts.append(f"value_{n} {_literal(end)}")
            values.append(["True", "False"] if field.annotation is bool else _value(field))
    return _grammar(parts, values)


def json_object(fields: Fields) -> Grammar:
    """Return the grammar of the JSON object of all fields, indented as DSPy shows it."""
    parts, values = [], list[Value]()
    for n, (name, field) in enumerate(fields.items()):
        schema = json_schema(field)
        texts = [t for t in schema.get("enum", ()) if isinstance(t, str)]
        quote = '"' if texts and len(texts) == len(schema["enum"]) else ""
        opening = f"{',' if n else '{'}\n  {json.dumps(name)}: {quote}"
        parts += [_literal(opening), f"value_{n}", *([_literal(quote)] if quote else [])]
        values.append([json.dumps(t, ensure_ascii=False)[1:-1] for t in texts] if quote else _json(schema, INDENTED))
    return _grammar([*parts, _literal("\n}")], values)


def _grammar(parts: Sequence[str], values: Sequence[Value]) -> Grammar:
    """Return the grammar of an answer's parts, in which `value_0` and so on stand for the values."""
    rules, choices = [f"answer: {' '.join(parts)}"], {}
    for n, value in enumerate(values):
        if isinstance(value, list):
            choices[f"value_{n}"] = value
        else:
            lazy = value.startswith(LAZY)
            rules.append(f"value_{n}{LAZY if lazy else ''}: {value.removeprefix(LAZY)}")
    return Grammar("\n".join(rules), choices)


def _value(field: FieldInfo) -> Value:
    if field.annotation is bool:
        return ["true", "false"]
    if labels := labels_of(field):
        return labels
    # The word for no value among numbers is no JSON text: the formats write it without quotes.
    words = [w for part in alternatives(field.annotation) if get_origin(part) is Literal for w in get_args(part)]
    return " | ".join([*map(_literal, words), _json(json_schema(field), ONE_LINE)])


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Mapping[str, Any], layout: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': layout}, ensure_ascii=False)}"


class ConstrainedFormat:
    """Mixed into a DSPy format, hold the answers of a local model to a grammar."""

    decode: str = "free"
    """`labels`: where the only output is one of a set of labels; `schema` or `auto`: wherever a grammar says more than
    any text; `free`: never."""
    layout: Callable[[Fields], Grammar]
    """Returns the grammar of the output fields."""

    def answer_schema(self, signature: type[dspy.Signature]) -> dict[str, Any] | None:
        """Return the schema that holds a local model's answer to a grammar, None where any text is allowed."""
        fields = signature.output_fields
        labelled = len(fields) == 1 and labels_of(next(iter(fields.values())))
        if self.decode not in ("schema", "auto") and not (self.decode == "labels" and labelled):
            return None
        grammar = self.layout(fields)
        return {RULES: grammar.rules, CHOICES: grammar.choices} if grammar.rules else None

    def __call__(
        self,
        lm: dspy.LM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the fields of the model's answer, which is held to the grammar if there is one."""
        ahead = None if lm_kwargs else sent_ahead()
        if ahead is not None and (response := ahead.claim(lm, signature, demos, inputs)) is not None:
            texts, parsed = [response.message.text], self._call_postprocess  # type: ignore[attr-defined]
            answers: list[dict[str, Any]] = parsed(signature, signature, texts, lm, lm_kwargs)
            return answers
        options = {**lm_kwargs, **self.request_options(signature)}
        # Not a dspy.Adapter: DSPy gives every subclass a `format` and `parse`, which would hide those of the format.
        answers = super().__call__(lm, options, signature, demos, inputs)  # type: ignore[misc]
        return answers

    def request_options(self, signature: type[dspy.Signature]) -> dict[str, Any]:
        """Return what a request needs besides its messages: the grammar of its answer, if there is one."""
        if not (schema := self.answer_schema(signature)):
            return {}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}

    def last_content(self, signature: type[dspy.Signature], inputs: dict[str, Any]) -> str:
        """Return the content of the last message of `format`, which alone depends on the inputs."""
        rendered = self.format_user_message_content  # type: ignore[attr-defined]
        return str(rendered(signature, inputs, main_request=True))
