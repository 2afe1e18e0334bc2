"""The thread that answers for an engine keeps no model alive."""

import gc
import threading
import weakref

import tiny
from dspy import lm15
from processes import wait_for

from crossover.models.local import LocalEngine


def answered(engine: LocalEngine) -> str:
    request = lm15.Request(
        model="local/tiny", messages=(lm15.Message.user("text: a"),), config=lm15.Config(max_tokens=2)
    )
    return engine.complete(request).message.text or ""


def thread_of(before: set[threading.Thread]) -> threading.Thread:
    [thread] = set(threading.enumerate()) - before
    return thread


def test_an_engine_that_nobody_holds_is_freed_with_its_model() -> None:
    before = set(threading.enumerate())
    engine = LocalEngine.load(tiny.FOLDER)
    assert answered(engine)
    thread, model = thread_of(before), weakref.ref(engine.model)
    del engine
    # A thread that waits for jobs ends with its engine, which it may still hold for a moment after the answer.
    wait_for(lambda: gc.collect() < 0 or not thread.is_alive(), 30)
    assert not thread.is_alive()
    gc.collect()
    assert model() is None


def test_an_engine_that_was_closed_answers_again() -> None:
    engine = LocalEngine.load(tiny.FOLDER)
    first = answered(engine)
    engine.close()
    assert answered(engine) == first
