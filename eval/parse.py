"""Read an experiment file, strictly: every fault with its line, all at once."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from eval import catalog
from eval.experiment import Experiment, Knowledge, Limits, MethodSpec, Needs, Prices, Retrieval, TaskSpec
from models.spec import ModelSpec
from programs.task import Problem, UserError

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
KNOWLEDGE = ("none", "retrieved", "gold")
SECTIONS = (
    "version", "name", "tasks", "models", "teacher", "methods", "train_sizes", "knowledge", "retrieval", "seeds",
    "limits", "needs", "prices",
)  # fmt: skip
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "float | None": (int, float), "str": (str,), "bool": (bool,),
}  # fmt: skip


@dataclass(frozen=True)
class Overrides:
    """What the command line changes of the file."""

    settings: tuple[str, ...] = ()
    """`dotted.key=value`, the value read as YAML."""
    limit: int | None = None
    only: tuple[str, ...] = ()
    """Methods to keep."""
    seeds: tuple[int, ...] = ()
    max_usd: float | None = None
    max_minutes: float | None = None


class _Reader:
    """Collects faults while it turns YAML nodes into the dataclasses of an experiment."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def fault(self, node: yaml.Node | None, what: str, remedy: str, level: str = "error") -> None:
        line = f":{node.start_mark.line + 1}" if node is not None and node.start_mark else ""
        self.problems.append(Problem(level, f"{self.file.name}{line}", what, remedy))

    def unknown(self, node: yaml.Node | None, what: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=1)
        self.fault(node, f"unknown {what} `{name}`", f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(choices)}")

    def value(self, node: yaml.Node) -> Any:
        """Return the node's plain value, `${VAR}` expanded from the environment."""
        if isinstance(node, yaml.MappingNode):
            return {str(self.value(k)): self.value(v) for k, v in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [self.value(v) for v in node.value]
        plain = yaml.SafeLoader("").construct_object(node, deep=True)  # type: ignore[no-untyped-call]

        def expand(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                self.fault(node, f"environment variable {match[1]} is not set", f"export {match[1]}=…")
            return os.environ.get(match[1], "")

        return re.sub(r"\$\{(\w+)\}", expand, plain) if isinstance(plain, str) else plain

    def mapping(self, node: yaml.Node, what: str, known: Iterable[str]) -> dict[str, yaml.Node]:
        """Return the node's entries; unknown and repeated keys are faults."""
        known = tuple(known)
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, f"{what} is not a mapping", f"write `key: value` lines with {', '.join(known)}")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in known:
                self.unknown(key, f"key in {what}" if what != "the file" else "key", name, known)
            elif name in found:
                self.fault(key, f"`{name}` stands twice in {what}", "keep one")
            else:
                found[name] = value
        return found

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                self.fault(node, f"`{what}` is empty", "list at least one")
            return list(node.value)
        self.fault(node, f"`{what}` is not a list", "write one `- …` line for each")
        return []

    def typed(self, node: yaml.Node, what: str, type_name: str) -> Any:
        """Return the value if it has the type, None with a fault otherwise."""
        value, kinds = self.value(node), KINDS.get(type_name)
        right = kinds is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)))
        if not right and not (value is None and "None" in type_name):
            wanted = type_name.removesuffix(" | None").replace("str", "text").replace("int", "whole number").replace("float", "number")
            self.fault(node, f"`{what}` is {value!r}, not a {wanted}", "correct it")
            return None
        if type_name != "bool" and isinstance(value, int | float) and value < 0:
            self.fault(node, f"`{what}` is {value}, below 0", "correct it")
        return value

    def dataclass(self, node: yaml.Node, what: str, cls: type, skip: Sequence[str] = ()) -> dict[str, Any]:
        """Return the checked values of a mapping whose keys are the dataclass's fields."""
        types = {f.name: str(f.type if isinstance(f.type, str) else getattr_name(f.type)) for f in fields(cls) if f.name not in skip}
        entries = self.mapping(node, what, types)
        return {k: v for k, n in entries.items() if (v := self.typed(n, f"{what}.{k}", types[k])) is not None}

    # The sections

    def model(self, node: yaml.Node) -> ModelSpec | None:
        if isinstance(node, yaml.ScalarNode):
            spec = ModelSpec(str(self.value(node)))
        else:
            values = self.dataclass(node, "models", ModelSpec)
            if "name" not in values:
                self.fault(node, "a model has no `name`", "add `name: embedded`, `local:FOLDER` or an API model's name")
                return None
            spec = ModelSpec(**values)
        if spec.adapter not in ("", "plain", "chat", "json"):
            self.unknown(node, "adapter", spec.adapter, ("plain", "chat", "json"))
        if spec.name.startswith("local:"):
            folder = self.file.parent / spec.name.removeprefix("local:")
            if folder.is_dir():
                return replace(spec, name=f"local:{folder.resolve()}")
        elif spec.name != "embedded" and "/" not in spec.name:
            self.unknown(node, "model", spec.name, ("embedded", "local:FOLDER", "openai/NAME", "anthropic/NAME", "ollama_chat/NAME"))
        return spec

    def method(self, node: yaml.Node) -> MethodSpec | None:
        known = {m.name: m for m in catalog.methods()}
        if isinstance(node, yaml.ScalarNode):
            name, body = str(self.value(node)), None
        elif isinstance(node, yaml.MappingNode) and len(node.value) == 1:
            name, body = str(node.value[0][0].value), node.value[0][1]
        else:
            self.fault(node, "a method is not a name or `name: {options}`", "write `- few_shot: {demos: 8}`")
            return None
        if name not in known:
            self.unknown(node, "method", name, known)
            return None
        types = catalog.options(known[name])
        entries = self.mapping(body, name, types) if body is not None and not _empty(body) else {}
        options = {k: v for k, n in entries.items() if (v := self.typed(n, f"{name}.{k}", types[k])) is not None}
        return MethodSpec(name, options)

    def task(self, node: yaml.Node) -> TaskSpec | None:
        known = [t.name for t in catalog.tasks()]
        if isinstance(node, yaml.ScalarNode):
            name = str(self.value(node))
            if name not in known:
                self.unknown(node, "task", name, known)
                return None
            return TaskSpec(name)
        entries = self.mapping(node, "tasks", [f.name for f in fields(TaskSpec)])
        missing = [k for k in ("name", "program", "data") if k not in entries]
        if missing:
            self.fault(node, f"a task lacks {', '.join(missing)}", "add them, or name a built-in task")
            return None
        values = {k: self.value(n) for k, n in entries.items()}
        program, modules = str(values["program"]), [m.name for m in catalog.modules()]
        if not program.startswith((".", "/")) and program not in modules:
            self.unknown(entries["program"], "program", program, [*modules, "./file.py:Class"])
        for key in ("data", "fields"):
            if not isinstance(values.get(key, {}), dict):
                self.fault(entries[key], f"`{key}` is not a mapping", "write `data: {train: a.jsonl, test: b.jsonl}`" if key == "data" else "write `column: input`")
                return None
        data = {k: self.path(v) if isinstance(v, str) and "hf" not in values["data"] else v for k, v in values["data"].items()}
        texts = {k: self.path(str(v)) if k in ("program", "metric", "corpus") else str(v) for k, v in values.items() if k not in ("data", "fields")}
        return TaskSpec(**texts, data=data, fields=values.get("fields", {}))

    def path(self, text: str) -> str:
        """Return a path of the file made absolute; names that are no path stay as they are."""
        return str((self.file.parent / text).resolve()) if text.startswith(".") or re.search(r"\.\w+$", text) else text

    def knowledge(self, node: yaml.Node) -> Knowledge | None:
        value = self.value(node)
        pair = value if isinstance(value, dict) else {"train": value, "test": value}
        bad = [str(v) for v in pair.values() if v not in KNOWLEDGE]
        for v in bad:
            self.unknown(node, "knowledge", v, KNOWLEDGE)
        if set(pair) != {"train", "test"}:
            self.fault(node, "a knowledge pair needs `train` and `test`", "write {train: gold, test: retrieved}")
            return None
        return None if bad else Knowledge(str(pair["train"]), str(pair["test"]))

    def whole_numbers(self, node: yaml.Node, what: str) -> tuple[int, ...]:
        return tuple(v for n in self.items(node, what) if (v := self.typed(n, what, "int")) is not None)


def getattr_name(kind: Any) -> str:
    """Return the name of an annotation as it is written: `int`, `float | None`."""
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == ""


def read_experiment(file: Path, overrides: Overrides = Overrides()) -> tuple[Experiment | None, list[Problem]]:  # noqa: B008
    """Return the experiment of a file and its problems; no experiment when any of them is an error."""
    reader = _Reader(file)
    try:
        root = yaml.compose(_with_settings(file.read_text(encoding="utf-8"), overrides.settings), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; `crossover ls tasks` shows what runs without one") from None
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise UserError(f"{file.name}:{line}: not valid YAML: {e.problem}; correct the line") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: cannot be read: {e}; give a text file") from e
    if root is None:
        raise UserError(f"{file.name}: the file is empty; copy {QUICKSTART.name} from the project to start")
    experiment = _experiment(reader, root, overrides)
    errors = [p for p in reader.problems if p.level == "error"]
    return (None if errors else experiment), reader.problems


def _experiment(reader: _Reader, root: yaml.Node, overrides: Overrides) -> Experiment:
    sections = reader.mapping(root, "the file", SECTIONS)
    for name in ("version", "tasks", "models", "methods"):
        if name not in sections:
            reader.fault(root, f"`{name}` is missing", "add `version: 1`" if name == "version" else f"add a list `{name}:`")
    if "version" in sections and reader.value(sections["version"]) != 1:
        reader.fault(sections["version"], f"version {reader.value(sections['version'])!r}", "this program reads `version: 1`")
    if "teacher" in sections:
        reader.fault(sections["teacher"], "`teacher` is not used by any method yet", "remove it", level="warning")

    def each(name: str, read: Callable[[yaml.Node], Any]) -> tuple[Any, ...]:
        found = [read(n) for n in reader.items(sections[name], name)] if name in sections else []
        return tuple(x for x in found if x is not None)

    def part(name: str, cls: Any) -> Any:
        return cls(**reader.dataclass(sections[name], name, cls)) if name in sections else cls()

    limits = part("limits", Limits)
    methods = tuple(m for m in each("methods", reader.method) if not overrides.only or m.name in overrides.only)
    known = {m.name for m in catalog.methods()}
    for name in overrides.only:
        if name not in known:
            reader.unknown(None, "method in --only", name, known)
    experiment = Experiment(
        name=str(reader.value(sections["name"])) if "name" in sections else reader.file.stem,
        tasks=each("tasks", reader.task),
        models=each("models", reader.model),
        methods=methods,
        train_sizes=tuple(sorted(reader.whole_numbers(sections["train_sizes"], "train_sizes"))) if "train_sizes" in sections else (),
        knowledge=each("knowledge", reader.knowledge),
        retrieval=part("retrieval", Retrieval),
        seeds=overrides.seeds or (reader.whole_numbers(sections["seeds"], "seeds") if "seeds" in sections else (0,)),
        limits=Limits(overrides.max_usd or limits.usd, overrides.max_minutes or limits.minutes),
        needs=part("needs", Needs),
        prices=part("prices", Prices),
        limit=overrides.limit,
        file=reader.file,
    )
    if experiment.needs.max_usd_per_month is not None and experiment.needs.volume_per_month is None:
        reader.fault(sections["needs"], "`max_usd_per_month` without `volume_per_month`", "add the volume that it is for")
    return experiment


def _with_settings(text: str, settings: Sequence[str]) -> str:
    """Return the file's text with `--set` applied; without settings the text itself, so that lines stay true."""
    if not settings:
        return text
    data = yaml.safe_load(text) or {}
    for setting in settings:
        path, sign, value = setting.partition("=")
        if not sign or not path:
            raise UserError(f"--set {setting}: no `=`; write --set prices.machine_hour_usd=2.5")
        place = data
        *parents, last = path.split(".")
        for key in parents:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
            if not isinstance(place, Mapping):
                raise UserError(f"--set {setting}: `{key}` is not a mapping; set the whole list or a key of a mapping")
        place[last] = yaml.safe_load(value)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
