"""Tracking that never stops a run and hardly slows it: a thread sends, and what it cannot send stays in the store."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue

from crossover.eval.analysis.compare import Comparison
from crossover.eval.store.result import Result
from crossover.eval.tracking.logged import curves
from crossover.eval.tracking.outbox import Unsent, finish, send, unfinished
from crossover.eval.tracking.tracker import Tracker, store_uri
from crossover.eval.tracking.winner import register_winners
from crossover.programs.task import Task

NONE = "none"
"""URI of a run that is not tracked; `crossover sync` can still send it."""
LOCAL_SECONDS = 60.0
"""Longest wait at the end of a run for a store on this machine, which is always about to be done."""
REMOTE_SECONDS, REMOTE_SHARE = 10.0, 0.03
"""Longest wait for a server, in seconds and as a share of the run's time; the greater counts."""


class SafeTracker:
    """Track results in order, in a thread of its own; the first failure ends tracking for the rest of the run."""

    def __init__(self, store: Path, tracking_uri: str | None, note: Callable[[str], None]) -> None:
        """Start the thread; it opens the tracking store in good time."""
        self.store, self.note = store, note
        self._uri = tracking_uri
        self._tracker: Tracker | None = None
        self._told = set[str]()
        """Experiments that a cell was sent of."""
        self._failure = "off" if store_uri(store, tracking_uri) == NONE else ""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._left, self._changed = 0, threading.Condition()
        self._started = time.monotonic()
        threading.Thread(target=self._work, daemon=True, name="tracking").start()

    def open(self) -> None:
        """Open the tracking store, which takes a while where it has to be made."""
        self._put(lambda: self._opened().open())

    def _opened(self) -> Tracker:
        self._tracker = self._tracker or Tracker(self.store, self._uri)
        return self._tracker

    def result(self, result: Result, unsent: Unsent) -> None:
        """Track a measured cell and remember its run id."""

        def job() -> None:
            send(self._opened(), self.store, result, unsent)
            self._told.add(unsent.name)

        self._put(job)

    def verdict(
        self, comparison: Comparison, unsent: Unsent, results: Mapping[str, Result], tasks: Mapping[str, Task]
    ) -> None:
        """Track the comparison, the learning curves and the winners, where any cell was sent since the last verdict.

        Runs of the experiment that other settings left without a verdict end without one.
        """

        def rest(parent: str) -> None:
            for arms in curves(comparison.arms):
                self._opened().curve(parent, arms)
            register_winners(self._opened(), self.store, comparison, results, tasks, self.note)

        def job() -> None:
            left = {u.name: u for u in unfinished(self.store, store_uri(self.store, self._uri))}
            if unsent.name in self._told | left.keys():
                finish(self._opened(), self.store, unsent, comparison, then=rest)
            for name, other in left.items():
                if name != unsent.name and other.experiment == unsent.experiment:
                    finish(self._opened(), self.store, other)

        self._put(job)

    def wait(self) -> None:
        """Wait until all is sent, but not long; what is not sent then is told."""
        local = not store_uri(self.store, self._uri).startswith("http")
        longest = LOCAL_SECONDS if local else max(REMOTE_SECONDS, REMOTE_SHARE * (time.monotonic() - self._started))
        with self._changed:
            if not self._changed.wait_for(lambda: self._left == 0 or bool(self._failure), longest):
                self._fail(f"still busy after {longest:.0f} s")

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        self._jobs.put(None)

    def _put(self, job: Callable[[], None]) -> None:
        if not self._failure:
            with self._changed:
                self._left += 1
            self._jobs.put(job)

    def _work(self) -> None:
        while not self._failure and (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as e:  # whatever it is, the run goes on without it
                with self._changed:
                    self._fail(str(e))
            finally:
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()

    def _fail(self, why: str) -> None:
        self._failure = why
        remedy = "the rows are in the store; tracking is off for this run; send them later: crossover sync"
        self.note(f"warning: MLflow: {why}; {remedy}")
        self._changed.notify_all()
