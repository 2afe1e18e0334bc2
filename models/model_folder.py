"""Check the files of a model's folder before any of them is loaded."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crossover.models.errors import UserError

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which every tokenizer that transformers reads has at least one."""
OBJECTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files that hold one JSON object each, where they are there."""
READ = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Suffixes of the files that are loaded or hashed."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 200_000_000
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
SAVE_AGAIN = "save the model into the folder again"


def check_model_folder(folder: Path) -> None:
    """Check that configuration, tokenizer and weights are there, whole, and of one model; no tensor is read.

    Raises:
        UserError: they are not. The message has the form `what; remedy`, without the folder's name.
    """
    if not folder.is_dir():
        raise UserError("no such folder; check the path, which starts at the experiment file")
    if (folder / "adapter_config.json").exists():
        raise UserError("an adapter, which names a base model elsewhere; merge it and give that folder")
    if not any(folder.glob("*.safetensors")):
        found = "; a GGUF file is given by its own name" if any(folder.glob("*.gguf")) else ""
        raise UserError(f"no weights (*.safetensors) here; give a model's folder{found}")
    if not (folder / "config.json").exists():
        raise UserError("no config.json here; give a folder that transformers saved")
    if not any((folder / f).exists() for f in TOKENIZERS):
        raise UserError("no tokenizer (tokenizer.json) here; save the model's tokenizer into the same folder")
    # Opening a pipe would wait for ever, and a link may lead nowhere.
    for file in sorted(folder.iterdir()):
        if file.suffix in READ and not file.is_file():
            raise UserError(f"{file.name} is no regular file; {SAVE_AGAIN}")
    objects = {name: _json_object(folder / name) for name in OBJECTS if (folder / name).exists()}
    config = objects["config.json"]
    if not isinstance(config.get("model_type"), str):
        raise UserError("config.json names no `model_type`; give a folder that transformers saved")
    tensors = [name for shard in _shards(folder) for name in shard]
    layers = [(k, v) for part in (config, *config.values()) if isinstance(part, dict) for k, v in part.items()]
    for key, number in layers:
        if key in LAYERS and isinstance(number, int) and not 0 < number <= len(tensors):
            what = f"config.json says {key} {number}, and there are {len(tensors)} tensors"
            raise UserError(f"{what}; {SAVE_AGAIN}")


def _json_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: the file holds anything else.
    """
    if file.stat().st_size > LARGEST_JSON:
        raise UserError(f"{file.name} has {file.stat().st_size / 1e6:.0f} MB; {SAVE_AGAIN}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file.name} is not valid JSON ({type(e).__name__}); {SAVE_AGAIN}") from e
    if not isinstance(data, dict):
        raise UserError(f"{file.name} holds a {type(data).__name__}, not an object; {SAVE_AGAIN}")
    return data


def _shards(folder: Path) -> Iterator[Sequence[str]]:
    """Yield the names of the tensors of each file of weights: the one there is, or those that the index names."""
    if not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists():
            others = ", ".join(sorted(f.name for f in folder.glob("*.safetensors"))[:3])
            raise UserError(f"neither {WEIGHTS} nor {INDEX} beside {others}; {SAVE_AGAIN}")
        yield _tensors(folder / WEIGHTS)
        return
    places = _json_object(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise UserError(f"{INDEX} has no `weight_map` of names; {SAVE_AGAIN}")
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{INDEX} names {name!r}, which is not in the folder; {SAVE_AGAIN}")
        tensors = _tensors(folder / name)
        if absent := {tensor for tensor, place in places.items() if place == name}.difference(tensors):
            raise UserError(f"{INDEX} places {min(absent)!r} in {name}, which lacks it; {SAVE_AGAIN}")
        yield tensors


def _tensors(file: Path) -> Sequence[str]:
    """Return the names of the tensors of a file, whose header must fit its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as e:
        reason = str(e).removeprefix("Error while deserializing header: ").splitlines()[0]
        raise UserError(f"{file.name} is no whole file of safetensors ({reason}); {SAVE_AGAIN}") from e


def stored_bytes(folder: Path) -> int:
    """Return the size of a folder's weights."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))
