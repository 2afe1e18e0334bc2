"""Read the `retrieval` section of an experiment file: one way to find passages, or several that are crossed."""

from collections import defaultdict
from collections.abc import Sequence

import yaml

from crossover.eval.experiment import catalog
from crossover.eval.experiment.document import Document
from crossover.eval.experiment.read_model import field_types
from crossover.eval.experiment.spec import Retrieval
from crossover.models.errors import UserError
from crossover.programs.retrieval.load import load_retriever

COMMON = {k: v for k, v in field_types(Retrieval).items() if k != "options"}
"""Keys that every backend has, with their types."""


def read_retrieval(doc: Document, node: yaml.Node) -> tuple[Retrieval, ...]:
    """Return the retrievals of a mapping or of a list of mappings; what is wrong becomes the document's problems."""
    entries = doc.items(node, "retrieval") if isinstance(node, yaml.SequenceNode) else [node]
    found = tuple(r for entry in entries if (r := _one(doc, entry)) is not None)
    return found or (Retrieval(),)


def check_collections(doc: Document, node: yaml.Node, found: Sequence[Retrieval], corpora: int) -> None:
    """Find collections of a server that would hold several corpora, or one cut in several ways: each replaces the last.

    Args:
        doc: Gets the problems.
        node: The `retrieval` section.
        found: The retrievals of the section.
        corpora: Number of different corpora of the tasks.
    """
    chunkings: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for r in found:
        if name := r.options.get("collection"):
            place = [r.options.get(key) for key in ("url", "embedded", "model")]
            chunkings[(name, r.options.get("query") == "bm25", *place)].add(r.chunk_words)
    for (name, *_), sizes in chunkings.items():
        if corpora * len(sizes) > 1:
            what = f"the collection `{name}` would hold {corpora * len(sizes)} different sets of passages in turn"
            doc.fault(node, what, "leave `collection` out: each set gets a collection of its own")


def _one(doc: Document, node: yaml.Node) -> Retrieval | None:
    """Return one entry, None when its backend does not exist."""
    backends = {e.name: e for e in catalog.backends()}
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    keys = {k.value: v for k, v in pairs if isinstance(k, yaml.ScalarNode)}
    backend = doc.value(keys["backend"]) if "backend" in keys else Retrieval.backend
    if not isinstance(backend, str) or backend not in backends:
        doc.unknown(keys["backend"], "retrieval backend", str(backend), backends)
        return None
    before = len(doc.problems)
    values = doc.typed_mapping(node, "retrieval", COMMON | catalog.backend_options(backends[backend]))
    if values.get("k") == 0:
        doc.fault(keys["k"], "`retrieval.k` is 0", "retrieve at least one passage")
    options = {k: v for k, v in values.items() if k not in COMMON}
    if str(options.get("model", "")).startswith("."):
        options["model"] = str((doc.file.parent / options["model"]).resolve())
    try:
        load_retriever(backend, options)
    except UserError as e:
        what, _, remedy = str(e).partition("; ")
        doc.fault(node, what, remedy)
    if len(doc.problems) > before:
        return None
    common = {k: v for k, v in values.items() if k in COMMON}
    return Retrieval(**common, options=options)
