"""The environment is the one that was measured: pins hold, and what the project asks for is there."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_an_installed_package_has_the_version_that_is_pinned(pin):
    try:
        installed = Version(importlib.metadata.version(pin.name))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{pin.name} is not installed")
    assert pin.specifier.contains(installed.public), f"{pin.name} {installed} is installed, {pin} is pinned"


@pytest.mark.parametrize("asked", PROJECT["dependencies"])
def test_every_dependency_is_there_within_its_range(asked):
    requirement = Requirement(asked)
    assert requirement.specifier.contains(Version(importlib.metadata.version(requirement.name)).public)
