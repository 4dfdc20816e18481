"""The minimum versions in pyproject.toml are the ones that `make minimum` tests."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_TESTS = {"ruff", "ty"}  # format, lint and types are checked with current versions only


def test_each_declared_minimum_is_the_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [requirement for group in groups for requirement in group]
    declared = dict(requirement.split(">=") for requirement in requirements if ">=" in requirement)
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-minimum.txt").read_text(), re.MULTILINE))
    assert set(pins) == set(declared) - NOT_IN_TESTS
    for name, version in pins.items():
        assert re.fullmatch(rf"{re.escape(declared[name])}(\.0)*", version), f"{name}: {declared[name]}, not {version}"
