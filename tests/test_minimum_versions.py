"""The minimum versions in pyproject.toml are the ones that `make minimum` tests."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Format, lint and types are checked with current versions only; Ray and OpenVINO are not in the extra dev.
NOT_IN_TESTS = {"ruff", "ty", "ray", "lance-ray", "pylance", "openvino"}


def test_each_declared_minimum_is_the_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [requirement for group in groups for requirement in group]
    matches = [re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement) for requirement in requirements]
    declared = {match[1]: match[2] for match in matches if match}
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-minimum.txt").read_text(), re.MULTILINE))
    assert set(pins) == set(declared) - NOT_IN_TESTS
    for name, version in pins.items():
        assert re.fullmatch(rf"{re.escape(declared[name])}(\.0)*", version), f"{name}: {declared[name]}, not {version}"
