"""Sync a run while it measures: never stop it, and hardly slow it."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from crossover.eval.analysis.compare import Comparison
from crossover.eval.experiment.spec import Experiment
from crossover.eval.store.result import Result
from crossover.eval.tracking.addresses import store_uri
from crossover.eval.tracking.pending import NONE, PendingRun, begin_run, tracked_run
from crossover.eval.tracking.sync import Conclusion, send_cells, sync
from crossover.eval.tracking.traces import RequestsOf
from crossover.eval.tracking.tracker import Tracker
from crossover.programs.task import Task

WAIT_SECONDS, WAIT_SHARE = 60.0, 0.05
"""Longest wait for MLflow at the end of a run, in seconds and as a share of the run's time; the greater counts."""


class BackgroundSync:
    """Send the cells of one run in a thread; the first failure is one warning and ends tracking for the run."""

    def __init__(
        self, store: Path, uri: str | None, tasks: Mapping[str, Task], requests: RequestsOf, note: Callable[[str], None]
    ) -> None:
        """Send nothing yet; `tasks` are those of the run by name, `requests` renders what its traces show."""
        self.store, self.uri, self.note = store, store_uri(store, uri), note
        self._tasks, self._requests = tasks, requests
        self._off = self.uri == NONE
        self._run: PendingRun | None = None
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()

    def begin(self, experiment: Experiment, cells: Iterable[str]) -> None:
        """Record the run in the store, so that its cells can be sent even if it is killed; once is enough."""
        self._run = self._run or begin_run(self.store, experiment, cells)

    def send(self) -> None:
        """Send the cells that are finished, or leave them to the next call when an earlier one is still busy."""
        if self._thread is None or not self._thread.is_alive():
            self._start(self._send)

    def flush(self, results: Iterable[Result]) -> None:
        """Send all finished cells, wait until it is done, and fill in the run ids that MLflow gave."""
        self._start(self._send)
        self._wait()
        for result in results:
            result.mlflow_run_id = tracked_run(self.store, result.key, self.uri) or result.mlflow_run_id

    def conclude(self, experiment: Experiment, comparison: Comparison) -> None:
        """Send the verdict and what killed runs of the same experiment left, and wait until it is done."""
        known = Conclusion(experiment, comparison, self._tasks)
        self._start(lambda: sync(self.store, self.uri, known=known, note=self.note, requests=self._requests))
        self._wait()

    def _send(self) -> None:
        # Opened even when no cell is finished: a new store takes seconds, which pass while cells are measured.
        tracker = Tracker(self.store, self.uri)
        if self._run is not None:
            send_cells(tracker, self.store, self._run, self._tasks)

    def _start(self, work: Callable[[], object]) -> None:
        """Do the work in a thread, after that of the thread before it."""
        before = self._thread

        def job() -> None:
            if before is not None:
                before.join()
            try:
                if not self._off:
                    work()
            except Exception as e:  # whatever it is, the run goes on without it
                self._fail(str(e))

        if not self._off:
            # A daemon: a server that never answers must not keep the process from ending.
            self._thread = threading.Thread(target=job, daemon=True, name="tracking")
            self._thread.start()

    def _wait(self) -> None:
        longest = max(WAIT_SECONDS, WAIT_SHARE * (time.monotonic() - self._began))
        if self._thread is not None and not self._off:
            self._thread.join(longest)
            if self._thread.is_alive():
                self._fail(f"still busy after {longest:.0f} s")

    def _fail(self, why: str) -> None:
        if not self._off:
            self._off = True
            remedy = "the rows are in the store; tracking is off for this run; send them later: crossover sync"
            self.note(f"warning: MLflow: {why}; {remedy}")
