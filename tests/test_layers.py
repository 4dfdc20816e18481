"""The street of modules: a module imports only modules above it on the list in the package's docstring."""

import ast
import re
from pathlib import Path

import cosplace

PACKAGE = Path(cosplace.__file__).parent
ENTRANCES = {"__init__", "__main__"}


def street() -> list[str]:
    listing = (cosplace.__doc__ or "").split("\n\n")[1:]
    rows = [row for block in listing for row in block.splitlines()]
    return [match[1] for row in rows if (match := re.match(r" {4}(?:\w+ +| {11})(\w+)  +\S", row))]


def module_of(path: Path) -> str:
    """The word on the list that a file belongs to: its own name, or its folder's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [node.module or ""]
            if node.module == "cosplace":
                names = [f"cosplace.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("cosplace.")}
    return found - {"__version__"}


def test_every_module_is_on_the_street() -> None:
    files = {module_of(path) for path in PACKAGE.rglob("*.py")} - ENTRANCES
    assert files == set(street())


def test_imports_only_go_up_the_street() -> None:
    order = street()
    for path in PACKAGE.rglob("*.py"):
        module = module_of(path)
        if module in ENTRANCES:
            continue
        above = set(order[: order.index(module)]) | {module}
        assert imported_modules(path) <= above, f"{path.name} imports {imported_modules(path) - above} from below"
