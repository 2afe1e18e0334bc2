"""What the tests share: the small model, loaded once, and a store of their own."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
import tiny
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    DO_NOT_TRACK="true",
    TOKENIZERS_PARALLELISM="false",
    CROSSOVER_LATENCY_REQUESTS="3",
    # No test fetches a model: the one that people get is neither in this cache nor to be had.
    CROSSOVER_CACHE=str(Path(tempfile.gettempdir()) / "crossover-tests"),
    PIP_NO_INDEX="1",
    UV_OFFLINE="1",
)
os.environ.pop("MLFLOW_TRACKING_URI", None)
# Two workers run the tests; with threads of their own for every matrix they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from openings import write_openings

from crossover.eval.cli.main import main
from crossover.eval.tracking.tracker import Tracker
from crossover.models.load import LoadedModel, load_model
from crossover.models.plain import PlainAdapter
from crossover.models.spec import ModelSpec

# A shell that starts the tests in the background makes them deaf to Ctrl-C, and with them the runs that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = {
    "processes": (
        *("test_crash", "test_export", "test_faults", "test_limits", "test_lock", "test_memory", "test_packaged"),
        *("test_rows", "test_search_crash", "test_sync", "test_tracking", "test_training"),
    ),
    "finished run": ("test_checks", "test_forecast", "test_mlflow_ui", "test_registered", "test_show"),
    "sentence encoder": ("test_demo_index", "test_retrieval", "test_retrieval_contract"),
}
"""What is dear to make, and the files that need it: one worker runs them all, and makes it once.

The processes are forked from a server that imports everything; the finished run was trained and tracked.
"""
GROUPS = {file: group for group, files in SHARED.items() for file in files}


class GroupScheduling(LoadFileScheduling):
    """Run the tests of a file on one worker, and files that share something on the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0]).stem
        return GROUPS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling | None:
    """Return the scheduler that `--dist loadfile` gets here."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection() -> None:
    """Collect no garbage while the test files import torch and its like: it takes a fifth of that time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, without looking at what was imported: that takes up to a second each time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def small() -> LoadedModel:
    """Return the real small model, in the format of models that were never taught to follow instructions."""
    model = load_model(ModelSpec(tiny.NAME, prompt_format="plain", decode="free", max_tokens=16))
    return replace(model, prompt_format=PlainAdapter())


@pytest.fixture
def spoken(small: LoadedModel) -> Iterator[LoadedModel]:
    """Make the small model the one that DSPy programs of the test speak to."""
    with dspy.context(lm=small.lm, adapter=small.prompt_format):
        yield small


@pytest.fixture(scope="session")
def intents() -> list[dspy.Example]:
    """Return a small classification task: four intents, six ways to say each."""
    said = {
        "card_lost": "I lost my {} card|my {} card is gone|cannot find the {} card anywhere",
        "refund_late": "where is my {} refund|the {} refund has not come|still waiting for a {} refund",
        "close_account": "close my {} account|please end the {} account|I want to shut the {} account",
        "exchange_rate": "which {} exchange rate applies|the {} rate was wrong|tell me the {} exchange rate",
    }
    rows = [
        (f.format(word), label) for word in ("new", "old") for label, forms in said.items() for f in forms.split("|")
    ]
    return [dspy.Example(id=str(n), text=t, label=y).with_inputs("text") for n, (t, y) in enumerate(rows)]


@pytest.fixture(scope="session")
def openings_run(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """Return the folder of a finished run in which one arm is far better: its experiment file, data and store."""
    folder = tmp_path_factory.mktemp("openings")
    (folder / "mlruns").mkdir()
    shutil.copy(database, folder / "mlruns")
    file = write_openings(folder, "[zero_shot, retrieved_demos: {demos: 3}, sft: {epochs: 1, rank: 4}]")
    assert main(["run", str(file), "--store", str(folder / "mlruns"), "--no-progress"]) == 0
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow database without a run: making one takes longer than many a run, so all workers copy it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    # It is made whole or not at all, by one of the workers.
    Tracker(folder / "empty")
    return folder / "empty" / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return an empty store."""
    return tmp_path / "mlruns"
