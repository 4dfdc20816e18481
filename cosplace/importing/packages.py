"""Packages that only some sources need; they are installed with an extra, as `pip install 'cosplace[import]'`."""

from importlib import import_module
from typing import Any

from cosplace.errors import DatasetError


def optional_module(name: str, purpose: str, extra: str = "import") -> Any:
    """The module, imported.  purpose: what needs it, as "Reading GPX".

    Raises DatasetError that says how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DatasetError(f"{purpose} needs {package}. Run `pip install 'cosplace[{extra}]'`.") from error
