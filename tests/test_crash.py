"""Kill -9 at random moments: what was paid for is kept, and the end is as if nothing had happened."""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path

import pytest
from crashing import Moment, Scene, asked, at_once, made, question, timeless, told, tracked
from openai_server import openai_server
from openings import write_openings
from processes import UNTRACKED, ended, start, wait_for
from remote_experiment import first_word, write_remote

from crossover.eval.run.latency import latency_requests
from crossover.eval.store.cells import set_aside

REQUESTS, _ = latency_requests()
METHODS = "[{bootstrap: {bootstrapped: 6, labelled: 2}}, zero_shot]"
TRAINED = "[sft: {epochs: 2, rank: 4, bf16: false, checkpoint_minutes: 0}]"
STEPS = 12
"""Of the training: 48 examples in batches of eight, twice."""
SCORED, TIMED = 24, 2 * (2 + REQUESTS)
"""Requests of two arms: twelve examples each, two to warm up and thirty timed ones each."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Scene]:
    """Return an experiment on a provider's model, played once without a kill."""
    folder = tmp_path_factory.mktemp("crash")
    with openai_server(first_word, word_seconds=0.0) as served:
        made_scene = Scene(write_remote(folder, served.url, methods=METHODS), database, served)
        made_scene.play(folder / "reference")
        yield made_scene


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Scene:
    """Return an experiment whose model is trained here, played once without a kill; its machine costs nothing."""
    folder = tmp_path_factory.mktemp("trained")
    file = write_openings(folder, TRAINED, test=12, more="prices: {machine_hour_usd: 0}\n")
    found = Scene(file, database, name="openings")
    found.play(folder / "reference")
    return found


def moments(scene: Scene, draw: random.Random) -> dict[str, tuple[Moment, float]]:
    """Return a random moment of each part of a run, and how much later the process dies."""
    whole = scene.asked.total()
    fitted = whole - TIMED - SCORED
    return {
        "fitting": (asked(scene.served, draw.randrange(1, fitted)), 0.0),
        "scoring": (asked(scene.served, fitted + draw.randrange(1, SCORED)), 0.0),
        "timing": (asked(scene.served, fitted + SCORED + draw.randrange(1, TIMED)), 0.0),
        "sending": (made("cells/*/result.json"), draw.uniform(0, scene.sending)),
        "any time": (at_once, draw.uniform(0, scene.seconds)),
    }


PARTS = ["fitting", "scoring", "timing", "sending", "any time"]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_a_killed_run_ends_as_if_nothing_had_happened(scene: Scene, tmp_path: Path, part: str) -> None:
    before = len(scene.served.bodies)
    early = scene.killed(tmp_path, *moments(scene, random.Random(part))[part])
    assert early or part in ("sending", "any time")
    scene.held(tmp_path, before, kills=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(30))
def test_kills_by_the_dozen(
    scene: Scene, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    draw, before = random.Random(seed), len(scene.served.bodies)
    drawn = [draw.choice(list(moments(scene, draw).values())) for _ in range(2)]
    kills = sum(scene.killed(tmp_path, *moment) for moment in drawn)
    record_property("tries", kills)
    scene.held(tmp_path, before, kills)


def training(draw: random.Random) -> tuple[Moment, float]:
    """Return a random step of the training, and how much later the process dies."""
    return told(f"training step {draw.randrange(1, STEPS)}/{STEPS}"), draw.uniform(0, 0.1)


@pytest.mark.slow
def test_a_killed_training_ends_as_if_nothing_had_happened(trained: Scene, tmp_path: Path) -> None:
    draw = random.Random(0)
    # Ctrl-C ends it in order, at a step; then it dies at a later one, in its timing, and while MLflow is told.
    process = trained.run(tmp_path)
    wait_for(lambda: told(f"training step 3/{STEPS}")(tmp_path))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    assert "training step 12" not in trained.said(tmp_path)
    assert trained.killed(tmp_path, told(f"training step 7/{STEPS}"))
    assert "training step 3/" not in trained.said(tmp_path)
    assert trained.killed(tmp_path, made("cells/*/latency.jsonl"), draw.uniform(0, 0.2))
    trained.killed(tmp_path, made("cells/*/result.json"), draw.uniform(0, trained.sending))
    trained.held(tmp_path, 0, kills=3)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(25))
def test_killed_trainings_by_the_dozen(trained: Scene, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    moment = training(draw) if seed % 2 else (at_once, draw.uniform(0, trained.seconds))
    trained.held(tmp_path, 0, kills=trained.killed(tmp_path, *moment))


def test_fresh_starts_over_and_deletes_nothing(scene: Scene, tmp_path: Path) -> None:
    assert ended(scene.run(tmp_path)) == 0
    store = tmp_path / "mlruns"
    rows = {f.parent.name: f.read_bytes() for f in store.glob("cells/*/rows.jsonl")}
    before = len(scene.served.bodies)
    assert ended(scene.run(tmp_path, "--fresh")) == 0, scene.said(tmp_path)
    assert timeless(scene.out(tmp_path)) == scene.expected
    assert Counter(question(b) for b in scene.served.bodies[before:]) == scene.asked
    assert {f.parent.name: f.read_bytes() for f in store.glob("aside/*/rows.jsonl")} == {
        f"{key}-1": data for key, data in rows.items()
    }
    assert set(tracked(store, "words").values()) == {2}


def test_a_cell_is_set_aside_beside_earlier_ones_of_which_one_was_deleted(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "cells" / "aa11").mkdir(parents=True)
        (tmp_path / "cells" / "aa11" / "rows.jsonl").write_text(str(number))
        if number == 3:
            shutil.rmtree(tmp_path / "aside" / "aa11-1")
        set_aside(tmp_path, "aa11")
    assert {f.parent.name: f.read_text() for f in tmp_path.glob("aside/*/*")} == {"aa11-2": "2", "aa11-3": "3"}


def test_an_amended_file_runs_the_difference_alone(tmp_path: Path) -> None:
    with openai_server(first_word, word_seconds=0.0) as served:
        for amended in (False, True):
            methods = f"[{'{few_shot: {demos: 3}}, ' if amended else ''}zero_shot, {{few_shot: {{demos: 2}}}}]"
            seeds = "[0, 1]" if amended else "[0]"
            file = write_remote(
                tmp_path, served.url, methods=methods, more=f"seeds: {seeds}\ntrain_sizes: [8]\ncompare: all"
            )
            cells = {f.name for f in (tmp_path / "mlruns" / "cells").glob("*")}
            before = len(served.bodies)
            process = start(tmp_path, tmp_path / "said", "run", str(file), "-q", "-j", "2", *UNTRACKED)
            assert ended(process) == 0, (tmp_path / "said.err").read_text()
    new = {f.name for f in (tmp_path / "mlruns" / "cells").iterdir()} - cells
    # Two seeds of three demonstrations, and the second seed of two; zero-shot has no seeds.
    assert len(new) == 3
    # The two seeds of an arm share its timed requests.
    assert len(served.bodies) - before == 3 * (12 + 2 + ceil(REQUESTS / 2))
