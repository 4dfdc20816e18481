"""Groups kept in a file and mapped into memory, so that all loading processes share the same pages.

<cache>/groups-<key>.bin     one line of JSON (version; type, shape and offset of each array; checksum), then the arrays

The checksum, of the header and the arrays, is compared once per run, not by each loading process.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cosplace.config.methods import EIGENPLACES, MethodSettings
from cosplace.config.sections import Grouping
from cosplace.errors import CheckpointError
from cosplace.photos.image_list import ImageList
from cosplace.photos.labels import with_headings
from cosplace.shapes import fits, is_count, is_finite, is_text, parse
from cosplace.storage import cache_folder, remove_unfinished, write_atomically
from cosplace.training.eigenplaces import WITHOUT_HEADINGS, check_grouping, partition_views
from cosplace.training.groups import Groups, partition
from cosplace.training.held_out import RULE, hold_out

FORMAT = "cosplace groups 3"  # 2: without a checksum; the name depends on it, so files of others are not opened
HEADER_BYTES = 4096
ALIGNMENT = 64
HEADER = {  # of a file
    **dict.fromkeys(("format", "checksum"), is_text),
    **dict.fromkeys(("bytes", "num_scanned", "num_unknown"), is_count),
    "arrays": lambda value: isinstance(value, dict) and fits(list(value.values()), [_is_array]),
    "views?": [is_text],
    "map_center?": [is_finite],
}
CHECKED_BYTES = 1 << 20  # read at once


def _is_array(value: Any) -> bool:
    """Whether this is the type, the shape and the first byte of an array."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    return is_text(value[0]) and fits(value[1], [is_count]) and is_count(value[2])


def cached_partition(images: ImageList, grouping: Grouping, folder: Path | None = None) -> Groups:
    """`partition`, kept in a file in `folder` (default: `cache_folder("groups")`) and mapped into memory.

    The name of the file is a digest of the list of photos and of the parameters, so a changed dataset never reads an
    old file.  Raises CheckpointError for a file that is truncated, damaged or not a cache of groups.
    """
    # groups_num only selects among the groups.
    parameters = [grouping.M, grouping.alpha, grouping.N, grouping.L, grouping.min_images_per_class]
    return _cached(images, parameters, folder, lambda: partition(images, grouping))


def cached_views(images: ImageList, grouping: Grouping, method: MethodSettings, folder: Path | None = None) -> Groups:
    """`partition_views`, kept in a file like `cached_partition`."""
    check_grouping(grouping)
    images = with_headings(images, WITHOUT_HEADINGS)
    parameters = [
        EIGENPLACES, grouping.M, grouping.N, grouping.min_images_per_class,
        method.focal_distance, method.max_view_error, method.heading_offset, method.panoramas,
    ]  # fmt: skip
    return _cached(images, parameters, folder, lambda: partition_views(images, grouping, method))


def cached_groups(
    images: ImageList, parameters: Sequence[Any], form: Callable[[], Groups], folder: Path | None = None
) -> Groups:
    """The groups that `form` returns, kept in a file like `cached_partition`.  parameters: what they depend on."""
    return _cached(images, parameters, folder, form)


def cached_without(groups: Groups, images: ImageList, num_used: int, number: int, least: int) -> Groups:
    """Like `hold_out`, but kept in a file next to that of `groups`, which must come from a file as well."""
    assert groups.opened_from is not None
    whole: Path = groups.opened_from[1][0]
    path = whole.with_name(f"{whole.stem}-{num_used}-held-out-{RULE}-{number}.bin")
    return _from_file(path, images, lambda: hold_out(groups, num_used, number, least))


def _cached(images: ImageList, parameters: Sequence[Any], folder: Path | None, form: Callable[[], Groups]) -> Groups:
    path = (folder or cache_folder("groups")) / f"groups-{_key(images, parameters)}.bin"
    return _from_file(path, images, form)


def _from_file(path: Path, images: ImageList, form: Callable[[], Groups]) -> Groups:
    if not path.exists():
        groups = form()
        remove_unfinished(path.parent)
        write_atomically(path, lambda file: _write_groups(file, groups, images))
    else:
        _check(path)
    return open_groups(path, images.list_file, images.folder, images.inside)


def _key(images: ImageList, parameters: Sequence[Any]) -> str:
    digest = hashlib.blake2b(json.dumps([FORMAT, images.list_file is None, *parameters]).encode(), digest_size=16)
    for first in range(0, len(images.names), 1 << 24):
        digest.update(images.text(first, min(first + (1 << 24), len(images.names))).data)
    if images.labels is not None:
        digest.update(json.dumps(images.map_center).encode())
        digest.update(np.ascontiguousarray(images.labels.names).data)
    return digest.hexdigest()


def _write_groups(file: BinaryIO, groups: Groups, images: ImageList) -> None:
    arrays = {name: getattr(groups, name) for name in ("cells", "group_starts", "class_starts", "image_starts")}
    if groups.zones is not None:
        arrays["zones"] = groups.zones
    if groups.labels is not None and groups.label_starts is not None:
        arrays |= {"labels": groups.labels, "label_starts": groups.label_starts}
    if groups.offsets is not None:
        arrays["offsets"] = groups.offsets
    if images.list_file is None:  # else the list file holds the names
        arrays["names"] = groups.names
    places, at = {}, HEADER_BYTES
    for name, array in arrays.items():
        places[name] = [str(array.dtype), list(array.shape), at]
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    facts: dict[str, Any] = {"num_scanned": groups.num_scanned, "num_unknown": groups.num_unknown}
    if groups.map_center is not None:
        facts["map_center"] = groups.map_center
    if groups.offsets is not None:
        facts |= {"views": groups.views, "panoramas": groups.panoramas}
    header = {"format": FORMAT, **facts, "bytes": at, "arrays": places}
    blocks = []
    for array in arrays.values():
        blocks += [
            np.ascontiguousarray(array).data.cast("B") if array.size else b"",
            b"\0" * (-array.nbytes % ALIGNMENT),
        ]
    header["checksum"] = _checksum(header, blocks)
    file.write(json.dumps(header).encode().ljust(HEADER_BYTES - 1) + b"\n")
    file.writelines(blocks)


def _checksum(header: dict[str, Any], blocks: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    """What a file of groups says about itself.  Raises ValueError if it is something else, or has another size."""
    if not path.is_file():  # a pipe may never end
        raise ValueError(path)
    with path.open("rb") as file:
        header = parse(file.read(HEADER_BYTES), HEADER, max_length=HEADER_BYTES)
        if header["format"] != FORMAT or header["bytes"] != os.fstat(file.fileno()).st_size:
            raise ValueError(header)
    return header


def _check(path: Path) -> None:
    """Compare a file of groups with its checksum.  Raises CheckpointError."""
    try:
        header = _read_header(path)
        checksum = header.pop("checksum")
        with path.open("rb") as file:
            file.seek(HEADER_BYTES)
            if checksum != _checksum(header, iter(lambda: file.read(CHECKED_BYTES), b"")):
                raise ValueError(checksum)
    except (ValueError, OSError) as error:
        raise _refused(path) from error


def _check_starts(starts: np.ndarray, end: int) -> None:
    """Raise ValueError unless these are the starts (n + 1,) of n parts in order, and the end of the last."""
    is_sound = starts.ndim == 1 and starts.dtype.kind == "i" and len(starts) and starts[0] == 0 and starts[-1] == end
    if not is_sound or (np.diff(starts) < 0).any():
        raise ValueError(starts)


def _refused(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated, damaged or not a cache of groups. Delete it and run the command again."
    )


def open_groups(path: Path, list_file: Path | None, folder: Path, inside: tuple[str, ...] = ()) -> Groups:
    """Map a file of groups into memory.  list_file, folder, inside: of the list of photos.

    Raises CheckpointError if the file is truncated or not a cache of groups.
    """
    try:
        header = _read_header(path)
        block = np.memmap(path, np.uint8, mode="r")
        arrays = {
            name: block[at : at + int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)
            for name, (kind, shape, at) in header["arrays"].items()
        }
        if list_file is not None:
            arrays["names"] = np.memmap(list_file, np.uint8, mode="r")
        fields = {name: np.asarray(array) for name, array in arrays.items()}
        _check_starts(fields["class_starts"], len(fields["image_starts"]))
        _check_starts(fields["group_starts"], len(fields["class_starts"]) - 1)
        return Groups(
            **fields,
            folder=folder,
            num_scanned=header["num_scanned"],
            num_unknown=header["num_unknown"],
            inside=inside,
            views=tuple(header.get("views", ("",))),
            panoramas=bool(header.get("panoramas")),
            map_center=tuple(header["map_center"]) if "map_center" in header else None,
            opened_from=(open_groups, (path, list_file, folder, inside)),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _refused(path) from error
