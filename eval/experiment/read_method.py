"""Read a method of an experiment file: its options, or the steps of a chain."""

import yaml

from crossover.eval.experiment import catalog
from crossover.eval.experiment.document import Document
from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.read_model import absolute_path, field_types
from crossover.eval.experiment.spec import SearchBudget


def read_method(doc: Document, node: yaml.Node) -> MethodSpec | None:
    """Return a method with its options; None with a fault when it is none."""
    if isinstance(node, yaml.ScalarNode):
        name, body = str(doc.value(node)), None
    elif isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        name, body = str(node.value[0][0].value), node.value[0][1]
    else:
        doc.fault(node, "a method is not a name or `name: {options}`", "write `- few_shot: {demos: 8}`")
        return None
    if name == "chain":
        return _chain(doc, node, body)
    known = {m.name: m for m in catalog.methods()}
    if name not in known:
        doc.unknown(node, "method", name, [*known, "chain"])
        return None
    before = len(doc.problems)
    types = catalog.options(known[name])
    if MethodSpec(name).searches:
        # A budget of its own, where the file says so.
        types |= field_types(SearchBudget)
    options = doc.typed_mapping(body, name, types) if body is not None else {}
    options |= {k: absolute_path(doc, v) for k, v in options.items() if k.endswith("_file")}
    return MethodSpec(name, options) if len(doc.problems) == before else None


def _chain(doc: Document, node: yaml.Node, body: yaml.Node | None) -> MethodSpec | None:
    """Return a chain, whose steps are methods in the order they adapt."""
    items = doc.items(body, "chain") if body is not None else []
    steps = [step for item in items if (step := read_method(doc, item)) is not None]
    if len(items) < 2:
        doc.fault(node, "a chain needs at least two methods", "write `- chain: [gepa, sft]`")
    if any(set(step.options) & set(field_types(SearchBudget)) for step in steps):
        doc.fault(node, "a step of a chain has a budget", "a chain has one budget, that of the experiment")
        return None
    if any(step.name == "chain" for step in steps):
        doc.fault(node, "a chain stands within a chain", "write all steps in one list")
        return None
    if len(items) < 2 or len(steps) < len(items):
        return None
    return MethodSpec("chain", {"steps": [{"name": s.name, "options": dict(s.options)} for s in steps]})
