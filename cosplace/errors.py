"""Errors that a user can act on.

Each is a CosPlaceError with a one-line message: what is wrong, the value, what to do next.  The command line prints
that line and exits with code 2, or the error's `exit_code`; any other exception is a bug and keeps its traceback.
"""

import re
import unicodedata
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager


def one_line(text: str) -> str:
    r"""A text in one line that any terminal and file accepts: \n for a line break, \xe9 for a non-UTF-8 byte."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or unicodedata.category(character) == "Zs" else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class CosPlaceError(Exception):
    """Base class of all errors that a user can act on.  File names in the message may contain any character.

    remedies: advice that depends on the flags of the running command, such as "use a smaller --batch_size".  Those in
    lower case are alternatives; others are sentences that follow.  See `advise_only`.
    """

    exit_code = 2  # of the command line

    def __init__(self, message: object = "", *remedies: str) -> None:
        super().__init__(one_line(str(message)), *map(one_line, remedies))

    def __str__(self) -> str:
        message, *remedies = self.args
        if _command_flags is not None:
            remedies = [text for text in remedies if _command_flags.issuperset(_flags_in(text))]
        options = [text for text in remedies if text[0].islower()]
        sentences = [text for text in remedies if text not in options]
        return " ".join([message, *_one_of(options), *sentences])


_command_flags: frozenset[str] | None = None  # None: all advice is given, as from Python


@contextmanager
def advise_only(flags: Iterable[str]) -> Generator[None]:
    """Within: errors recommend only these flags, those of the running command.  flags: names without dashes."""
    global _command_flags  # noqa: PLW0603 - a process runs one command
    before, _command_flags = _command_flags, frozenset(flags)
    try:
        yield
    finally:
        _command_flags = before


def _flags_in(text: str) -> list[str]:
    """Flags that a text mentions, without those of commands written out, as `cosplace index build --to INDEX`."""
    return re.findall(r"(?<![\w-])--(\w+)", re.sub(r"`cosplace [^`]*`", "", text))


def _one_of(options: list[str]) -> list[str]:
    """The sentence "A, b or c." from ["a", "b", "c"], in a list; an empty list without options."""
    if not options:
        return []
    text = ", or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
    return [f"{text[:1].upper()}{text[1:]}."]


class ConfigError(CosPlaceError):
    """A flag or an argument has an invalid value, or contradicts another one."""


class DatasetError(CosPlaceError):
    """A folder of photos is missing, empty or too small, or its photos have other names than expected."""


class NoPositionsError(DatasetError):
    """No photo of a folder has a position."""


class ImageError(CosPlaceError):
    """A photo cannot be read: truncated, empty, too large or not an image."""


def none_readable(errors: Sequence[str]) -> ImageError:
    """The error of a command that can read none of its photos, from the error of each."""
    if len(errors) == 1:
        return ImageError(errors[0])
    return ImageError(f"None of the {len(errors):,} photos can be read. The first: {errors[0]}")


class PhotoFormatError(ImageError):
    """A file is not an image of a supported format."""


class PhotoSizeError(ImageError):
    """An image has more pixels than allowed; it was not decoded."""


class InputSizeError(ImageError):
    """A photo is too small for a network."""


class UnknownLocationError(CosPlaceError):
    """Photos have no answer, and --fail_unknown says that this is a failure."""

    exit_code = 3


class CheckpointError(CosPlaceError):
    """A weights file, a checkpoint or a cache is truncated, of another program or of another architecture."""


class ExportError(CosPlaceError):
    """A model cannot be exported, or the result differs too much from it; no file was written."""


class DownloadError(CosPlaceError):
    """Weights could not be downloaded."""


class DeviceError(CosPlaceError):
    """A device is not available, or has too little memory."""


class LoadingError(DeviceError):
    """A process that loads photos was killed, or has no shared memory left."""


class StorageError(CosPlaceError):
    """A result could not be written: the disk is full or read-only, or permission is missing."""


class PhotoIndexError(CosPlaceError):
    """A photo index is missing, damaged, in use by another writer, or built with another model."""


class MissingIndexError(PhotoIndexError):
    """An index, or a file of it, is missing."""


class DamagedIndexError(PhotoIndexError):
    """A file of an index has changed since it was written."""


class ReplacedIndexError(PhotoIndexError):
    """Another index is now at the address of the one that is open."""


class IndexInUseError(PhotoIndexError):
    """Another process writes to the index."""
