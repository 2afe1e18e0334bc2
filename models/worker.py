"""Let one thread answer the jobs of many, those that arrive together in one go."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import finalize, ref

J = TypeVar("J")


class Worker(Generic[J]):
    """A thread that collects jobs as they come, and starts with the first."""

    def __init__(self, answer: Callable[[list[J]], None]) -> None:
        """Call `answer` with the jobs that have arrived together."""
        self._answer = answer
        self._jobs: queue.SimpleQueue[J | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._arriving = 0
        """Jobs that are being prepared and will be in the queue soon."""
        self._thread: threading.Thread | None = None

    def expect(self, jobs: int) -> None:
        """Announce jobs, so that they are answered with those already there, or call them off by a negative number."""
        with self._lock:
            self._arriving += jobs
            if self._thread is None:
                # The thread waits for jobs without holding this worker, whose model would never be freed.
                work = threading.Thread(target=_work, args=(self._jobs, ref(self)), daemon=True, name="local-model")
                self._thread = work
                work.start()
                finalize(self, self._jobs.put, None)

    def put(self, job: J) -> None:
        """Hand over a job that was announced."""
        self._jobs.put(job)

    def close(self) -> None:
        """Stop the thread when it has answered what it collected; a later job starts a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()

    def answer_with(self, first: J) -> None:
        """Answer a job together with those that are there or being prepared."""
        jobs = [first]
        # Wait only for jobs that are already being prepared: a lone one is never delayed.
        while self._arriving > len(jobs) or not self._jobs.empty():
            try:
                # A thread that fails between announcing its job and handing it over must not hold up the rest.
                job = self._jobs.get(timeout=0.05)
            except queue.Empty:
                break
            if job is None:
                # `close` was called: answer what has been collected, then read the end mark again.
                self._jobs.put(None)
                break
            jobs.append(job)
        with self._lock:
            self._arriving -= len(jobs)
        self._answer(jobs)


def _work(jobs: "queue.SimpleQueue[J | None]", worker: "ref[Worker[J]]") -> None:
    while (first := jobs.get()) is not None:
        if (its := worker()) is None:
            return
        its.answer_with(first)
        del first, its
