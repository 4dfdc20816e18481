"""Render HTML pages from the templates in this folder.

Jinja2 escapes every value.  The only exception is the SVG of `charts`, which escapes its own texts.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cosplace import __version__
from cosplace.photos.paths import writable
from cosplace.report.words import format_count

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return a page as text.  template: the name of a file in the folder templates."""
    text = _environment().get_template(template).render(values, version=__version__)
    return writable(text)  # file names may contain bytes that are not UTF-8


def style_sheet() -> str:
    """Return the stylesheet of all pages, for a server that sends it as a file."""
    return (TEMPLATES / "style.css").read_text("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelled name is an error
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = format_count
    return environment
