"""What `export` writes, others load: weights that answer the same, a program, a card with the numbers."""

import json
import shutil
from pathlib import Path

import dspy
import pytest
import tiny
import torch
from peft import PeftModel
from processes import UNTRACKED, start, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from crossover.eval.cli.main import main
from crossover.eval.store.result import read_rows
from crossover.eval.tracking.package import load_package
from crossover.programs.modules.classify import Classify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the store of a finished experiment, and the cell of each method."""
    folder = tmp_path_factory.mktemp("export")
    rows = [
        {"id": f"{w} {n}", "text": f"{w} {n}", "label": y}
        for n in range(12)
        for w, y in (("lost card", "a"), ("late money", "b"))
    ]
    for name, part in (("train", rows[:16]), ("val", rows[16:20]), ("test", rows[20:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in part) + "\n")
    (folder / "x.yaml").write_text(
        "version: 1\ntasks:\n  - name: ab\n    program: classify\n"
        "    data: {train: train.jsonl, val: val.jsonl, test: test.jsonl}\n    fields: {text: input, label: output}\n"
        f"models: [{tiny.model(max_tokens=4)}]\n"
        "methods: [{few_shot: {demos: 2}}, head, {sft: {epochs: 2, rank: 4, lr: 0.003}}]\n"
    )
    store = folder / "mlruns"
    assert main(["run", str(folder / "x.yaml"), "--store", str(store), "--no-progress", *UNTRACKED]) == 0
    cells = {"store": str(store)}
    for file in store.glob("cells/*/result.json"):
        cells[json.loads(file.read_text())["cell"]["method"]["name"]] = file.parent.name
    return cells


def export(finished: dict[str, str], method: str, folder: Path, *flags: str) -> int:
    return main(["export", finished[method][:8], str(folder), "--store", finished["store"], *flags])


def test_adapter_and_merged_weights_answer_the_same(
    finished: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(finished, "sft", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert f"--enable-lora --max-lora-rank 8 --lora-modules tuned={tmp_path / 'out' / 'adapter'}" in told
    base = AutoModelForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out" / "merged")("text: lost card 3")["input_ids"]])
    with torch.inference_mode():
        plain = base(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")(ids).logits
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter"))(ids).logits
    assert (merged - adapted).abs().max() < 1e-3
    assert (merged - plain).abs().max() > 0.1
    template = (tiny.FOLDER / "chat_template.jinja").read_text()
    assert (tmp_path / "out" / "adapter" / "chat_template.jinja").read_text().strip() == template.strip()
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.FOLDER)
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize("method", ["few_shot", "head", "sft"])
def test_what_is_exported_answers_as_the_arm_did(finished: dict[str, str], tmp_path: Path, method: str) -> None:
    assert export(finished, method, tmp_path / "out") == 0
    answer = load_package(tmp_path / "out")
    cell = Path(finished["store"]) / "cells" / finished[method]
    rows = list(read_rows(cell / "rows.jsonl"))
    assert [answer({"text": r.id}) for r in rows] == [r.output for r in rows]


def test_weights_that_were_changed_are_not_loaded(finished: dict[str, str], tmp_path: Path) -> None:
    assert export(finished, "sft", tmp_path / "out") == 0
    file = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="not the weights that the arm was measured with"):
        load_package(tmp_path / "out")


def test_the_card_has_the_measured_numbers(finished: dict[str, str], tmp_path: Path) -> None:
    assert export(finished, "sft", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    result = json.loads((Path(finished["store"]) / "cells" / finished["sft"] / "result.json").read_text())
    rows = (Path(finished["store"]) / "cells" / finished["sft"] / "rows.jsonl").read_text().splitlines()
    mean = sum(json.loads(r)["score"] for r in rows) / len(rows)
    assert f"| score | {mean:.3f}, 95 % interval" in card
    assert f"n {len(rows)}, unparsed {sum(json.loads(r)['unparsed'] for r in rows)}, failed 0" in card
    assert f"| lr | {result['notes']['lr']} |" in card
    assert f"| cell | {finished['sft']} |" in card


def test_dspy_loads_the_program(finished: dict[str, str], tmp_path: Path) -> None:
    assert export(finished, "few_shot", tmp_path / "out") == 0
    program = Classify(["text"], "label", [])
    program.load(str(tmp_path / "out" / "program.json"))
    assert len(program.predict.demos) == 2
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_head_is_exported_with_its_labels(
    finished: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(finished, "head", tmp_path / "out") == 0
    assert "vLLM serves no such head" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "head" / "head.json").read_text())["answers"] == ["a", "b"]


def test_a_killed_export_leaves_no_folder_and_the_next_one_goes_on(finished: dict[str, str], tmp_path: Path) -> None:
    arguments = ["export", finished["sft"][:8], str(tmp_path / "out"), "--store", finished["store"]]
    for kept in ("program.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        process = start(tmp_path, tmp_path / "said", *arguments)
        wait_for(lambda name=kept: any(tmp_path.glob(f"out*/{name}")))
        process.kill()
        process.join()
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "README.md").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert main(arguments) == 0
    assert [f.name for f in tmp_path.glob("out*")] == ["out"]
    assert (tmp_path / "out" / "merged").is_dir()


def test_what_cannot_be_exported_is_refused(
    finished: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert export(finished, "sft", tmp_path / "full") == 2
    assert "not empty; name a new folder" in capsys.readouterr().err
    assert main(["export", "zz", str(tmp_path / "new"), "--store", finished["store"]]) == 2
    assert "zz: neither a file nor a finished cell of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "damaged"),
    [
        ("sft", "fit/best/adapter_model.safetensors"),
        ("head", "fit/best/head.safetensors"),
        ("few_shot", "program.json"),
    ],
)
def test_what_was_damaged_since_is_not_exported(
    finished: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, damaged: str
) -> None:
    cell = Path(finished["store"]) / "cells" / finished[method]
    file = cell / damaged
    kept = file.read_bytes()
    try:
        file.write_bytes(kept.replace(b'"label"', b'"labil"') if damaged == "program.json" else kept[:-1] + b"\0")
        assert file.read_bytes() != kept
        assert export(finished, method, tmp_path / "changed") == 2
        file.unlink()
        assert export(finished, method, tmp_path / "gone") == 2
    finally:
        file.write_bytes(kept)
    assert capsys.readouterr().err.count(f"{cell}: program or weights are not those that were fitted") == 2
    assert not list(tmp_path.iterdir())


def test_dspy_is_not_told_of_a_language_model(finished: dict[str, str], tmp_path: Path) -> None:
    assert export(finished, "few_shot", tmp_path / "out") == 0
    state = json.loads((tmp_path / "out" / "program.json").read_text())
    assert state["predict"]["lm"] is None
    assert set(state["metadata"]["dependency_versions"]) == {"python", "dspy", "cloudpickle"}
    assert dspy.__version__ == state["metadata"]["dependency_versions"]["dspy"]
