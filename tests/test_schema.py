"""The JSON schema of the experiment file takes what `validate` takes, and names every section and option."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from crossover.eval.cli.main import main
from crossover.eval.experiment.read import SECTIONS

ROOT = Path(__file__).parent.parent
FILES = [
    f for folder in ("examples", "benchmarks/experiments", "eval/experiment") for f in ROOT.glob(f"{folder}/*.yaml")
]
SOUND: dict[str, Any] = {"version": 1, "tasks": ["stdlib_module"], "models": ["smollm2"], "methods": ["zero_shot"]}


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the schema as the command line prints it."""
    assert main(["schema"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def faults(schema: dict[str, Any], experiment: Any) -> list[str]:
    Draft202012Validator.check_schema(schema)
    return [e.message for e in Draft202012Validator(schema).iter_errors(experiment)]


def test_the_schema_takes_every_experiment_of_the_project(schema: dict[str, Any]) -> None:
    assert {f.name: found for f in FILES if (found := faults(schema, yaml.safe_load(f.read_text())))} == {}
    assert set(schema["properties"]) == set(SECTIONS)


@pytest.mark.parametrize(
    "section",
    [
        {"methods": [{"chain": [{"gepa": {"auto": "light"}}, "sft"]}, {"gepa": {"metric_calls": 5, "usd": 1}}]},
        {
            "teacher": {"name": "openai/x", "api_key": "${KEY}"},
            "knowledge": ["gold", {"train": "none", "test": "noisy"}],
        },
        {"prices": {"label_usd": 1, "openai/x": {"input_per_million": 1, "output_per_million": 2}}},
        {"retrieval": [{"backend": "hybrid", "alpha": 0.5}, {"k": 1}], "train_sizes": [4], "racing": True},
        {"tasks": [{"name": "t", "program": "rag", "data": {}, "metric": {"judge": {"criteria": [{"tone": "Ok?"}]}}}]},
    ],
)
def test_the_schema_takes_the_forms_of_a_section(schema: dict[str, Any], section: dict[str, Any]) -> None:
    assert faults(schema, SOUND | section) == []


@pytest.mark.parametrize(
    "section",
    [
        {"metod": []},
        {"retrieval": {"alhpa": 1}},
        {"version": 2},
        {"methods": ["zero_shott"]},
        {"methods": [{"few_shot": {"demo": 3}}]},
        {"methods": [{"few_shot": {"demos": "two"}}]},
        {"methods": [{"few_shot": {"metric_calls": 3}}]},
        {"models": [{"name": "smollm2", "max_token": 3}]},
        {"prices": {"label_uds": 1}},
        {"knowledge": ["golden"]},
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(schema: dict[str, Any], section: dict[str, Any]) -> None:
    assert faults(schema, SOUND | section) != []


def test_sections_and_options_are_described_by_their_docstrings(schema: dict[str, Any]) -> None:
    parts = schema["$defs"]
    assert parts["Sft"]["properties"]["alpha"]["description"] == "LoRA's scale is alpha / rank."
    assert parts["Prices"]["properties"]["label_usd"]["description"].startswith("A labelled example")
    assert "metric_calls" in parts["Gepa"]["properties"]
