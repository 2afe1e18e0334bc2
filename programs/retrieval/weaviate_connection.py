"""Connect to a Weaviate server, and explain failures in one line."""

import json
import logging
import os
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crossover.models.errors import UserError

OLDEST, SERVER_VERSION = "1.27", "1.39.0"
"""The oldest server version that the client supports, and the newest one that version 4.23 of it was tested with.

Source: `.github/workflows/main.yaml` and `docs/changelog.rst` of weaviate/weaviate-python-client, August 2026.
"""
DOCKER = f"docker run -p 8080:8080 -p 50051:50051 cr.weaviate.io/semitechnologies/weaviate:{SERVER_VERSION}"
CLOUD = (".weaviate.cloud", ".weaviate.network")
KEY = "WEAVIATE_API_KEY"
TIMEOUT = 5.0
"""Seconds to wait for a connection."""
CHANNEL = [
    # A request waits for a server that restarts, in place of the client's own retries, which pause up to 32 s.
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "waitForReady": True}]})),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True)
class ServerAddress:
    """The address of a Weaviate server."""

    url: str
    """`http://host:port`, or empty for WEAVIATE_URL, else this machine."""
    grpc_port: int
    embedded: bool
    folder: Path | None
    """Data folder of an embedded server."""

    @property
    def url_or_default(self) -> str:
        """Return the URL of the REST interface."""
        url = self.url or os.environ.get("WEAVIATE_URL", "") or "http://localhost:8080"
        return url if "://" in url else f"{'https' if url.endswith(CLOUD) else 'http'}://{url}"

    def __str__(self) -> str:
        """Return the server's name in messages."""
        return "embedded Weaviate" if self.embedded else f"Weaviate at {self.url_or_default}"


def connect(address: ServerAddress, *, grpc: bool = True) -> Any:
    """Return a connected client; without `grpc` it reads and changes the schema alone, and needs no gRPC port.

    Raises:
        UserError: the server is not there, refuses the key, is too old, or its gRPC port is closed.
    """
    try:
        client = _connect(address)
        if grpc and not address.embedded:
            _check_grpc(address, client)
    except UserError:
        raise
    # The client raises its own errors, httpx's and urllib's; the user needs one line for any.
    except Exception as e:
        raise explain(e, address) from e
    return client


def _connect(address: ServerAddress) -> Any:
    # The client shows every warning of every library from its import on.
    with warnings.catch_warnings():
        import weaviate
        from weaviate.classes.init import AdditionalConfig, Auth, Timeout
        from weaviate.config import GrpcConfig

    # Its own lines repeat what is raised.
    logging.getLogger("weaviate-client").addHandler(logging.NullHandler())
    config = AdditionalConfig(
        timeout=Timeout(init=TIMEOUT, query=30, insert=120), grpc_config=GrpcConfig(channel_options=CHANNEL)
    )
    if address.embedded:
        data = str((address.folder or Path()) / "weaviate")
        return weaviate.connect_to_embedded(
            version=SERVER_VERSION, persistence_data_path=data, additional_config=config
        )
    key, parts = os.environ.get(KEY, ""), urlsplit(address.url_or_default)
    host = parts.hostname or ""
    if host.endswith(CLOUD):
        if not key:
            raise UserError(f"{address} needs a key; export {KEY}=…")
        return weaviate.connect_to_weaviate_cloud(
            address.url_or_default, auth_credentials=Auth.api_key(key), additional_config=config, skip_init_checks=True
        )
    secure = parts.scheme == "https"
    return weaviate.connect_to_custom(
        http_host=host,
        http_port=parts.port or (443 if secure else 80),
        http_secure=secure,
        grpc_host=host,
        grpc_port=address.grpc_port,
        grpc_secure=secure,
        auth_credentials=Auth.api_key(key) if key else None,
        # Skipped: the client's own checks ask a package index for a newer client.
        additional_config=config,
        skip_init_checks=True,
    )


def _check_grpc(address: ServerAddress, client: Any) -> None:
    """Close the client of a server whose gRPC port does not answer.

    Raises:
        UserError: it does not answer.
    """
    host = urlsplit(address.url_or_default).hostname or ""
    if host.endswith(CLOUD):
        return
    try:
        socket.create_connection((host, address.grpc_port), timeout=TIMEOUT).close()
    except OSError as e:
        client.close()
        what = f"{address} answers, but its gRPC port {address.grpc_port} does not ({e})"
        raise UserError(f"{what}; open it (docker: -p {address.grpc_port}:50051) or set `grpc_port`") from e


def temporary(error: Exception) -> bool:
    """Return whether a server may answer the same request later: it is away, starting or busy."""
    from httpx import TransportError
    from weaviate import exceptions

    if isinstance(error, exceptions.UnexpectedStatusCodeError):
        return bool(error.status_code >= 500)
    kinds = (exceptions.WeaviateQueryError, exceptions.WeaviateConnectionError, exceptions.WeaviateTimeoutError)
    return isinstance(error, (TransportError, *kinds))


def explain(error: Exception, address: ServerAddress) -> UserError:
    """Return an error of one line with the failure and the next step."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if address.embedded and kind in ("URLError", "ConnectError", "WeaviateStartUpError", "HTTPError", "OSError"):
        remedy = f"give the client its binary of {SERVER_VERSION}, or run a server and set `url`: {DOCKER}"
        return UserError(f"{address} did not start: {text[:120]}; {remedy}")
    if "401" in text or kind == "AuthenticationFailedError":
        given = f"refuses the key in {KEY}" if os.environ.get(KEY) else "asks for a key"
        return UserError(f"{address} {given}; export {KEY}=… with one that it knows")
    if kind == "InsufficientPermissionsError" or "PERMISSION_DENIED" in text:
        return UserError(f"{address} does not let this key do that: {text[:120]}; give {KEY} a role that can write")
    if "is not supported" in text:
        version = text.partition("Weaviate version ")[2].partition(" ")[0]
        return UserError(
            f"{address} is version {version}, and the client needs {OLDEST} or later; upgrade it: {DOCKER}"
        )
    if any(word in text.lower() for word in ("read-only", "readonly", "no space left", "disk")):
        return UserError(f"{address} cannot write: {text[:160]}; free space on its disk, then run again")
    if kind in ("UnexpectedStatusCodeError", "KeyError", "JSONDecodeError", "ResponseCannotBeDecodedError"):
        return UserError(f"{address} does not answer as Weaviate does: {text[:160]}; check `url`, or run one: {DOCKER}")
    if kind in ("WeaviateConnectionError", "WeaviateStartUpError", "ConnectError", "WeaviateTimeoutError"):
        return UserError(f"{address} cannot be reached; set `url` or WEAVIATE_URL, or run one: {DOCKER}")
    return UserError(f"{address} failed: {kind}: {text[:160]}; look into the server's log, then run again")
