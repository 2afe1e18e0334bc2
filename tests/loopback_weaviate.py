"""A loopback server that answers as much of Weaviate's REST and gRPC as the backend uses, for tests without a server.

It holds real objects in memory and ranks by shared words and by cosine, so that the client, its batches and its
retries run as they do against a server; how well a real server ranks, it cannot tell. Shapes and errors are those of
weaviate/weaviate 1.39, read in its source: usecases/schema/class.go (defaults of a schema), adapters/handlers/rest
(status codes and bodies), adapters/handlers/grpc/v1/prepare_reply.go (hits), usecases/traverser/explorer.go and
usecases/auth (errors). Not read there: the wording of a search that fails inside a shard.
"""

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import numpy as np
from weaviate.proto.v1 import aggregate_pb2, batch_delete_pb2, batch_pb2, search_get_pb2, weaviate_pb2_grpc

PROPERTY = {"indexFilterable": True, "indexSearchable": True, "indexRangeFilters": False}
HNSW = {
    "cleanupIntervalSeconds": 300,
    "distance": "cosine",
    "dynamicEfMin": 100,
    "dynamicEfMax": 500,
    "dynamicEfFactor": 8,
    "ef": -1,
    "efConstruction": 128,
    "filterStrategy": "acorn",
    "flatSearchCutoff": 40000,
    "maxConnections": 32,
    "skip": False,
    "vectorCacheMaxObjects": 1000000000000,
}
CLASS = {
    "invertedIndexConfig": {
        "bm25": {"b": 0.75, "k1": 1.2},
        "cleanupIntervalSeconds": 60,
        "stopwords": {"additions": None, "preset": "en", "removals": None},
        "usingBlockMaxWAND": True,
    },
    "multiTenancyConfig": {"autoTenantActivation": False, "autoTenantCreation": False, "enabled": False},
    "replicationConfig": {"asyncEnabled": False, "deletionStrategy": "NoAutomatedResolution", "factor": 1},
}
"""What a server fills in of a schema: of a property, of a vector index, of a collection."""
NO_KEY = "anonymous access not enabled. Please authenticate through one of the available methods: [API-keys]"
WRONG_KEY = "unauthorized: invalid api key"


@dataclass
class Loopback:
    """What the server holds, and how it misbehaves."""

    version: str = "1.39.0"
    key: str = ""
    """Asked for in every request, where there is one."""
    weaviate: bool = True
    """False for a web server of another kind."""
    refuse: dict[str, int] = field(default_factory=dict)
    """Passage id to how many times the server refuses it."""
    fail_searches: int = 0
    """Searches that end in an error before any is answered."""
    schemas: dict[str, Any] = field(default_factory=dict)
    collections: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Objects by id, of each collection."""
    imported: int = 0
    """Objects ever taken."""
    url: str = ""
    grpc_port: int = 0

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        """Return the objects of the one collection."""
        return next(iter(self.collections.values()), {})

    def rest(self, method: str, path: str, body: Any, key: str) -> tuple[int, Any]:
        """Answer one REST request."""
        if not self.weaviate:
            return 200, "<html>hello</html>"
        if self.key and key != f"Bearer {self.key}":
            return 401, {"code": 401, "message": WRONG_KEY if key else NO_KEY}
        if path == "/v1/meta":
            meta = {"grpcMaxMessageSize": 104858000, "hostname": "http://[::]:8080", "modules": {}}
            return 200, meta | {"version": self.version}
        if path == "/v1/schema":
            return (200, {"classes": list(self.schemas.values())}) if method == "GET" else self.create(body)
        name = path.removeprefix("/v1/schema/")
        if method == "DELETE":
            self.schemas.pop(name, None)
            self.collections.pop(name, None)
            return 200, ""
        return (200, self.schemas[name]) if name in self.schemas else (404, "")

    def create(self, body: Any) -> tuple[int, Any]:
        """Create a collection."""
        if body["class"] in self.schemas:
            return 422, {"error": [{"message": f"class name {body['class']} already exists"}]}
        body["properties"] = [PROPERTY | p for p in body["properties"]]
        body["vectorConfig"]["default"] |= {"vectorIndexType": "hnsw", "vectorIndexConfig": HNSW}
        self.schemas[body["class"]] = CLASS | body
        return 200, self.schemas[body["class"]]


class Grpc(weaviate_pb2_grpc.WeaviateServicer):
    """The gRPC half."""

    def __init__(self, state: Loopback) -> None:
        self.state = state

    def BatchObjects(self, request: Any, context: Any) -> Any:
        """Take the objects, but for those that are to be refused."""
        self._check(context)
        errors = []
        for n, o in enumerate(request.objects):
            values = dict(o.properties.non_ref_properties)
            if self.state.refuse.get(values["passage"], 0) > 0:
                self.state.refuse[values["passage"]] -= 1
                errors.append(batch_pb2.BatchObjectsReply.BatchError(index=n, error="store is read-only"))
                continue
            packed = o.vector_bytes or (o.vectors[0].vector_bytes if o.vectors else b"")
            held = self.state.collections.setdefault(o.collection, {})
            held[o.uuid] = values | {"vector": np.frombuffer(packed, dtype="<f4")}
            self.state.imported += 1
        return batch_pb2.BatchObjectsReply(took=0.0, errors=errors)

    def BatchDelete(self, request: Any, context: Any) -> Any:
        """Delete by id."""
        ids = list(request.filters.value_text_array.values) or [request.filters.value_text]
        held = self._held(request)
        gone = [held.pop(i) for i in ids if i in held]
        return batch_delete_pb2.BatchDeleteReply(took=0.0, failed=0, matches=len(gone), successful=len(gone))

    def Aggregate(self, request: Any, context: Any) -> Any:
        """Count the objects."""
        single = aggregate_pb2.AggregateReply.Single(objects_count=len(self._held(request)))
        return aggregate_pb2.AggregateReply(took=0.0, single_result=single)

    def Search(self, request: Any, context: Any) -> Any:
        """List the objects, or rank them."""
        self._check(context)
        if request.collection not in self.state.schemas:
            context.abort(grpc.StatusCode.UNKNOWN, f"could not find class {request.collection} in schema")
        held = self._held(request)
        kind = next((k for k in ("hybrid_search", "bm25_search", "near_vector") if request.HasField(k)), "")
        if kind and self.state.fail_searches:
            self.state.fail_searches -= 1
            context.abort(grpc.StatusCode.UNKNOWN, "shard is being moved")
        if not kind:
            listed = [i for i in sorted(held) if i > request.after]
            return self._reply(request, held, [(i, 0.0) for i in listed[: request.limit]], "")
        query = getattr(request, kind)
        if kind == "bm25_search" and not query.query:
            context.abort(grpc.StatusCode.UNKNOWN, "keyword search (bm25) must have query set")
        words = _words(query.query) if kind != "near_vector" else set()
        alpha = {"hybrid_search": query.alpha_param or query.alpha if kind == "hybrid_search" else 0, "near_vector": 1}
        weight = alpha.get(kind, 0)
        vector = _vector(query) if kind != "bm25_search" else np.zeros(0)
        scored = []
        for i, o in held.items():
            shared = len(words & _words(o["text"]))
            cosine = float(vector @ o["vector"]) if len(vector) and len(o["vector"]) else 0.0
            score = weight * cosine + (1 - weight) * shared
            if shared or weight:
                scored.append((i, score))
        return self._reply(request, held, sorted(scored, key=lambda s: -s[1])[: request.limit], kind)

    def _check(self, context: Any) -> None:
        """End a request without the key."""
        given = dict(context.invocation_metadata()).get("authorization", "")
        if self.state.key and given != f"Bearer {self.state.key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"extract auth: {WRONG_KEY}")

    def _held(self, request: Any) -> dict[str, dict[str, Any]]:
        return self.state.collections.setdefault(request.collection, {})

    @staticmethod
    def _reply(request: Any, held: dict[str, dict[str, Any]], found: list[tuple[str, float]], kind: str) -> Any:
        reply = search_get_pb2.SearchReply(took=0.0)
        for i, score in found:
            result = reply.results.add()
            result.metadata.id, result.metadata.id_as_bytes = i, uuid.UUID(i).bytes
            if kind == "near_vector":
                result.metadata.distance, result.metadata.distance_present = 1 - score, True
            elif kind:
                result.metadata.score, result.metadata.score_present = score, True
            for name in request.properties.non_ref_properties:
                result.properties.non_ref_props.fields[name].text_value = held[i][name]
        return reply


def _words(text: str) -> set[str]:
    """Return the words as the tokenization `word` cuts them: runs of letters and digits in lower case."""
    return set(re.findall(r"[^\W_]+", text.lower()))


def _vector(query: Any) -> Any:
    """Return the vector of a query, wherever this version of the client puts it."""
    places = [query, *query.vectors, *([query.near_vector, *query.near_vector.vectors] if _nested(query) else [])]
    packed = next((p.vector_bytes for p in places if p.vector_bytes), b"")
    return np.frombuffer(packed, dtype="<f4")


def _nested(query: Any) -> bool:
    return "near_vector" in query.DESCRIPTOR.fields_by_name and query.HasField("near_vector")


@contextmanager
def serve(state: Loopback) -> Iterator[Loopback]:
    """Serve the state on two ports of loopback: free ones, or those that it was served on before."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            status, answer = state.rest(self.command, self.path, body, self.headers.get("Authorization", ""))
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_GET

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", int(state.url.rpartition(":")[2] or 0)), Handler)
    http.daemon_threads = True
    server = grpc.server(ThreadPoolExecutor(8))
    weaviate_pb2_grpc.add_WeaviateServicer_to_server(Grpc(state), server)
    state.grpc_port = server.add_insecure_port(f"127.0.0.1:{state.grpc_port}")
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    server.start()
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        server.stop(None)
        thread.join(10)
