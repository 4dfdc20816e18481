"""Datasets with a table photos.parquet, to join several into one.  Side effects: reads files."""

from collections.abc import Iterator
from pathlib import Path

from cosplace.config.importing import ImportSettings
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.photos.image_list import is_below
from cosplace.photos.tables import TABLE_NAME, from_table, read_blocks

ROWS_PER_BLOCK = 4096


def detects(path: Path) -> bool:
    """Whether a path is a folder with such a table."""
    return path.is_dir() and (path / TABLE_NAME).is_file()


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """The photos of the table, with all that it knows of them."""
    inside = (str(path.resolve()),)
    for block in read_blocks(path / TABLE_NAME, ROWS_PER_BLOCK):
        for record in from_table(block):
            file = path / record.path
            if is_below(str(file.resolve()), inside):
                yield FoundPhoto(file=file, record=record, use_exif=False)
            else:
                yield Problem(name=str(file), reason="is outside its dataset. Import the photos themselves.")
