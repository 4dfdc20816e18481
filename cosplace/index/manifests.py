"""What the manifest of a version of a table says: Lance would read files and search indexes from anywhere it names.

The file of a manifest ends with the position of a message (a length of four bytes, then a protocol buffer), two
versions, and "LANC".  The message names the position of another one, of search indexes.  Pure functions.
"""

import re
import struct
from collections.abc import Iterator

from cosplace.errors import CosPlaceError

END = struct.Struct("<QHH4s")  # position of the message; versions; magic
LENGTH = struct.Struct("<I")
MAGIC = b"LANC"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields
MAX_VARINT_BYTES = 10
COLUMNS, FRAGMENTS, METADATA, SEARCH_INDEXES, LAST_FRAGMENT, BASE_PATHS = 1, 2, 5, 6, 11, 18  # fields of a manifest
MAX_FRAGMENT = 1 << 31  # the next numbers of fragments have to fit in 32 bits
FILES_OF_FRAGMENT, OVERLAYS_OF_FRAGMENT, PATH_OF_FILE = 2, 11, 1
FILE_NAME = re.compile(r"[0-9A-Za-z_-]+\.lance")  # of data files; in others, some characters differ on the disk
MIN_FRAGMENT_BYTES = 64  # fragments have the name of a file each
MAX_FIELDS = 200  # of a column, a fragment, or a search index
NAME_OF_COLUMN, ID_OF_COLUMN = 2, 3  # fields of a column
INDEX, COLUMNS_OF_INDEX, NAME_OF_INDEX = 1, 2, 3  # fields of the search indexes, and of one
MAX_COLUMNS = 100
VECTOR_INDEX = "descriptor_idx"  # the one search index of an index, of the column INDEXED
INDEXED = "descriptor"
Field = tuple[int, int | bytes]  # its number and value


class ManifestError(CosPlaceError):
    """A manifest cannot be read, or says what no writer says."""


def check_manifest(raw: bytes) -> None:
    """Raise ManifestError for a manifest that no writer makes.  raw: content of the file."""
    fields: list[Field] = []
    data_files: list[str] = []
    for field in fields_of(_message(raw, _position(raw)), MAX_FIELDS + len(raw) // MIN_FRAGMENT_BYTES):
        if field[0] == FRAGMENTS:
            data_files += _data_files(_bytes(field[1]))
        else:
            fields.append(field)
    if len(set(data_files)) < len(data_files):  # its rows would count several times
        raise ManifestError("has the same data file twice")
    for field in fields:
        if problem := _problem(*field):
            raise ManifestError(problem)
    columns = [_bytes(value) for number, value in fields if number == COLUMNS]
    if len(columns) > MAX_COLUMNS:
        raise ManifestError(f"has {len(columns):,} columns, more than any writer makes")
    columns = [dict(fields_of(column)) for column in columns]
    indexed = [column.get(ID_OF_COLUMN, 0) for column in columns if column.get(NAME_OF_COLUMN) == INDEXED.encode()]
    positions = [value for number, value in fields if number == SEARCH_INDEXES]
    if len(positions) > 1:
        raise ManifestError("has more lists of search indexes than any writer makes")
    for position in positions:
        if not isinstance(position, int):
            raise ManifestError("cannot be read (position)")
        for number, value in fields_of(_message(raw, position)):
            if number == INDEX and not _is_ours(_bytes(value), indexed):
                raise ManifestError("has a search index that no writer makes")


def _problem(number: int, value: int | bytes) -> str:
    """What is wrong with a field that no writer stores; "" for others."""
    if number == BASE_PATHS:
        return "names files outside of the index, which no writer does"
    if number == METADATA:  # LanceDB makes the embedding models that these name
        return "has metadata, which no writer adds"
    if number == LAST_FRAGMENT and not (isinstance(value, int) and value < MAX_FRAGMENT):
        return "numbers its fragments as no writer does"
    return ""


def _data_files(fragment: bytes) -> Iterator[str]:
    """The names of the data files of a fragment.  Raises ManifestError for names that no writer gives."""
    for number, value in fields_of(fragment):
        if number == OVERLAYS_OF_FRAGMENT:
            raise ManifestError("has files that replace rows of others, which no writer makes")
        if number == FILES_OF_FRAGMENT:
            for part, path in fields_of(_bytes(value)):
                if part == PATH_OF_FILE:
                    name = _bytes(path).decode("ascii", "replace")
                    if not FILE_NAME.fullmatch(name):
                        raise ManifestError("has a data file with a name that no writer gives")
                    yield name


def _is_ours(index: bytes, indexed: list[int | bytes]) -> bool:
    """Whether a search index has the name and the column of ours."""
    fields = list(fields_of(index))
    names = [value for number, value in fields if number == NAME_OF_INDEX]
    columns: list[int | bytes] = []
    for value in (value for number, value in fields if number == COLUMNS_OF_INDEX):
        columns += _varints(value) if isinstance(value, bytes) else [value]
    return names == [VECTOR_INDEX.encode()] and len(columns) == 1 and columns == indexed


def _position(raw: bytes) -> int:
    if len(raw) < END.size or not raw.endswith(MAGIC):
        raise ManifestError("cannot be read (no manifest)")
    return int(END.unpack(raw[-END.size :])[0])


def _message(raw: bytes, position: int) -> bytes:
    """The message at a position, behind its length."""
    start = position + LENGTH.size
    length = LENGTH.unpack(raw[position:start])[0] if start <= len(raw) else 0
    if start + length > len(raw):
        raise ManifestError("cannot be read (length)")
    return raw[start : start + length]


# --- protocol buffers ------------------------------------------------------------------------------------------------


def fields_of(message: bytes, most: int = MAX_FIELDS) -> Iterator[Field]:
    """The fields of a protocol buffer, at most so many.  Raises ManifestError.

    >>> list(fields_of(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x41, 0x42])))
    [(1, 150), (2, b'AB')]
    """
    at = count = 0
    while at < len(message):
        if (count := count + 1) > most:
            raise ManifestError("has more fields than any writer makes")
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        length, at = _varint(message, at) if kind == BYTES else ({FIXED64: 8, FIXED32: 4}.get(kind, -1), at)
        if length < 0 or at + length > len(message):
            raise ManifestError("cannot be read (field)")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, least first, and the position behind it."""
    value = 0
    for shift in range(MAX_VARINT_BYTES):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 0x7F) << 7 * shift, at + 1
        if byte < 0x80:
            return value, at
    raise ManifestError("cannot be read (number)")


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ManifestError("cannot be read (kind of field)")
    return value
