"""Makes a list of the arguments that a docstring explains (`name: what it is`), for the page of the Python API."""

import re
from collections.abc import Iterable
from typing import Any

import griffe


class DocstringLists(griffe.Extension):
    """Rewrites the docstrings of functions and classes before they become Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None and isinstance(obj, griffe.Function | griffe.Class):
            obj.docstring.value = with_list(obj.docstring.value, [one.name for one in obj.parameters])


def with_list(text: str, names: Iterable[str]) -> str:
    """Return a docstring in which each sentence `name: ...` is an item of a list."""
    either = "|".join(map(re.escape, names))
    if not either:
        return text
    begin = re.compile(rf"(?:^|(?<=[.)] ))((?:{either})(?:, (?:{either}))*): ")
    return "\n\n".join(_paragraph(paragraph, begin) for paragraph in re.split(r"\n\s*\n", text))


def _paragraph(text: str, begin: re.Pattern[str]) -> str:
    flat = " ".join(text.split())
    starts = [match.start() for match in begin.finditer(flat)]
    if not starts:
        return text
    items = [flat[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    before = [flat[: starts[0]].strip()] if starts[0] else []
    return "\n\n".join([*before, "\n".join("- " + begin.sub(r"`\1`: ", item) for item in items)])
