"""Every dependency is pinned to one version that its range allows, and what is installed is what was pinned."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def pins() -> dict[str, Requirement]:
    """Return the requirements of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    named = {canonicalize_name(r.name): r for r in found}
    assert len(named) == len(found), "a name stands twice"
    return named


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    found = [Requirement(line) for line in (*project["dependencies"], *extras)]
    # An extra that names the project's other extras needs what they need.
    return [need for need in found if need.name != project["name"]]


def test_every_pin_is_one_version_from_the_registry() -> None:
    for name, pin in pins().items():
        (version,) = pin.specifier
        assert version.operator == "==", name
        assert "*" not in version.version, name
        assert pin.url is None, name


@pytest.mark.parametrize("needed", declared(), ids=str)
def test_a_dependency_is_pinned_within_its_range(needed: Requirement) -> None:
    name = canonicalize_name(needed.name)
    (version,) = pins()[name].specifier
    assert needed.specifier.contains(version.version, prereleases=True)


def test_what_the_pinned_packages_need_of_each_other_is_met() -> None:
    known, checked = pins(), 0
    for name in known:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(importlib.metadata.version(name)).public != next(iter(known[name].specifier)).version:
            continue
        for line in needs:
            need = Requirement(line)
            pin = known.get(canonicalize_name(need.name))
            if pin is not None and (need.marker is None or need.marker.evaluate({"extra": ""})):
                checked += 1
                assert need.specifier.contains(next(iter(pin.specifier)).version, prereleases=True), f"{name}: {line}"
    assert checked > 100


def installed(name: str) -> str:
    """Return the version that is installed, empty for none."""
    try:
        return Version(importlib.metadata.version(name)).public
    except importlib.metadata.PackageNotFoundError:
        return ""


def needed() -> set[str]:
    """Return the installed packages that the project needs, those that they need, and so on."""
    found, left = set[tuple[str, ...]](), declared()
    while left:
        need = left.pop()
        name = canonicalize_name(need.name)
        extras = ["", *need.extras]
        wanted = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        if wanted and (name, *sorted(need.extras)) not in found and installed(name):
            found.add((name, *sorted(need.extras)))
            for line in importlib.metadata.requires(name) or []:
                more = Requirement(line)
                if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in extras):
                    more.marker = None
                    left.append(more)
    return {name for name, *_ in found}


def test_what_is_installed_is_what_was_pinned() -> None:
    wrong = {n: (v, next(iter(p.specifier)).version) for n, p in pins().items() if (v := installed(n))}
    assert {n: pair for n, pair in wrong.items() if pair[0] != pair[1]} == {}


def test_nothing_runs_that_is_not_pinned() -> None:
    names = needed()
    assert len(names) > 100
    assert names <= pins().keys()
