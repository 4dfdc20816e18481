"""Render HTML pages from the templates in this folder.

Jinja2 escapes every value.  The exceptions are the JSON of `charts` and `query_data`, and the scripts, of which the
page's content security policy has the checksums: no other script can run.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cosplace import __version__
from cosplace.photos.paths import writable
from cosplace.progress import format_count

TEMPLATES = Path(__file__).parent / "templates"
UPLOT = Path(__file__).parent / "vendor" / "uplot"  # draws the charts


def render(template: str, **values: Any) -> str:
    """Return a page as text.  template: the name of a file in the folder templates."""
    text = _environment().get_template(template).render(values, version=__version__, chart_script=chart_script())
    return writable(text)  # file names may contain bytes that are not UTF-8


def style_sheet() -> str:
    """Return the stylesheet of all pages, for a server that sends it as a file."""
    return (UPLOT / "uPlot.min.css").read_text("utf-8") + (TEMPLATES / "style.css").read_text("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The script of a page."""

    text: Markup
    checksum: str  # as a content security policy has it


@cache
def script(*names: str) -> Script:
    """Our scripts of the folder templates, joined in this order."""
    return _script([TEMPLATES / name for name in names])


@cache
def chart_script() -> Script:
    """What draws the charts of a page."""
    return _script([UPLOT / "uPlot.iife.min.js", TEMPLATES / "charts.js"])


def _script(paths: Sequence[Path]) -> Script:
    text = "\n".join(path.read_text("utf-8").strip() for path in paths)
    text = f"\n{text}\n"
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(text=Markup(text), checksum=f"sha256-{digest}")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, UPLOT]),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelled name is an error
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = format_count
    environment.filters["setting"] = setting_text
    environment.filters["with_code"] = with_code
    return environment


def with_code(text: str) -> Markup:
    """A text whose parts between backticks are marked as code."""
    parts = text.split("`")
    pieces = [Markup("<code>{}</code>").format(part) if row % 2 else escape(part) for row, part in enumerate(parts)]
    return Markup("").join(pieces) if len(parts) % 2 else escape(text)


def setting_text(value: object) -> str:
    """The value of a setting for a page, as one gives it on the command line."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)
