"""The example files stay valid: each is read with data of the shape that it names."""

import json
from pathlib import Path

import pytest

from crossover.eval.cli.main import main
from crossover.eval.experiment import catalog
from crossover.eval.experiment.read import QUICKSTART, read_experiment

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("benchmarks/experiments/*.yaml")])
ROWS = {
    "BANKING77": {"text": "card {n} is lost", "label": "card_lost"},
    "MULTIHOP": {"question": "what is {n}?", "answers": ["fact {n}"], "gold_passage_ids": ["p0"]},
    "SQUAD": {"question": "what is {n}?", "answers": ["fact {n}"], "gold_passage_ids": ["p0"], "title": "t"},
    "TM_EN_DE": {"source": "entry {n}", "target": "Eintrag {n}", "project": "p", "file": "f"},
    "WNUT17": {"text": "Ada {n} sang", "entities": [{"type": "person", "text": "Ada {n}"}], "tokens": [], "tags": []},
}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_an_example_validates(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-that-nobody-asks")
    for variable, row in ROWS.items():
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
        for start, split in ((0, "train"), (100, "dev"), (200, "test")):
            rows = [json.dumps(row | {"id": f"{split}{n}"}).replace("{n}", str(n)) for n in range(start, start + 60)]
            (tmp_path / variable / f"{split}.jsonl").write_text("\n".join(rows))
        (tmp_path / variable / "corpus.jsonl").write_text('{"id": "p0", "title": "t", "text": "fact"}')
    assert main(["validate", str(file)]) == 0


def test_every_method_has_an_example() -> None:
    read = [read_experiment(f)[0] for f in ROOT.glob("examples/*.yaml") if "data:" not in f.read_text()]
    shown = {step.name for e in read if e is not None for m in e.methods for step in m.steps}
    assert shown == {m.name for m in catalog.methods()}


def test_the_quickstart_has_the_arms_that_it_promises() -> None:
    experiment, problems = read_experiment(QUICKSTART)
    assert experiment is not None
    assert problems == []
    assert {m.name for m in experiment.methods} == {"zero_shot", "many_shot", "retrieved_demos", "sft"}
    assert len(experiment.tasks) == 2
