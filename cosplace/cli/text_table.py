"""Tables in plain text."""

from collections.abc import Collection, Sequence


def text_table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> list[str]:
    """Lines with aligned columns; the first row is the heading.  numbers: columns that are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, numbers)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], numbers: Collection[int]) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.rjust(width) if column in numbers else cell.ljust(width) for column, (cell, width) in cells]
