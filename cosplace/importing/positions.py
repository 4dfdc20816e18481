"""How tables and tracks give positions to photos.

A source of positions reads all its files into one Annotations object.  Its `annotate` receives every photo of the
import, after size, checksum, time and EXIF position have been read, and yields it again, with a position or without.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cosplace.importing.records import Entry, FoundPhoto


@dataclass(frozen=True, slots=True)
class PhotoStream:
    """The photos of an import, which may be many: iterating reads them one after the other."""

    photos: Iterable[FoundPhoto]
    list_files: Callable[[], Iterator[Path]]  # the files of all photos, without reading them

    def __iter__(self) -> Iterator[FoundPhoto]:
        return iter(self.photos)


class Annotations(Protocol):
    """Positions, headings or times from tables or tracks, for photos."""

    @property
    def needs_positions(self) -> bool:
        """Whether photos need other positions first: those of tables, to align a reconstruction with them."""
        return False

    def photos(self) -> Iterator[Entry]:
        """Photos that the source itself names, used if no folder of photos is imported; none for a track."""
        ...

    def annotate(self, photos: PhotoStream) -> Iterator[Entry]:
        """Every photo, with what is known of it, or a Problem in its place if it must be left out.

        Further problems, such as rows without photo, may follow at any place.  A photo whose position stays unknown is
        yielded as it is: it is listed later.  A track may need all times first (`list(photos)`); what need not wait
        should not.
        """
        ...


def is_known(value: float | str) -> bool:
    """Whether a value of a record is known: neither nan nor empty."""
    return value != "" if isinstance(value, str) else not math.isnan(value)


def has_position(photo: FoundPhoto) -> bool:
    """Whether latitude and longitude are known."""
    return is_known(photo.record.latitude) and is_known(photo.record.longitude)


def annotated(photo: FoundPhoto, **values: Any) -> FoundPhoto:
    """A photo with other values in its record; unknown values (nan, "") change nothing."""
    known = {name: value for name, value in values.items() if is_known(value)}
    return replace(photo, record=replace(photo.record, **known)) if known else photo
