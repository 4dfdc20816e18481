"""cosplace locate --write xmp: the list of changes, the confirmation, and the sidecars."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cosplace.cli.console import print_result
from cosplace.config.locate import SidecarSettings
from cosplace.errors import ConfigError, ImageError, StorageError
from cosplace.photos.paths import path_from_text, printable
from cosplace.progress import format_count
from cosplace.storage import storage_errors, write_atomically

if TYPE_CHECKING:
    from cosplace.localization.answers import Answer

CHANGED = "its sidecar has changed since the list was made"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be done with one sidecar."""

    photo: Path
    path: Path  # of the sidecar
    old: bytes | None  # its content; None: it does not exist
    new: bytes | None  # None: it is deleted
    text: str


def write_sidecars(answers: "Sequence[Answer]", settings: SidecarSettings) -> None:
    """Store answers in sidecars, after the list of changes and a confirmation.

    Raises ConfigError if nobody can be asked, StorageError if a sidecar cannot be written.
    """
    photos = [path_from_text(answer.photo) for answer in answers]
    by_photo = dict(zip(photos, answers, strict=True))  # a photo that was passed twice has one answer
    _run(list(by_photo), lambda photo: _addition(photo, by_photo[photo]), "write", settings)


def undo_sidecars(photos: Sequence[Path], left: Sequence[Path], settings: SidecarSettings) -> None:
    """Remove the positions that `write_sidecars` has stored, after the list of changes and a confirmation.

    left: sidecars whose photos are gone, see `left_sidecars`.
    """
    from cosplace.photos.sidecars import sidecar_path

    path_of = {photo: sidecar_path(photo) for photo in photos} | {path: path for path in left}
    _run(list(path_of), lambda photo: _removal(photo, path_of[photo]), "restore", settings)


def left_sidecars(folder: Path, photos: Sequence[Path]) -> list[Path]:
    """Sidecars below a folder with a stored position, but of none of these photos, nor of another file next to them."""
    from cosplace.photos.sidecars import ESTIMATE_NAMESPACE, SUFFIX, sidecar_path

    known, listed, found = {sidecar_path(photo) for photo in photos}, set(photos), []
    others = (path for path in folder.rglob("*") if path.suffix != SUFFIX and path not in listed)
    taken = {(path.parent, name) for path in others for name in (path.name, path.stem)}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        if path in known or path.is_symlink() or not path.is_file() or (path.parent, path.stem) in taken:
            continue
        with suppress(ImageError, OSError):  # it stays as it is
            if ESTIMATE_NAMESPACE.encode() in (_read(path) or b""):
                found.append(path)
    return found


def _addition(photo: Path, answer: "Answer") -> Change:
    from cosplace.localization.answers import Unreadable
    from cosplace.photos.metadata import metadata_from_exif
    from cosplace.photos.opening import read_file
    from cosplace.photos.sidecars import EstimatedPosition, SidecarError, add_position, sidecar_path

    if isinstance(answer, Unreadable):
        raise SidecarError("the photo cannot be read")
    if answer.latitude is None or answer.longitude is None:
        raise SidecarError("unknown")
    if not answer.calibrated:
        raise SidecarError("the index is not calibrated")
    if metadata_from_exif(read_file(photo)).has_position:
        raise SidecarError("the photo has a position")
    path = sidecar_path(photo)
    old = _read(path)
    position = EstimatedPosition(
        latitude=answer.latitude,
        longitude=answer.longitude,
        radius_m=answer.radius_m,
        confidence=answer.confidence,
        verdict=answer.verdict,
    )
    where = f"{answer.latitude:.6f}, {answer.longitude:.6f}  {answer.headline}"
    action = f"new {path.name}" if old is None else f"add to {path.name}"
    return Change(photo=photo, path=path, old=old, new=add_position(old, position), text=f"{action}: {where}")


def _removal(photo: Path, path: Path) -> Change:
    from cosplace.photos.sidecars import SidecarError, remove_position

    old = _read(path)
    if old is None:
        raise SidecarError("it has no sidecar")
    new = remove_position(old)
    text = f"delete {path.name}" if new is None else f"remove the position from {path.name}"
    return Change(photo=photo, path=path, old=old, new=new, text=text)


def _read(path: Path) -> bytes | None:
    from cosplace.photos.opening import read_file

    return read_file(path) if os.path.lexists(path) else None


# --- list, confirmation, writing -------------------------------------------------------------------------------------


def _run(photos: Sequence[Path], plan: Callable[[Path], Change], verb: str, settings: SidecarSettings) -> None:
    changes: list[Change] = []
    print_result("\nSidecars:")
    for photo in photos:
        try:
            change = plan(photo)
        except ImageError as error:
            print_result(f"  {printable(str(photo))}\n    skipped: {error}")
        else:
            changes.append(change)
            print_result(f"  {printable(str(photo))}\n    {printable(change.text)}")
    what = format_count(len(changes), "sidecar")
    if not changes or settings.dry_run:
        print_result(f"Nothing was written. {what} to {verb}.")
        return
    if not settings.yes and not _is_confirmed(f"{verb.capitalize()} {what}? [y/N] "):
        print_result("Nothing was written.")
        return
    written = 0
    for change in changes:
        if not _is_unchanged(change):
            print_result(f"  {printable(str(change.photo))}\n    skipped: {CHANGED}")
            continue
        _apply(change)
        written += 1
    again = " To remove the positions again, repeat the command with --undo." if verb == "write" else ""
    done = "written" if verb == "write" else "restored"
    print_result(f"{format_count(written, 'sidecar')} {done}.{again}")


def _is_unchanged(change: Change) -> bool:
    try:
        return _read(change.path) == change.old
    except ImageError:
        return False


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("Nothing was written, because without a terminal nobody can confirm. Add --yes or --dry_run.")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _apply(change: Change) -> None:
    path = change.path.resolve()  # a link stays a link
    if change.new is None:
        with storage_errors(path):
            path.unlink()
        return
    new, mode = change.new, None
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode & 0o777

    def write(file: BinaryIO) -> None:
        if mode is not None and hasattr(os, "fchmod"):
            with suppress(OSError):  # file systems without permissions
                os.fchmod(file.fileno(), mode)
        file.write(new)

    try:
        write_atomically(path, write)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"Cannot write {path} ({error.strerror}). Sidecars listed before it are written.") from error
