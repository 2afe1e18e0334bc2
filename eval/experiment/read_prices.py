"""Read the `prices` section of an experiment file: what machines, labels and the tokens of models cost."""

from collections.abc import Sequence
from typing import Any

import yaml

from crossover.eval.experiment.document import Document
from crossover.eval.experiment.read_model import field_types
from crossover.eval.experiment.spec import Prices
from crossover.models.price import TOKEN_PRICES
from crossover.models.spec import ModelSpec


def read_prices(doc: Document, node: yaml.Node, models: Sequence[ModelSpec]) -> Prices:
    """Return the section; a key that is the name of one of these models holds the price of its tokens."""
    types = {name: kind for name, kind in field_types(Prices).items() if name != "models"}
    names = {m.name: m for m in models}
    entries = doc.mapping(node, "prices", [*types, *names])
    found = {k: doc.typed(n, f"prices.{k}", types[k]) for k, n in entries.items() if k in types}
    values = {k: v for k, v in found.items() if v is not None}
    stated = dict[str, dict[str, float]]()
    for name in (n for n in entries if n in names):
        price: dict[str, Any] = doc.typed_mapping(entries[name], f"prices.{name}", dict.fromkeys(TOKEN_PRICES, "float"))
        if names[name].runs_here:
            doc.fault(entries[name], f"{name} runs here, and has no price for tokens", "set `machine_hour_usd`")
        elif lacking := [k for k in TOKEN_PRICES[:2] if k not in price]:
            doc.fault(entries[name], f"the price of {name} lacks {', '.join(lacking)}", "add it: dollars for a million")
        else:
            stated[name] = price
    return Prices(**values, models=stated)
