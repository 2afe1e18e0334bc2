"""Where MLflow keeps what a store sends: its database, its artifacts, its models; and what to do after a move."""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from crossover.eval.store.names import file_name
from crossover.models.errors import UserError

ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow 3 that hold addresses of artifacts."""

VIEW = "crossover"
"""Name under which an experiment keeps the charts that `crossover ui` opens on."""


def charts_address(server: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs as charts, on an MLflow server."""
    return f"{server}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={VIEW}"


def store_uri(store: Path, tracking_uri: str | None) -> str:
    """Return the URI: the flag, else MLFLOW_TRACKING_URI, else sqlite in the store.

    Raises:
        UserError: the store's path would be read as another one in a URI.
    """
    if given := tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if odd := re.search("[?#]|%[0-9a-fA-F]{2}", str(store.resolve())):
        remedy = "name another folder by --store, or run with --tracking-uri none"
        raise UserError(f"{store}: MLflow takes {odd[0]} in {store.resolve()} for a part of an address; {remedy}")
    return own_uri(store)


def own_uri(store: Path) -> str:
    """Return the URI of the database in the store."""
    return f"sqlite:///{(store / 'mlflow.db').resolve()}"


def artifacts_uri(store: Path) -> str:
    """Return the address below which MLflow keeps the artifacts of a store's own database."""
    return (store / "artifacts").resolve().as_uri()


def registered_name(experiment: str, task: str) -> str:
    """Return the model name of a task's winner, which can stand in `models:/NAME@winner`."""
    return file_name(f"{experiment}.{task}")


def follow_move(store: Path, uri: str) -> None:
    """Let the database of a store that was moved or copied name the artifacts beside it, not those of the old place.

    MLflow keeps whole addresses, and has no call that changes one. A tracking store elsewhere stays as it is.

    Raises:
        sqlite3.Error: the database is damaged, locked or read-only.
    """
    file, here = store / "mlflow.db", artifacts_uri(store)
    if uri != own_uri(store) or not file.exists():
        return
    with closing(sqlite3.connect(file)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return
        found = database.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'")
        for old in {place.rpartition("/artifacts/")[0] + "/artifacts" for (place,) in found if "/artifacts/" in place}:
            for table, column in ADDRESSES if old != here else ():
                below = f"substr({column}, 1, length(:old) + 1) = :old || '/'"
                changed = f"UPDATE {table} SET {column} = :here || substr({column}, length(:old) + 1) WHERE {below}"
                if table in tables:
                    database.execute(changed, {"old": old, "here": here})
