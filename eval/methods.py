"""Make a method of an experiment file."""

from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from eval.chain import Chain
from eval.experiment import SearchBudget
from programs.task import Method, UserError

BUDGET_OPTIONS = tuple(f.name for f in fields(SearchBudget))


def method_of(name: str, options: Any) -> Method:
    """Return the method of that file name, with its options; a chain of the methods that its options list."""
    if name == "chain":
        return Chain(tuple((s["name"], method_of(s["name"], s["options"])) for s in options["steps"]))
    options = {k: v for k, v in options.items() if k not in BUDGET_OPTIONS}
    for room in ("optimizers", "finetune"):
        if find_spec(f"{room}.{name}"):
            cls = vars(import_module(f"{room}.{name}"))["".join(w.capitalize() for w in name.split("_"))]
            method: Method = cls(**options)
            return method
    raise UserError(f"method {name!r} is not a file of optimizers/ or finetune/; see `crossover ls methods`")
