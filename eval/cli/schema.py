"""The verb `crossover schema`; dspy and pydantic are imported when it runs."""

import json
from typing import Any

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of the experiment file, by which an editor completes and checks it.

    Example: crossover schema

    Example: crossover schema > crossover.schema.json
    """
    click.echo(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


def experiment_schema() -> dict[str, Any]:
    """Return the JSON schema of the dataclasses of an experiment, with the short forms that its file may use.

    `crossover validate` refuses more: numbers below 0, types of retrieval options, names of models and tasks, paths.
    It takes two things that the schema refuses: `${NAME}` in place of a number, and a key with nothing after it.
    """
    from pydantic import ConfigDict, TypeAdapter

    from crossover.eval.experiment import catalog, read, spec
    from crossover.eval.run.methods import method_of
    from crossover.models.price import TOKEN_PRICES

    methods: dict[str, Any] = {m.name: type(method_of(m.name, {})) for m in catalog.methods()}
    # One type for all, so that pydantic hands the configuration down to dataclasses that have none of their own.
    every: Any = tuple[(spec.Experiment, *methods.values())]  # type: ignore[misc]
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    parts: dict[str, Any] = TypeAdapter(every, config=config).json_schema()["$defs"]
    properties = {name: part["properties"] for name, part in parts.items()}
    text, one = {"type": "string"}, {"type": "object", "minProperties": 1, "maxProperties": 1}

    options = {name: _part(cls.__name__) for name, cls in methods.items()}
    for name, cls in methods.items():
        if catalog.traits(name).searches:
            properties[cls.__name__] |= properties["SearchBudget"]
    chain = {"type": "array", "items": _part("MethodSpec"), "minItems": 2}
    named = one | {"properties": options | {"chain": chain}, "additionalProperties": False}
    parts["MethodSpec"] = {"anyOf": [{"enum": list(methods)}, named]}

    judge = {"model": _part("ModelSpec"), "criteria": {"type": "array", "items": {"anyOf": [text, one]}}}
    parts["JudgeSpec"] = {"type": "object", "properties": judge, "additionalProperties": False}
    judged = one | {"properties": {"judge": _part("JudgeSpec")}, "additionalProperties": False}
    properties["TaskSpec"]["metric"] = {"anyOf": [text, judged]}
    names = {"type": "array", "items": text}
    properties["TaskSpec"] |= {"input": {"anyOf": [text, names]}, "data": {"anyOf": [text, {"type": "object"}]}}
    properties["TaskSpec"]["output"] = {"anyOf": [text, names, {"type": "object", "additionalProperties": text}]}
    del properties["TaskSpec"]["judge"], properties["Retrieval"]["options"]
    properties["Retrieval"] |= {k: {} for b in catalog.backends() for k in catalog.backend_options(b)}
    del properties["Prices"]["models"]
    tokens = {"properties": {k: {"type": "number"} for k in TOKEN_PRICES}, "required": list(TOKEN_PRICES[:2])}
    parts["Prices"]["additionalProperties"] = {"type": "object", "additionalProperties": False} | tokens
    for name, short in {"TaskSpec": text, "ModelSpec": text, "Knowledge": {"enum": list(read.KNOWLEDGE)}}.items():
        parts[name] = {"anyOf": [short, parts[name]]}

    whole: dict[str, Any] = parts.pop("Experiment")
    sections = {"version": {"const": 1}} | {k: v for k, v in whole["properties"].items() if k in read.SECTIONS}
    sections["retrieval"] = {"anyOf": [_part("Retrieval"), sections["retrieval"]]}
    return whole | {"properties": sections, "required": ["tasks"], "$defs": parts}


def _part(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
