"""A folder of a model is checked before it is loaded: each damaged one ends with exit 2 and its reason."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from bad_input import EXPERIMENT, Capture, nested, refused, sound_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a sound experiment, in which the verbs run."""
    return sound_folder(tmp_path, monkeypatch)


def rewritten(name: str, **changes: Any) -> Callable[[Path], object]:
    """Return what changes keys of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return change


def written(name: str, data: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what puts something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def cut(name: str, keep: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return what changes the header of the weights, in place."""

    def rewrite(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        facts = json.loads(data[8 : 8 + size])
        change(facts)
        text = json.dumps(facts).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return rewrite


def index_of(places: Any) -> Callable[[Path], object]:
    """Return what turns the folder into one of shards with such an index."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(places))

    return change


FIRST = "model.embed_tokens.weight"
MODELS: dict[str, Callable[[Path], object]] = {
    "no config": lambda f: (f / "config.json").unlink(),
    "empty config": written("config.json", ""),
    "config is a list": written("config.json", "[]"),
    "deep config": written("config.json", nested("[", "]")),
    "binary config": written("config.json", bytes(range(256))),
    "config is a folder": replaced("config.json", Path.mkdir),
    "config is a pipe": replaced("config.json", os.mkfifo),
    "config is a loop": replaced("config.json", lambda p: p.symlink_to(p)),
    "config leads nowhere": replaced("config.json", lambda p: p.symlink_to(p.parent / "none")),
    "huge config": replaced("config.json", lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 10**10)),
    "no type": rewritten("config.json", model_type=None),
    "type is a number": rewritten("config.json", model_type=5),
    "unknown type": rewritten("config.json", model_type="nonesuch"),
    "type of another": rewritten("config.json", model_type="bert", architectures=["BertModel"]),
    "a billion layers": rewritten("config.json", num_hidden_layers=10**9),
    "more layers": rewritten("config.json", num_hidden_layers=5),
    "no layers": rewritten("config.json", num_hidden_layers=0),
    "layers are a text": rewritten("config.json", num_hidden_layers="four"),
    "a billion wide": rewritten("config.json", hidden_size=10**9),
    "wider": rewritten("config.json", hidden_size=512),
    "negative": rewritten("config.json", hidden_size=-256),
    "no width": rewritten("config.json", hidden_size=0),
    "width is a list": rewritten("config.json", hidden_size=[256]),
    "more words": rewritten("config.json", vocab_size=10**9),
    "fewer words": rewritten("config.json", vocab_size=100),
    "heads that do not divide": rewritten("config.json", num_attention_heads=7, head_dim=None),
    "no heads": rewritten("config.json", num_attention_heads=0),
    "unknown activation": rewritten("config.json", hidden_act="nonesuch"),
    "no tokenizer": lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
    "empty tokenizer": written("tokenizer.json", ""),
    "tokenizer without model": written("tokenizer.json", "{}"),
    "half a tokenizer": cut("tokenizer.json", 0.5),
    "tokenizer is a pipe": replaced("tokenizer.json", os.mkfifo),
    "broken tokenizer settings": written("tokenizer_config.json", "{"),
    "broken template": written("chat_template.jinja", "{% for x in %}{{"),
    "template that leaves": written("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "endless template": written(
        "chat_template.jinja", "{% for a in range(10**9) %}{{ raise_exception('x') }}{% endfor %}"
    ),
    "broken generation": written("generation_config.json", "["),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "empty weights": written("model.safetensors", ""),
    "half of the weights": cut("model.safetensors", 0.5),
    "weights without a byte": cut("model.safetensors", 0.99999),
    "a pickle": written("model.safetensors", b"\x80\x04\x95" + bytes(100)),
    "a pickle alone": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "long header": written("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
    "header is a list": written("model.safetensors", struct.pack("<Q", 2) + b"[]"),
    "weights are a pipe": replaced("model.safetensors", os.mkfifo),
    "weights are a folder": replaced("model.safetensors", Path.mkdir),
    "weights lead nowhere": replaced("model.safetensors", lambda p: p.symlink_to(p.parent / "none")),
    "unknown name": lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
    "a tensor is missing": header(lambda facts: facts.update(other=facts.pop(FIRST))),
    "offsets beyond": header(lambda facts: facts[FIRST].update(data_offsets=[0, 10**12])),
    "other shape": header(lambda facts: facts[FIRST].update(shape=facts[FIRST]["shape"][::-1])),
    "other type": header(lambda facts: facts[FIRST].update(dtype="F64")),
    "index without map": index_of({}),
    "index is a list": index_of([]),
    "map of numbers": index_of({"weight_map": {FIRST: 5}}),
    "absent shard": index_of({"weight_map": {FIRST: "model-2.safetensors"}}),
    "shard elsewhere": index_of({"weight_map": {FIRST: "../model.safetensors"}}),
    "shard lacks a tensor": index_of({"weight_map": {"nonesuch": "model-1.safetensors"}}),
    "map of one tensor": index_of({"weight_map": {FIRST: "model-1.safetensors"}}),
    "broken index": written("model.safetensors.index.json", "{"),
    "an adapter": written("adapter_config.json", "{}"),
}
"""What somebody may have done to the folder of a model."""


@pytest.fixture
def model(folder: Path) -> Path:
    """Return a copy of the small model, which the experiment names."""
    shutil.copytree(tiny.FOLDER, folder / "model")
    text = EXPERIMENT.replace(
        '{name: openai/x, api_base: "http://127.0.0.1:9/v1"}', "{name: local:./model, max_tokens: 4}"
    )
    (folder / "x.yaml").write_text(text)
    return folder / "model"


@pytest.mark.parametrize("name", MODELS)
def test_bad_folders_of_models(model: Path, capsys: Capture, name: str) -> None:
    MODELS[name](model)
    refused(capsys, "validate", "x.yaml", codes=(0, 2))
    refused(capsys, "run", "x.yaml", "-q", "--limit", "2", "--only", "zero_shot", "--tracking-uri", "none")
