"""Read YAML as nodes that know their line, so that every fault of a file can be named at once."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from crossover.eval.experiment.yaml_nodes import below, composed, read_text
from crossover.models.api_keys import expanded
from crossover.models.errors import UserError, shortened
from crossover.programs.records import Problem

OTHER_NAMES = {
    "adapter": "prompt_format",
    "base_url": "api_base",
    "gradient_accumulation_steps": "accumulate",
    "learning_rate": "lr",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_r": "rank",
    "max_new_tokens": "max_tokens",
    "num_shots": "demos",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "r": "rank",
    "shots": "demos",
    "warmup_ratio": "warmup",
}
"""Keys of earlier versions, of TRL, PEFT and others, with our names for them."""
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers of YAML 1.2, such as 1e-4, that YAML 1.1 takes for texts."""
KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "Mapping": dict}
WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Mapping": "mapping"}
SET = "--set "
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Document:
    """A YAML file as nodes, and the faults found while it is read."""

    def __init__(self, file: Path, settings: Iterable[str] = ()) -> None:
        """Read the file and apply the `--set` settings to it.

        Raises:
            UserError: the file is missing, is no YAML, or a setting points nowhere.
        """
        self.file = file
        self.problems: list[Problem] = []
        try:
            root = composed(read_text(file), file.name)
        except yaml.MarkedYAMLError as e:
            line = e.problem_mark.line + 1 if e.problem_mark else 1
            raise UserError(f"{file.name}:{line}: not valid YAML: {e.problem}; correct the line") from e
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise UserError(f"{file}: cannot be read: {str(e).splitlines()[0]}; give a text file") from e
        if root is None:
            raise UserError(f"{file.name}: the file is empty; it needs `tasks`")
        self.root: yaml.Node = root
        for setting in settings:
            self._set(setting)

    def where(self, node: yaml.Node | None) -> str:
        """Return `file:line` of a node, or the setting that it came from."""
        if node is None:
            return "command line"
        name: str = node.start_mark.name
        return name if name.startswith(SET) else f"{self.file.name}:{node.start_mark.line + 1}"

    def fault(self, node: yaml.Node | None, what: str, remedy: str, level: str = "error") -> None:
        """Keep one problem; each only once."""
        problem = Problem(level, self.where(node), shortened(what), remedy)
        if problem not in self.problems:
            self.problems.append(problem)

    def unknown(self, node: yaml.Node | None, what: str, name: str, known: Iterable[str]) -> None:
        """Keep the fault of a name that does not exist, with a near match or what there is."""
        choices = sorted(known)
        near = difflib.get_close_matches(OTHER_NAMES.get(name, name), choices, n=1)
        listed = f"use one of {', '.join(choices)}" if choices else "remove it; there is nothing to set"
        remedy = f"did you mean `{near[0]}`?" if near else listed
        self.fault(node, f"unknown {what} `{name}`", remedy)

    def value(self, node: yaml.Node) -> Any:
        """Return the node's plain value, `${VAR}` expanded from the environment."""
        if isinstance(node, yaml.CollectionNode) and node.tag not in COLLECTIONS:
            self.fault(node, f"the tag {node.tag} means nothing here", "remove the tag")
        if isinstance(node, yaml.MappingNode):
            return {str(self.value(k)): self.value(v) for k, v in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [self.value(v) for v in node.value]

        def expand(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                self.fault(node, f"environment variable {match[1]} is not set", f"export {match[1]}=…")
            return expanded(match[0]) if "://" in node.value else os.environ.get(match[1], "")

        loader = yaml.SafeLoader("")
        text = re.sub(r"\$\{(\w+)\}", expand, node.value)
        tag = node.tag
        if text != node.value and isinstance(node, yaml.ScalarNode) and not node.style:
            tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if isinstance(node, yaml.ScalarNode) and not node.style and EXPONENT.fullmatch(text):
            number = float(text)
            return int(number) if number.is_integer() else number
        try:
            return loader.construct_object(yaml.ScalarNode(tag, text, node.start_mark))  # type: ignore[no-untyped-call]
        except yaml.YAMLError:
            self.fault(node, f"the tag {tag} means nothing here", "remove the tag")
        except (ValueError, TypeError, AttributeError, LookupError):  # 2020-13-45 looks like a date, and is none
            pass
        return text

    def mapping(self, node: yaml.Node, what: str, known: Iterable[str]) -> dict[str, yaml.Node]:
        """Return the node's entries; unknown and repeated keys are faults."""
        known = tuple(known)
        if not isinstance(node, yaml.MappingNode):
            if not is_empty(node):
                self.fault(node, f"{what} is not a mapping", f"write `key: value` lines with {', '.join(known)}")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "[…]"
            if name not in known:
                self.unknown(key, "key" if node is self.root else f"key in {what}", name, known)
            elif name in found:
                self.fault(key, f"`{name}` stands twice in {what}", "keep one")
            else:
                found[name] = value
        return found

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """Return the nodes of a list, which must not be empty."""
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, f"`{what}` is not a list", "write one `- …` line for each")
            return []
        if not node.value:
            self.fault(node, f"`{what}` is empty", "list at least one")
        return list(node.value)

    def typed(self, node: yaml.Node, what: str, type_name: str) -> Any:
        """Return the value if it has the type, None with a fault otherwise; numbers are finite and not below 0."""
        value = self.value(node)
        annotation, _, optional = type_name.partition(" | ")
        name = annotation.partition("[")[0]
        if name not in KINDS or (value is None and optional == "None"):
            return value
        if optional == "str" and isinstance(value, str):
            return value
        if name == "str" and isinstance(node, yaml.ScalarNode) and isinstance(value, date | int | float):
            return node.value  # YAML reads `name: 2024-05-01` as a date
        if not isinstance(value, KINDS[name]) or (isinstance(value, bool) and name != "bool"):
            self.fault(node, f"`{what}` is {value!r}, not a {WORDS[name]}", "correct it")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.fault(node, f"`{what}` is {value}, not a finite number", "correct it")
            return None
        if isinstance(value, int | float) and value < 0:
            self.fault(node, f"`{what}` is {value}, below 0", "correct it")
            return None
        return value

    def typed_mapping(self, node: yaml.Node, what: str, types: Mapping[str, str]) -> dict[str, Any]:
        """Return the checked values of a mapping with these keys and types."""
        entries = self.mapping(node, what, types)
        return {k: v for k, n in entries.items() if (v := self.typed(n, f"{what}.{k}", types[k])) is not None}

    def _set(self, setting: str) -> None:
        """Apply `dotted.key=value`; entries of a list are named by number, from 0, or by their name."""
        path, sign, text = setting.partition("=")
        if not sign or not path:
            raise UserError(f"--set {setting}: no `=`; write --set prices.machine_hour_usd=2.5")
        try:
            value = composed(text, f"--set {path}") or yaml.ScalarNode("tag:yaml.org,2002:null", "")
        except yaml.YAMLError as e:
            raise UserError(f"--set {setting}: the value is not valid YAML; quote it") from e
        mark = yaml.Mark(f"{SET}{path}", 0, 0, 0, None, 0)
        _mark(value, mark)
        *parents, last = path.split(".")
        if parents[:1] == ["prices"]:
            # Names of models have dots; a mapping is all of what one costs.
            name = path.removeprefix("prices.")
            *parents, last = ["prices", *([name] if isinstance(value, yaml.MappingNode) else name.rsplit(".", 1))]
        place = self.root
        for key in parents:
            place = _child(place, key, mark, setting)
        _put(place, last, value, setting)


def is_empty(node: yaml.Node) -> bool:
    """Return whether nothing stands after the key."""
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _mark(node: yaml.Node, mark: yaml.Mark) -> None:
    """Make a node and all below it say where they came from."""
    node.start_mark = mark
    for part in below(node):
        _mark(part, mark)


def _text(text: str, mark: yaml.Mark) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, mark)


def _mapping(pairs: list[tuple[yaml.Node, yaml.Node]], mark: yaml.Mark) -> yaml.MappingNode:
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, mark)


def _index(place: yaml.SequenceNode, key: str, setting: str) -> int:
    """Return which entry of a list the key names."""
    if key.isdecimal() and len(key) < 6 and int(key) < len(place.value):
        return int(key)
    for n, item in enumerate(place.value):
        pairs = {str(k.value): v.value for k, v in item.value} if isinstance(item, yaml.MappingNode) else {}
        if item.value == key or pairs.get("name") == key or list(pairs) == [key]:
            return n
    raise UserError(f"--set {setting}: the list has no entry `{key}`; use a number from 0 to {len(place.value) - 1}")


def _child(place: yaml.Node, key: str, mark: yaml.Mark, setting: str) -> yaml.Node:
    """Return the node below; a missing mapping is made, and a bare name in a list becomes a mapping."""
    if isinstance(place, yaml.SequenceNode):
        n = _index(place, key, setting)
        item = place.value[n]
        if isinstance(item, yaml.ScalarNode) and not setting.startswith("methods."):
            place.value[n] = _mapping([(_text("name", item.start_mark), item)], item.start_mark)
            return place.value[n]  # type: ignore[no-any-return]
        if isinstance(item, yaml.ScalarNode):
            body = _mapping([], mark)
            place.value[n] = _mapping([(item, body)], item.start_mark)
            return body
        named = isinstance(item, yaml.MappingNode) and len(item.value) == 1 and item.value[0][0].value == key
        if named and is_empty(item.value[0][1]):
            item.value[0] = (item.value[0][0], _mapping([], mark))
        below: yaml.Node = item.value[0][1] if named else item
        return below
    if not isinstance(place, yaml.MappingNode):
        raise UserError(f"--set {setting}: nothing can stand below what comes before `{key}`; set that instead")
    for k, v in place.value:
        if k.value == key and not is_empty(v):
            return v  # type: ignore[no-any-return]
    body = _mapping([], mark)
    _put(place, key, body, setting)
    return body


def _put(place: yaml.Node, key: str, value: yaml.Node, setting: str) -> None:
    """Replace or add one entry."""
    if isinstance(place, yaml.SequenceNode):
        place.value[_index(place, key, setting)] = value
    elif isinstance(place, yaml.MappingNode):
        place.value = [(k, v) for k, v in place.value if k.value != key]
        place.value.append((_text(key, value.start_mark), value))
    else:
        raise UserError(f"--set {setting}: nothing can stand below what comes before `{key}`; set that instead")
