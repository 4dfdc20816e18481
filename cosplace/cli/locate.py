"""cosplace locate: where photos were taken."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.arguments import Command
from cosplace.cli.console import Bars, say
from cosplace.errors import ConfigError, DatasetError, ImageError

if TYPE_CHECKING:
    from cosplace.index.filters import SearchFilter
    from cosplace.localization.answers import Answer
    from cosplace.localization.localizer import Localizer

AGREES_M = 25.0  # between an answer and EXIF, or the answer's radius where that is larger


def _add_locate(parser: argparse.ArgumentParser) -> None:
    # Coordinates may begin with a minus sign: what follows a flag as -33.8,151.2 is its value.
    parser._negative_number_matcher = re.compile(r"^-\d")
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photos, or folders of photos; a video: --sequence")
    parser.add_argument("--index", required=True, metavar="INDEX", help="made by `cosplace index build`")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--neighbours", type=int, default=20, metavar="K", help="told as evidence (default: 20)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model from a hub")
    parser.add_argument("--exact", action="store_true", help="compare with all photos, also in a large index")
    _add_doubt(parser.add_argument_group("doubt"))
    _add_priors(parser.add_argument_group("only photos of the index"))
    _add_sequence(parser.add_argument_group("frames of one camera"))
    forms = parser.add_argument_group("output (default: text)").add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="an object for one photo; an array for several or a folder")
    forms.add_argument("--geojson", action="store_true", help="a FeatureCollection, a point for each photo")
    forms.add_argument("--csv", action="store_true", help="a table, a line for each photo")
    parser.set_defaults(run=_locate)


def _add_doubt(group: Any) -> None:
    group.add_argument(
        "--min_confidence", type=float, default=None, metavar="P", help="answers below are unknown (default: 0.5)"
    )
    group.add_argument(
        "--precision", type=float, default=None, metavar="P",
        help="instead: of the answers given this share is right, of photos from elsewhere this share is unknown",
    )  # fmt: skip
    group.add_argument("--uncalibrated", action="store_true", help="take an index without calibration as it is")
    group.add_argument(
        "--rerank", action="store_true", help="look again at doubtful answers, with local features (OpenCV)"
    )


def _add_priors(group: Any) -> None:
    group.add_argument("--near", default=None, metavar="LAT,LON,RADIUS", help="degrees, and meters")
    group.add_argument("--bbox", default=None, metavar="W,S,E,N", help="degrees; W > E crosses the antimeridian")
    group.add_argument("--after", default=None, metavar="DATE", help="captured at or after: 2019, 2019-05, 2019-05-01")
    group.add_argument("--before", default=None, metavar="DATE", help="captured before")


def _add_sequence(group: Any) -> None:
    group.add_argument("--sequence", action="store_true", help="PHOTO is a folder of frames, frames, or a video")
    group.add_argument(
        "--fps", type=float, default=None,
        help="frames a second, in order of names (default: EXIF or file times); of a video: taken (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--max_speed", type=float, default=None, metavar="M/S", help="of the camera, meters a second (default: 20)"
    )
    group.add_argument("--gpx", type=Path, default=None, metavar="FILE", help="also write the way as a GPX track")


def _locate(values: dict[str, Any]) -> None:
    _check(values)
    where = _where(values)
    paths, is_list = _photos([Path(text) for text in values["photos"]], sequence=values["sequence"])
    if values["rerank"]:
        from cosplace.localization.reranking import require_opencv

        require_opencv()
    from cosplace.localization.localizer import Localizer

    localizer = Localizer(
        values["index"],
        device=values["device"],
        min_confidence=values["min_confidence"],
        precision=values["precision"],
        k=values["neighbours"],
        uncalibrated=values["uncalibrated"],
        trust_remote_code=values["trust_remote_code"],
        exact=values["exact"],
    )
    if values["sequence"]:
        answers = _sequence(localizer, paths, where, values)
        rows = [(answer, None) for answer in answers]
    else:
        rows = _each(localizer, paths, where, values)
    _tell(rows, values, is_list=is_list or values["sequence"])
    unreadable = [answer for answer, _ in rows if hasattr(answer, "error")]
    if len(unreadable) == len(rows):
        raise ImageError(f"None of {len(rows)} photos could be read, the first: {unreadable[0].error}")


def _check(values: dict[str, Any]) -> None:
    for name in ("fps", "max_speed", "gpx"):
        if values[name] is not None and not values["sequence"]:
            raise ConfigError(f"--{name} belongs to --sequence: give both.")
    if values["rerank"] and values["sequence"]:
        raise ConfigError("--rerank and --sequence do not go together: leave one of them out.")
    if values["neighbours"] < 1:
        raise ConfigError(f"--neighbours {values['neighbours']}: give 1 or more.")


def _photos(named: list[Path], *, sequence: bool) -> tuple[list[Path], bool]:
    """All photos, and whether they are several by the way they were asked for."""
    from cosplace.localization.tracks import is_video
    from cosplace.photos.scanning import scan_images

    paths: list[Path] = []
    for path in named:
        if path.is_dir():
            images = scan_images(path)
            paths += [images.path(row) for row in range(len(images))]
        else:
            paths.append(path)
    videos = [path for path in paths if is_video(path)]
    if videos and not (sequence and len(paths) == 1):
        raise ConfigError(f"{videos[0]} is a video: give it alone, with --sequence.")
    if not paths:
        raise DatasetError(f"There are no photos in {named[0]}: give photos or a folder of photos.")
    if sequence and not any(path.is_file() for path in paths):
        raise DatasetError(f"There is no {paths[0]}: give a folder of frames, frames, or a video.")
    return paths, len(named) > 1 or named[0].is_dir()


# --- answering -------------------------------------------------------------------------------------------------------

Row = tuple[Any, dict[str, Any] | None]
"""An answer, and what EXIF says of it."""


def _each(localizer: "Localizer", paths: list[Path], where: "SearchFilter | None", values: dict[str, Any]) -> list[Row]:
    from cosplace.localization.answers import Location, plain_text
    from cosplace.localization.reranking import look_closer
    from cosplace.photos.opening import open_image

    rows: list[Row] = []
    bars = Bars()
    for number, answer in enumerate(localizer.answers(paths, where=where)):
        found = answer
        if values["rerank"] and isinstance(answer, Location):
            photo = open_image(paths[number])
            found = look_closer(localizer.index, answer, photo, min_confidence=localizer.min_confidence)
        rows.append((found, _exif_check(found, paths[number])))
        if not _wants_table(values):
            say("\n".join([plain_text(found), *_exif_lines(rows[-1][1])]))
        elif len(paths) > 1:
            bars("locating", number + 1, len(paths))
    return rows


def _exif_check(answer: "Answer", path: Path) -> dict[str, Any] | None:
    from cosplace.localization.answers import Location
    from cosplace.localization.localizer import away_from_m
    from cosplace.localization.tracks import read_exif

    if not isinstance(answer, Location):
        return None
    exif = read_exif(path)
    if not exif.has_position:
        return None
    away_m = away_from_m(answer, exif.latitude, exif.longitude)
    found: dict[str, Any] = {"latitude": round(exif.latitude, 7), "longitude": round(exif.longitude, 7)}
    if away_m is not None:
        found |= {"distance_m": round(away_m, 1), "agrees": away_m <= max(AGREES_M, answer.radius_m or 0.0)}
    return found


def _exif_lines(check: dict[str, Any] | None) -> list[str]:
    if check is None:
        return []
    says = f"  EXIF says {check['latitude']:.6f}, {check['longitude']:.6f}"
    if "agrees" not in check:
        return [says]
    return [f"{says}: {'agrees' if check['agrees'] else 'DISAGREES'}, {check['distance_m']:.0f} m away"]


def _sequence(
    localizer: "Localizer", paths: list[Path], where: "SearchFilter | None", values: dict[str, Any]
) -> "list[Answer]":
    import numpy as np

    from cosplace.localization.answers import Unreadable
    from cosplace.localization.localizer import MAX_SPEED_MPS, PHOTOS_AT_ONCE, encode_readable
    from cosplace.localization.tracks import gpx_text
    from cosplace.storage import write_text

    names: list[str] = []
    times: list[float] = []
    rows: list[np.ndarray] = []
    failed: dict[int, str] = {}
    bars = Bars()
    for batch in _batches(_frames(paths, values["fps"]), PHOTOS_AT_ONCE):
        found, failures = encode_readable(localizer.encoder, [photo for _, _, photo in batch])
        failed |= {len(names) + place: text for place, text in failures}
        rows.append(found)
        names += [name for name, _, _ in batch]
        times += [at for _, at, _ in batch]
        bars("frames", len(names), max(len(names), len(paths)))
    readable = [place for place in range(len(names)) if place not in failed]
    located = localizer.locate_sequence(
        np.concatenate(rows) if rows else np.empty((0, localizer.index.spec.dimension), np.float32),
        [names[place] for place in readable],
        [times[place] for place in readable],
        max_speed_mps=MAX_SPEED_MPS if values["max_speed"] is None else values["max_speed"],
        where=where,
    )
    answers: list[Any] = [Unreadable(photo=name, error=failed.get(place, "")) for place, name in enumerate(names)]
    for place, location in zip(readable, located, strict=True):
        answers[place] = location
    if values["gpx"] is not None:
        write_text(values["gpx"], gpx_text(answers, times))
    return answers


def _frames(paths: list[Path], fps: float | None) -> Iterator[tuple[str, float, Any]]:
    """Name, time in seconds, and photo of each frame."""
    from cosplace.localization.tracks import frame_times, is_video, video_frames

    if len(paths) == 1 and is_video(paths[0]):
        yield from video_frames(paths[0], 1.0 if fps is None else fps)
        return
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(f"There is no frame {missing[0]}: check the path.")
    yield from ((str(path), at, path) for path, at in zip(*frame_times(paths, fps), strict=True))


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# --- telling ---------------------------------------------------------------------------------------------------------


def _wants_table(values: dict[str, Any]) -> bool:
    return values["json"] or values["geojson"] or values["csv"]


def _tell(rows: Sequence[Row], values: dict[str, Any], *, is_list: bool) -> None:
    from cosplace.localization.answers import csv_text, geojson_text, json_text, plain_text

    if values["json"]:
        say(json_text(rows, is_list=is_list))
    elif values["geojson"]:
        say(geojson_text(rows))
    elif values["csv"]:
        say(csv_text([answer for answer, _ in rows]).rstrip("\n"))
    elif values["sequence"]:
        for answer, _ in rows:
            say(plain_text(answer, num_neighbours=0))


# --- filters ---------------------------------------------------------------------------------------------------------


def _where(values: dict[str, Any]) -> "SearchFilter | None":
    if not any(values[name] is not None for name in ("near", "bbox", "after", "before")):
        return None
    from cosplace.index.filters import SearchFilter

    near = None if values["near"] is None else _numbers("near", values["near"], 3)
    bbox = None if values["bbox"] is None else _numbers("bbox", values["bbox"], 4)
    before = None if values["before"] is None else _date("before", values["before"]) - 1e-3
    after = None if values["after"] is None else _date("after", values["after"])
    return SearchFilter(near=near, bbox=bbox, after=after, before=before)


def _numbers(name: str, text: str, count: int) -> Any:
    example = {"near": "LAT,LON,RADIUS, such as 37.77,-122.42,500", "bbox": "W,S,E,N, such as -122.5,37.7,-122.3,37.8"}
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise ConfigError(f"--{name} '{text}': give {example[name]}.")
    return numbers


def _date(name: str, text: str) -> float:
    from datetime import UTC, datetime

    for form in ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    raise ConfigError(f"--{name} '{text}': give a date (UTC) such as 2019, 2019-05, 2019-05-31 or 2019-05-31T12:30.")


COMMANDS = (
    Command(
        name="locate",
        text="Tell where photos were taken, how sure that is and why, by an index of photos with positions.",
        add=_add_locate,
    ),
)
