"""Layers: a module imports only from layers below its own, and inside a folder only from files listed above it.

The order of the layers stands in the docstring of `cosplace`, the order of files in the docstring of each folder.
"""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import cosplace

PACKAGE = Path(cosplace.__file__).parent
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def listed(docstring: str | None) -> list[str]:
    """The names at the start of the lines `    name    what it does`, in order."""
    return re.findall(r"^ *(\w+) {2,}\S", docstring or "", re.MULTILINE)


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it, without the leading `cosplace.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                is_module = (
                    (PACKAGE.parent / f"{node.module}.{alias.name}".replace(".", "/")).with_suffix(".py").is_file()
                )
                found.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
    return {name.removeprefix("cosplace.") for name in found if name.startswith("cosplace.")}


def test_every_module_is_listed_in_the_package() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules | set(FOLDERS) == set(listed(cosplace.__doc__))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_listed_in_its_folder(folder: str) -> None:
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert files == set(listed(import_module(f"cosplace.{folder}").__doc__))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_below(path: Path) -> None:
    place = path.relative_to(PACKAGE).with_suffix("").parts
    if place in {("__init__",), ("__main__",)}:
        return
    layers = listed(cosplace.__doc__)
    below = layers[: layers.index(place[0])]
    files = listed(import_module(f"cosplace.{place[0]}").__doc__) if len(place) == 2 else []
    above_in_folder = files if place[-1] == "__init__" else files[: files.index(place[-1])] if files else []
    for module in imported_modules(path):
        layer, _, file = module.partition(".")
        if layer == place[0]:
            assert file in above_in_folder, f"imports {module}, which its folder does not list above it"
        else:
            assert layer in below, f"imports {module} from a layer that is not below"
