"""The requests that are made to a Weaviate server, and the schema of the collections."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from crossover.models.errors import UserError
from crossover.programs.retrieval.base import Hits, Passage
from crossover.programs.retrieval.weaviate_connection import ServerAddress, connect, explain

PREFIX = "Crossover"
"""Beginning of the names of all collections that are made here."""
SCHEMA_VERSION = 1
"""Raised whenever the properties or their contents change; part of the collection's name."""
DEMOS = f"{PREFIX}_v{SCHEMA_VERSION}_demos_"
"""Beginning of the names of collections of demonstrations."""


def ensure_collection(client: Any, name: str) -> None:
    """Create a collection of passages, unless it exists; their vectors are given, not computed by the server."""
    from weaviate.classes.config import Configure, DataType, Property, Tokenization

    if client.collections.exists(name):
        return
    exact = {"data_type": DataType.TEXT, "tokenization": Tokenization.FIELD, "index_searchable": False}
    client.collections.create(
        name,
        vector_config=Configure.Vectors.self_provided(),
        properties=[
            Property(name="passage", **exact),
            Property(name="sha256", **exact),
            Property(name="text", data_type=DataType.TEXT, tokenization=Tokenization.WORD),
        ],
    )


def object_hashes(objects: Any) -> dict[str, str]:
    """Return the hash of the text of each object in the collection `objects`, by object id."""
    return {str(o.uuid): str(o.properties["sha256"]) for o in objects.iterator(return_properties=["sha256"])}


def count_objects(objects: Any) -> int:
    """Return how many objects the collection holds."""
    return int(objects.aggregate.over_all(total_count=True).total_count or 0)


def delete_objects(objects: Any, ids: Sequence[str]) -> None:
    """Delete objects by id."""
    from weaviate.classes.query import Filter

    objects.data.delete_many(where=Filter.by_id().contains_any(ids))


def insert(objects: Any, batch: Sequence[tuple[Passage, Any]]) -> dict[str, str]:
    """Import passages with their vectors; return the ids of those that the server refuses, with the reasons."""
    from weaviate.classes.data import DataObject
    from weaviate.exceptions import WeaviateInsertManyAllFailedError

    rows = [
        DataObject({"passage": p.id, "sha256": content_sha256(p), "text": p.render()}, uuid=object_id(p), vector=vector)
        for p, vector in batch
    ]
    try:
        errors = objects.data.insert_many(rows).errors
    except WeaviateInsertManyAllFailedError as e:
        return {p.id: str(e.message) for p, _ in batch}
    return {batch[n][0].id: str(error.message) for n, error in errors.items()}


def find(objects: Any, query: str, question: str, vector: Any, k: int, alpha: float) -> Hits:
    """Return up to `k` passage ids with their scores by a `hybrid`, `bm25` or `near_vector` query."""
    from weaviate.classes.query import HybridFusion, MetadataQuery

    common = {"limit": k, "return_properties": ["passage"]}
    score = MetadataQuery(score=True)
    if query == "near_vector":
        found = objects.query.near_vector(vector, return_metadata=MetadataQuery(distance=True), **common)
    elif query == "bm25":
        found = objects.query.bm25(question, query_properties=["text"], return_metadata=score, **common)
    else:
        found = objects.query.hybrid(
            question,
            vector=vector,
            alpha=alpha,
            query_properties=["text"],
            return_metadata=score,
            fusion_type=HybridFusion.RELATIVE_SCORE,
            **common,
        )
    return [(str(o.properties["passage"]), _score(o.metadata)) for o in found.objects]


def _score(metadata: Any) -> float:
    """Return the score of a hit; a cosine distance becomes a cosine."""
    return 1 - float(metadata.distance) if metadata.distance is not None else float(metadata.score or 0.0)


def object_id(passage: Passage) -> str:
    """Return the object id of a passage, which depends on the passage id alone."""
    from weaviate.util import generate_uuid5

    return str(generate_uuid5(passage.id))


def content_sha256(passage: Passage) -> str:
    """Return the hash of the text that is stored of a passage."""
    return hashlib.sha256(passage.render().encode("utf-8", "surrogatepass")).hexdigest()


def corpus_sha256(corpus: Sequence[Passage]) -> str:
    """Return the hash of the ids and texts of passages, in any order."""
    held = sorted(f"{object_id(p)} {content_sha256(p)}" for p in corpus)
    return hashlib.sha256("\n".join(held).encode()).hexdigest()


def list_collections(address: ServerAddress) -> list[str]:
    """Return the names of the collections that crossover has made on a server.

    Raises:
        UserError: the server cannot be used.
    """
    with _collections(address) as collections:
        return _ours(collections)


def remove_collections(address: ServerAddress, pattern: str) -> list[str]:
    """Delete the collections of crossover whose names match a pattern, `*` for any text; return their names.

    Raises:
        UserError: the server cannot be used, or no collection matches.
    """
    with _collections(address) as collections:
        names = [name for name in _ours(collections) if fnmatchcase(name, pattern)]
        if not names:
            raise UserError(f"{address} has no collection {pattern!r}; `crossover ls collections` lists them")
        collections.delete(names)
        return names


def _ours(collections: Any) -> list[str]:
    return sorted(name for name in collections.list_all() if name.startswith(f"{PREFIX}_v"))


@contextmanager
def _collections(address: ServerAddress) -> Iterator[Any]:
    """Yield the client's access to the schema; its errors become one line."""
    client = connect(address, grpc=False)
    try:
        yield client.collections
    except UserError:
        raise
    # The client raises its own errors and httpx's.
    except Exception as e:
        raise explain(e, address) from e
    finally:
        client.close()
