"""cosplace locate: where photos were taken."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cosplace.cli.console import Bars, print_result
from cosplace.cli.sidecars import left_sidecars, undo_sidecars, write_sidecars
from cosplace.config.defaults import MAX_SPEED_MPS
from cosplace.config.locate import FilterSettings, LocateConfig, OutputSettings
from cosplace.errors import ConfigError, DatasetError, ImageError, UnknownLocationError, none_readable

if TYPE_CHECKING:
    import numpy as np

    from cosplace.index.filters import SearchFilter
    from cosplace.localization.answers import Answer, Location
    from cosplace.localization.localizer import Localizer
    from cosplace.photos.metadata import PhotoMetadata

VIDEO_FPS = 1.0  # frames of a video to use per second
MAX_TEXT_MATCHES = 3  # matches of an answer in text

T = TypeVar("T")
Row = tuple["Answer", dict[str, Any] | None]
"""An answer, and how it compares with the EXIF position of the photo."""


def run_locate(config: LocateConfig) -> None:
    """Locate photos, and print the answers."""
    if config.sidecars.undo:
        _undo(config)
        return
    paths = _find_photos(
        config.photos,
        is_sequence=config.sequence.sequence,
        is_writing=config.sidecars.write is not None,
        follow_outside=config.follow_outside,
    )
    is_list = len(config.photos) > 1 or _is_list(config.photos[0]) or config.sequence.sequence
    where = _search_filter(config.filter)
    if config.rerank:
        from cosplace.localization.local_features import require_opencv

        require_opencv()

    from cosplace.localization.answers import Unreadable
    from cosplace.localization.localizer import Localizer

    localizer = Localizer(
        config.index,
        device=config.device.device,
        min_confidence=config.confidence.min_confidence,
        precision=config.confidence.precision,
        k=config.neighbors,
        uncalibrated=config.confidence.uncalibrated,
        trust_remote_code=config.device.trust_remote_code,
        exact=config.exact,
        model=config.model,
        roots=config.root,
        engine=config.engine,
    )
    if config.sequence.sequence:
        rows: list[Row] = [(answer, None) for answer in _locate_sequence(localizer, paths, where, config)]
        if config.output.is_text:
            _print_text(rows, num_matches=0)
    else:
        rows = []
        bars = Bars()
        for row in _locate_photos(localizer, paths, where, rerank=config.rerank):
            rows.append(row)
            if config.output.is_text:
                if not (len(paths) == 1 and isinstance(row[0], Unreadable)):  # its error is printed at the end
                    _print_text([row])
            elif len(paths) > 1:
                bars("locating photos", len(rows), len(paths))
    _print_table(rows, config.output, is_list=is_list)
    unreadable = [answer for answer, _ in rows if isinstance(answer, Unreadable)]
    if len(unreadable) == len(rows):
        raise none_readable([answer.error for answer in unreadable])
    if config.sidecars.write is not None:
        write_sidecars([answer for answer, _ in rows], config.sidecars)
    num_unknown = sum(isinstance(answer, Unreadable) or answer.unknown for answer, _ in rows)
    if config.fail_unknown and num_unknown:
        raise UnknownLocationError(
            f"{num_unknown} of {len(rows)} photos have no answer, because they cannot be read or the confidence is "
            "below the threshold. Omit --fail_unknown to accept this."
        )


def _undo(config: LocateConfig) -> None:
    """Remove the positions in sidecars of photos, and in those of folders whose photos are gone."""
    paths: list[Path] = []
    for path in config.photos:
        try:
            paths += _find_photos(
                [path],
                is_sequence=config.sequence.sequence and path.exists(),  # a frame that is gone may have a sidecar
                is_writing=True,
                follow_outside=config.follow_outside,
            )
        except DatasetError:  # a folder without photos
            if not (path.is_dir() and left_sidecars(path, ())):
                raise
    left = [sidecar for path in config.photos if path.is_dir() for sidecar in left_sidecars(path, paths)]
    undo_sidecars(paths, left, config.sidecars)


def _find_photos(photos: Sequence[Path], *, is_sequence: bool, is_writing: bool, follow_outside: bool) -> list[Path]:
    """Return all photos, with those of folders.  Raises ConfigError or DatasetError when there is nothing to locate."""
    from cosplace.localization.tracks import is_video
    from cosplace.photos.scanning import scan_images

    paths: list[Path] = []
    for path in photos:
        if path.parts and path.parts[0].lower() in {"http:", "https:"} and not path.exists():
            raise ConfigError(
                f"{path.parts[0]}//{'/'.join(path.parts[1:])} is a web address. Download the photo first."
            )
        if _is_list(path):
            images = scan_images(path, follow_outside=follow_outside)
            paths += [images.path(row) for row in range(len(images))]
        else:
            paths.append(path)
    videos = [path for path in paths if is_video(path)]
    if videos and not (is_sequence and len(paths) == 1):
        raise ConfigError(f"{videos[0]} is a video. Pass it alone, with --sequence.")
    if videos and is_writing:
        raise ConfigError(f"{videos[0]} is a video, whose frames have no sidecars. Omit --write.")
    if is_sequence and not any(path.is_file() for path in paths):
        raise DatasetError(f"{paths[0]} does not exist. Use a folder of frames, frames, or a video.")
    return paths


def _is_list(path: Path) -> bool:
    """Whether a path is a folder, a table of photos, or a part of a table."""
    from cosplace.photos.scanning import is_dataset_part

    return is_dataset_part(path)


def _search_filter(settings: FilterSettings) -> "SearchFilter | None":
    if all(value is None for value in (settings.near, settings.bbox, settings.after, settings.before)):
        return None
    from cosplace.index.filters import SearchFilter, parse_bbox, parse_near

    if settings.after is not None and settings.before is not None and settings.after >= settings.before:
        raise ConfigError("--after must be earlier than --before.")
    try:
        return SearchFilter(
            near=None if settings.near is None else parse_near(settings.near),
            bbox=None if settings.bbox is None else parse_bbox(settings.bbox),
            after=settings.after,
            # A filter includes its end, and times have fractions.
            before=None if settings.before is None else math.nextafter(settings.before, -math.inf),
        )
    except ConfigError as error:
        raise ConfigError(f"--{error}") from error  # its message starts with the name of the setting


# --- photos ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedPhoto:
    """A photo whose file was read and decoded once."""

    name: str
    pixels: "np.ndarray | None"  # (H, W, 3) uint8; None if it cannot be read
    exif: "PhotoMetadata"
    error: str = ""


def open_photo(path: Path, image_size: int | None) -> OpenedPhoto:
    """Read and decode a photo, and read its EXIF position.

    image_size: pixels of the shorter side after resizing, for the error of a photo that is too long and narrow.
    """
    from cosplace.photos.metadata import PhotoMetadata, metadata_from_exif
    from cosplace.photos.opening import decode_pixels, read_file
    from cosplace.photos.paths import path_text
    from cosplace.photos.resizing import resized_shape

    name = path_text(path)
    try:
        raw = read_file(path)
        pixels = decode_pixels(raw, path)
        if image_size is not None:
            resized_shape(*pixels.shape[:2], image_size, path)
        return OpenedPhoto(name=name, pixels=pixels, exif=metadata_from_exif(raw))
    except ImageError as error:
        return OpenedPhoto(name=name, pixels=None, exif=PhotoMetadata(), error=str(error))


def _locate_photos(
    localizer: "Localizer", paths: list[Path], where: "SearchFilter | None", *, rerank: bool
) -> Iterator[Row]:
    from cosplace.localization.answers import Location, Unreadable
    from cosplace.localization.exif_positions import compare_with_exif
    from cosplace.localization.localizer import BATCH_SIZE

    encoder = localizer.encoder
    for batch in _batches(paths, BATCH_SIZE):
        photos = [open_photo(path, encoder.views.size_of_query(encoder.image_size)) for path in batch]
        readable = [photo for photo in photos if photo.pixels is not None]
        descriptors = encoder.encode([photo.pixels for photo in readable])
        located = iter(localizer.locate_descriptors(descriptors, [photo.name for photo in readable], where=where))
        for photo in photos:
            answer: Answer = Unreadable(photo=photo.name, error=photo.error) if photo.pixels is None else next(located)
            if rerank and isinstance(answer, Location) and photo.pixels is not None:
                answer = _rerank(localizer, answer, photo.pixels)
            yield answer, compare_with_exif(answer, photo.exif) if isinstance(answer, Location) else None


def _rerank(localizer: "Localizer", location: "Location", pixels: "np.ndarray") -> "Location":
    import torch

    from cosplace.localization.reranking import rerank

    photo = torch.from_numpy(pixels).permute(2, 0, 1)
    return rerank(localizer.index, location, photo, min_confidence=localizer.min_confidence)


# --- sequences -------------------------------------------------------------------------------------------------------


def _locate_sequence(
    localizer: "Localizer", paths: list[Path], where: "SearchFilter | None", config: LocateConfig
) -> "list[Answer]":
    import numpy as np

    from cosplace.localization.answers import Unreadable
    from cosplace.localization.localizer import BATCH_SIZE, encode_photos
    from cosplace.localization.tracks import gpx_text
    from cosplace.storage import write_text

    names: list[str] = []
    times_s: list[float] = []
    rows: list[np.ndarray] = []
    errors: dict[int, str] = {}  # frame -> why it cannot be read
    bars = Bars()
    for batch in _batches(_frames(paths, config.sequence.fps), BATCH_SIZE):
        descriptors, batch_errors = encode_photos(localizer.encoder, [photo for _, _, photo in batch])
        errors |= {len(names) + place: error for place, error in batch_errors.items()}
        rows.append(descriptors)
        names += [name for name, _, _ in batch]
        times_s += [time_s for _, time_s, _ in batch]
        bars("reading frames", len(names), max(len(names), len(paths)))
    bars.close()
    readable = [frame for frame in range(len(names)) if frame not in errors]
    max_speed = config.sequence.max_speed
    located = localizer.locate_sequence(
        np.concatenate(rows) if rows else np.empty((0, localizer.index.spec.dimension), np.float32),
        [names[frame] for frame in readable],
        [times_s[frame] for frame in readable],
        max_speed_mps=MAX_SPEED_MPS if max_speed is None else max_speed,
        where=where,
    )
    answers: list[Answer] = [Unreadable(photo=name, error=errors.get(n, "")) for n, name in enumerate(names)]
    for frame, location in zip(readable, located, strict=True):
        answers[frame] = location
    if config.sequence.gpx is not None:
        write_text(config.sequence.gpx, gpx_text(answers, times_s))
    return answers


def _frames(paths: list[Path], fps: float | None) -> Iterator[tuple[str, float, Any]]:
    """Yield name, time in seconds, and photo of each frame, in time order."""
    from cosplace.localization.tracks import frame_times, is_video, video_frames
    from cosplace.photos.paths import path_text

    if len(paths) == 1 and is_video(paths[0]):
        yield from video_frames(paths[0], VIDEO_FPS if fps is None else fps)
        return
    time_s = 0.0
    for path, time_s in zip(*frame_times([path for path in paths if path.is_file()], fps), strict=True):
        yield path_text(path), time_s, path
    for path in paths:  # paths that are not files are reported when they are opened
        if not path.is_file():
            yield path_text(path), time_s, path


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


# --- output ----------------------------------------------------------------------------------------------------------


def _print_text(rows: Sequence[Row], num_matches: int = MAX_TEXT_MATCHES) -> None:
    from cosplace.localization.answers import plain_text

    for answer, exif in rows:
        print_result("\n".join([plain_text(answer, num_matches), *_exif_lines(exif)]))


def _exif_lines(exif: dict[str, Any] | None) -> list[str]:
    if exif is None:
        return []
    position = f"  EXIF position {exif['latitude']:.6f}, {exif['longitude']:.6f}"
    if "agrees" not in exif:
        return [position]
    return [f"{position}: {'agrees' if exif['agrees'] else 'DISAGREES'}, {exif['distance_m']:.0f} m away"]


def _print_table(rows: Sequence[Row], output: OutputSettings, *, is_list: bool) -> None:
    from cosplace.localization.answers import csv_text, geojson_text, json_text

    if output.json:
        print_result(json_text(rows, is_list=is_list))
    elif output.geojson:
        print_result(geojson_text(rows))
    elif output.csv:
        print_result(csv_text([answer for answer, _ in rows]).rstrip("\n"))
