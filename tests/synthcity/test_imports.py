"""The synthetic city is a package of its own: what it imports from cosplace, and who imports it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"errors", "storage", "progress", "compiled", "geo", "photos.names"}  # modules of cosplace
USERS = ("cosplace/demo.py", "cosplace/cli/")


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from synthcity import render` imports a module.
            modules |= (
                {f"synthcity.{alias.name}" for alias in node.names}
                if node.module == "synthcity"
                else {str(node.module)}
            )
    return modules


@pytest.mark.parametrize("path", sorted(ROOT.glob("synthcity/*.py")), ids=lambda path: path.name)
def test_synthcity_imports_few_modules_of_cosplace(path: Path) -> None:
    found = {name for name in imported_modules(path) if name.split(".")[0] == "cosplace"}
    assert {name.removeprefix("cosplace.") for name in found} <= ALLOWED


def test_only_the_demo_and_the_command_line_import_synthcity() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("cosplace/**/*.py")
        if any(name.split(".")[0] == "synthcity" for name in imported_modules(path))
    ]
    assert users and all(user.startswith(USERS) for user in users)


def test_files_import_only_files_listed_above_them() -> None:
    import synthcity

    listed = [line.split()[0] for line in (synthcity.__doc__ or "").splitlines() if line.startswith("    ")]
    assert set(listed) == {path.stem for path in ROOT.glob("synthcity/*.py")} - {"__init__"}
    for number, name in enumerate(listed):
        found = {
            module for module in imported_modules(ROOT / f"synthcity/{name}.py") if module.startswith("synthcity.")
        }
        assert {module.removeprefix("synthcity.") for module in found} <= set(listed[:number]), name
