"""Read a model of an experiment file; a key is named, never held."""

import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from crossover.eval.experiment.document import Document
from crossover.models.api_keys import REFERENCE, reference
from crossover.models.spec import FORMATS, VLLM, ModelSpec

PROMPT_FORMATS = ("auto", *FORMATS)
DECODES = ("auto", "free", "labels", "schema")
REASONING = re.compile(r"(?:openai|azure|openrouter/openai)/(?:o[1345](?:-|$)|gpt-5(?!.*-chat))")
"""OpenAI's models that think before they answer; their API refuses other settings than these."""
REASONING_SETTINGS = {"max_tokens": 16000, "temperature": 1.0}
API_MODELS = ("openai/NAME", "anthropic/NAME", "ollama_chat/NAME")


def read_model(doc: Document, node: yaml.Node, what: str = "models") -> ModelSpec | None:
    """Return a model, given by its name or as a mapping; None with a fault when it is none."""
    values: dict[str, Any] = {}
    if isinstance(node, yaml.ScalarNode):
        spec = ModelSpec(str(doc.value(node)))
    else:
        node, key = _without_key(doc, node)
        values = doc.typed_mapping(node, what, field_types(ModelSpec))
        if "name" not in values:
            doc.fault(node, "a model has no `name`", "add `name: smollm2`, `local:FOLDER` or an API model's name")
            return None
        spec = ModelSpec(**values | _address(node), api_key=key)
    if REASONING.match(spec.name):
        spec = replace(spec, **(REASONING_SETTINGS | {k: values[k] for k in REASONING_SETTINGS if k in values}))
        if spec.max_tokens < REASONING_SETTINGS["max_tokens"] or spec.temperature != 1:
            what = f"{spec.name} reasons, and takes no other temperature than 1 and no fewer than 16000 `max_tokens`"
            doc.fault(node, what, "leave both out, or write `temperature: 1, max_tokens: 16000`")
    if spec.prompt_format not in PROMPT_FORMATS:
        doc.unknown(node, "prompt_format", spec.prompt_format, PROMPT_FORMATS)
    if spec.decode not in DECODES:
        doc.unknown(node, "decode", spec.decode, DECODES)
    elif spec.decode == "labels" and not spec.runs_here:
        doc.fault(node, f"`decode: labels` on {spec.name!r}, which runs elsewhere", "use it on a model that runs here")
    elif spec.decode == "schema" and not spec.runs_here and spec.prompt_format != "json":
        what = f"`decode: schema` on {spec.name!r}, which runs elsewhere and takes no schema but that of a JSON object"
        doc.fault(node, what, "add `prompt_format: json`")
    if spec.name.startswith(("local:", VLLM)):
        kind, _, text = spec.name.partition(":")
        text = text.removeprefix("local:")
        if not text:
            doc.unknown(node, "model", spec.name, ("smollm2", "local:FOLDER", "vllm:smollm2"))
            return spec
        folder = Path(absolute_path(doc, text))
        if folder.is_dir() or (doc.file.parent / text).is_dir() or folder.suffix == ".gguf":
            return replace(spec, name=f"{kind}:{(doc.file.parent / folder).resolve()}")
        if text.startswith((".", "/", "~")):
            doc.fault(node, f"no such folder {text!r}", "check the path, which starts at the experiment file")
    elif not spec.runs_here and "/" not in spec.name:
        doc.unknown(node, "model", spec.name, ("smollm2", "local:FOLDER", "vllm:smollm2", *API_MODELS))
    return spec


def _address(node: yaml.Node) -> dict[str, str]:
    """Return the model's address as it is written, references included; empty where it has none of its own."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    texts = {k.value: v.value for k, v in pairs if isinstance(v, yaml.ScalarNode) and k.value == "api_base"}
    return {k: v for k, v in texts.items() if REFERENCE.search(v)}


def _without_key(doc: Document, node: yaml.Node) -> tuple[yaml.Node, str]:
    """Return the mapping without its `api_key`, and the reference that stands there; its value is not even read."""
    if not isinstance(node, yaml.MappingNode):
        return node, ""
    kept, found = [], ""
    for name, value in node.value:
        if name.value != "api_key":
            kept.append((name, value))
        elif isinstance(value, yaml.ScalarNode) and reference(value.value):
            found = value.value
            doc.value(value)  # names a variable that is not set
        else:
            doc.fault(name, "`api_key` holds no reference", "write `api_key: ${NAME}`, and export NAME=…")
    return yaml.MappingNode(node.tag, kept, node.start_mark, node.end_mark), found


def field_types(cls: Any) -> dict[str, str]:
    """Return the fields of a dataclass with their types as written."""
    return {f.name: f.type.__name__ if isinstance(f.type, type) else str(f.type) for f in fields(cls)}


def absolute_path(doc: Document, text: str) -> str:
    """Return a path of the file made absolute; a name that is no path stays as it is."""
    if text.startswith("~"):
        return os.path.expanduser(text)
    path_like = text.startswith(".") or re.search(r"\.\w+(:\w+)?$", text)
    return str((doc.file.parent / text).resolve()) if path_like else text
