"""The simulations behind docs/method.md, in a small version: what they promise holds in a few hundred draws."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def simulated() -> Any:
    sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("verdict_simulation")


@pytest.mark.parametrize("arms", [4, 12])
def test_equal_arms_are_seldom_called_different(simulated: Any, arms: int) -> None:
    assert simulated.false_difference(arms)(300) <= 0.05
