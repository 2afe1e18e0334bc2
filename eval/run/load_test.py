"""Ask fitted arms under load: a closed loop of users, or an open loop at a rate, over one arm or several in turn.

After LoRA Land (arXiv 2405.00732): requests that stream, time to the first token, whole time and throughput, with one
adapter and with many on one base. An open loop counts a request's time from its arrival, not from when a thread was
free for it: a slow server must not slow down the clock that it is held against.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import dspy
import numpy as np
from dspy.utils.exceptions import AdapterParseError

from crossover.eval.experiment.splits import sample
from crossover.eval.run.passages import Indexes, Passages
from crossover.eval.store.loads import LoadLevel, LoadRequest, Loop
from crossover.eval.store.recorded import params_with
from crossover.eval.store.result import Result
from crossover.eval.tracking.package import open_package, recorded_task, write_package
from crossover.models.api_keys import redact
from crossover.models.errors import UserError, one_line
from crossover.models.first_token import timing_first_token
from crossover.models.load import load_model
from crossover.models.spec import ModelSpec

QUESTIONS = 200
"""Test questions that are asked again and again; a hash chooses them."""
MOST_AT_ONCE = 256
"""Requests of an open loop that are under way at once."""
NOT_BEGUN = "not begun: the server fell behind the rate"


class ServedArm(NamedTuple):
    """One arm that can be asked."""

    key: str
    program: dspy.Module
    lm: dspy.LM
    prompt_format: dspy.Adapter
    questions: Sequence[dspy.Example]


class Bound(NamedTuple):
    """Where a level of load ends: no request comes after either."""

    seconds: float
    requests: int


def served_arms(store: Path, results: Sequence[Result], served: Sequence[ModelSpec], folder: Path) -> list[ServedArm]:
    """Return the arms of finished cells, each with its own model, or with that of `served` in its place.

    Models that run here share their bases. Each arm is asked once, so that it is warm. Their packages are written to
    `folder`, which must stay until the last request: a server may read an adapter again.

    Raises:
        UserError: a cell's data or weights are gone, it cannot be asked outside of a run, or its first request fails.
    """
    load, arms = cache(load_model), list[ServedArm]()
    for number, result in enumerate(results):
        task = recorded_task(params_with(store, result.key), result.cell.task)
        if task is None:
            raise UserError(f"{result.key}: the data of its task cannot be read any more")
        asked = sample(task.test, QUESTIONS)
        questions = Passages(task, result.cell.retrieval, Indexes(store)).attach(asked, result.cell.knowledge.test)
        package = folder / result.key
        package.mkdir()
        write_package(store, result, package, task=task)
        arm = open_package(package, load=load, served=served[number] if served else None)
        arms.append(ServedArm(result.key, arm.program, arm.lm, arm.prompt_format, questions))
        if failure := _ask(arms[-1], questions[0], time.perf_counter()).failure:
            raise UserError(f"{result.key}: the first request failed: {failure}; nothing was timed")
    return arms


def server_of(models: Iterable[ModelSpec], address: str, machine: str) -> str:
    """Return who answered: the address that was given, else that of each model, its provider, or this machine."""
    if address:
        return address
    own = (
        machine
        if m.runs_here and (m.starts_vllm or not m.by_vllm)
        else m.api_base or f"the API of {m.name.partition('/')[0]}"
        for m in models
    )
    return ", ".join(dict.fromkeys(own))


def served_specs(results: Sequence[Result], address: str, names: Sequence[str], key: str) -> list[ModelSpec]:
    """Return the models behind a server that stand for those of the cells; empty without an address.

    A cell with trained weights is served under its key, any other under its model's own name, unless `names` has one
    name for all or one for each.

    Raises:
        UserError: there are other than one or as many names as cells.
    """
    if not address:
        return []
    if len(names) not in (0, 1, len(results)):
        raise UserError(f"{len(names)} names of models for {len(results)} cells; give --model once, or for each cell")
    own = [r.key if r.cell.method.trains else r.cell.model.name.partition(":")[2] or r.cell.model.name for r in results]
    chosen = names if len(names) == len(results) else list(names) * len(results) or own
    return [
        replace(
            r.cell.model,
            name=name if name.startswith("openai/") else f"openai/{name}",
            prompt_format=str(r.notes.get("prompt_format") or r.cell.model.prompt_format),
            api_base=address,
            api_key=key,
        )
        for r, name in zip(results, chosen, strict=True)
    ]


def measure_load(
    arms: Sequence[ServedArm], loop: Loop, load: float, bound: Bound, *, task: str, server: str
) -> LoadLevel:
    """Ask the arms in turn at one level of load until it ends, and return all requests."""
    began = time.perf_counter()
    requests = (_closed if loop == "closed" else _open)(arms, load, bound)
    return LoadLevel(task, tuple(a.key for a in arms), loop, load, server, time.perf_counter() - began, tuple(requests))


def _turns(arms: Sequence[ServedArm]) -> Callable[[int], tuple[ServedArm, dspy.Example]]:
    """Return the arm and the question of request n: the arms take turns, and each goes through its questions."""

    def turn(n: int) -> tuple[ServedArm, dspy.Example]:
        arm = arms[n % len(arms)]
        return arm, arm.questions[n // len(arms) % len(arm.questions)]

    return turn


def _closed(arms: Sequence[ServedArm], users: float, bound: Bound) -> list[LoadRequest]:
    """Let so many users ask, each again as soon as it is answered."""
    numbers, turn, began = itertools.count(), _turns(arms), time.perf_counter()

    def user() -> list[LoadRequest]:
        answers = list[LoadRequest]()
        while (n := next(numbers)) < bound.requests and time.perf_counter() - began < bound.seconds:
            answers.append(_ask(*turn(n), time.perf_counter()))
        return answers

    with ThreadPoolExecutor(round(users)) as pool:
        everyone = [pool.submit(user) for _ in range(round(users))]
        return [request for answers in everyone for request in answers.result()]


def _open(arms: Sequence[ServedArm], rate: float, bound: Bound) -> list[LoadRequest]:
    """Let requests come at random at this mean rate, those that wait included (a Poisson process).

    What the server has not begun when as much time has passed again as the arrivals took has failed.
    """
    turn, began, never = _turns(arms), time.perf_counter(), threading.Event()
    futures = list[Future[LoadRequest]]()
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        for n, at in enumerate(_arrivals(rate, bound)):
            never.wait(max(0.0, began + at - time.perf_counter()))
            futures.append(pool.submit(_ask, *turn(n), began + at))
        elapsed = time.perf_counter() - began
        _, waiting = wait(futures, timeout=max(1.0, elapsed))
        late = {future for future in waiting if future.cancel()}
        return [
            LoadRequest(turn(n)[0].key, 2 * elapsed, None, 0, NOT_BEGUN) if future in late else future.result()
            for n, future in enumerate(futures)
        ]


def _arrivals(rate: float, bound: Bound) -> Iterator[float]:
    """Yield the seconds at which requests come; the same ones at every call."""
    rng, at = np.random.default_rng(0), 0.0
    for _ in range(bound.requests):
        yield at
        at += rng.exponential(1 / rate)
        if at >= bound.seconds:
            return


def _ask(arm: ServedArm, question: dspy.Example, arrived: float) -> LoadRequest:
    """Ask one question by a stream, and time it from its arrival."""
    # Each request has a timer of its own: it holds when the latest answer began.
    lm, timer = timing_first_token(arm.lm)
    context = dspy.context(lm=lm, adapter=arm.prompt_format, disable_history=True, trace=None)
    failure = ""
    with context, dspy.track_usage() as usage:
        try:
            # An answer that cannot be parsed took its time all the same.
            with contextlib.suppress(AdapterParseError):
                arm.program(**question.inputs())
        # What a provider, or a program of somebody else's, raises is not known.
        except Exception as e:
            failure = redact(f"{type(e).__name__}: {one_line(e, 200)}")
    seconds = time.perf_counter() - arrived
    tokens = sum(int(used.get("completion_tokens") or 0) for used in usage.get_total_tokens().values())
    first = None if timer.began is None else timer.began - arrived
    return LoadRequest(arm.key, seconds, first, tokens, failure)
