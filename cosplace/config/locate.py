"""Settings of locate."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cosplace.config.defaults import MAX_SPEED_MPS, NUM_MATCHES
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    ConfidenceSettings,
    DeviceSettings,
    follow_outside_setting,
    index_engine_setting,
    index_setting,
    moved_model_setting,
    root_setting,
)
from cosplace.errors import ConfigError

DATE_EXAMPLES = "2019, 2019-05, 2019-05-31, 2019-05-31T12:30 or 2019-05-31T12:30+02:00"
DATE_FORMATS = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")


def parse_date(text: str) -> float:
    """Parse a date with or without an offset from UTC, as seconds since 1970.  Without one it is in UTC.

    Raises ValueError.
    """
    for date_format in DATE_FORMATS:
        try:
            return datetime.strptime(text, date_format).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    date = datetime.fromisoformat(text)
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings(Section):
    """Filters"""

    near: str | None = setting(
        None, "search only photos within a radius of a point, in degrees and meters", metavar="LAT,LON,RADIUS"
    )
    bbox: str | None = setting(
        None, "search only photos in a box, in degrees; W is larger than E for a box across the 180th meridian",
        metavar="W,S,E,N",
    )  # fmt: skip
    after: float | None = setting(
        None, f"search only photos taken on or after a date, in UTC unless it has an offset: {DATE_EXAMPLES}",
        parse=parse_date, metavar="DATE", example=DATE_EXAMPLES,
    )  # fmt: skip
    before: float | None = setting(
        None, "search only photos taken before a date, in UTC unless it has an offset", parse=parse_date,
        metavar="DATE", example=DATE_EXAMPLES,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSettings(Section):
    """Sequences of frames"""

    sequence: bool = setting(
        False, "locate all frames together, as positions of one moving camera; PHOTO is a folder of frames, frames, or "
        "a video",
    )  # fmt: skip
    fps: float | None = setting(
        None, "frame rate of frames in the order of their names; for a video, the number of frames per second to use",
        above=0, metavar="FRAMES/S", example="30", default_text="EXIF or file times; 1 for a video",
    )  # fmt: skip
    max_speed: float | None = setting(
        None, "maximum speed of the camera, in meters per second", above=0, example="20", metavar="M/S",
        default_text=f"{MAX_SPEED_MPS:g}",
    )  # fmt: skip
    gpx: Path | None = setting(None, "also write the track to this file, as GPX", metavar="FILE")

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        for name in ("fps", "max_speed", "gpx"):
            if getattr(self, name) is not None and not self.sequence:
                raise ConfigError(f"--{name} has an effect only with --sequence. Add --sequence, or omit --{name}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings(Section):
    """Output format (default: text)"""

    json: bool = setting(False, "print JSON: an object for one photo, an array for several photos or a folder")
    geojson: bool = setting(False, "print a GeoJSON FeatureCollection with one point per photo")
    csv: bool = setting(False, "print a CSV table with one line per photo")

    def __post_init__(self) -> None:
        flags = [f"--{name}" for name in ("json", "geojson", "csv") if getattr(self, name)]
        if len(flags) > 1:
            raise ConfigError(f"{' and '.join(flags)} contradict each other. Use only one of them.")

    @property
    def is_text(self) -> bool:
        """Whether the output is for people."""
        return not (self.json or self.geojson or self.csv)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarSettings(Section):
    """Sidecars of photos"""

    write: str | None = setting(
        None, "store each answer in a sidecar of its photo, marked as an estimate; the list of changes is shown first, "
        "and nothing is written without confirmation. Photos with a position are left out", choices=("xmp",),
    )  # fmt: skip
    dry_run: bool = setting(False, "with --write: show the list of changes, and write nothing")
    yes: bool = setting(False, "with --write: do not ask for confirmation")
    undo: bool = setting(
        False, "with --write: remove the positions that --write has stored; other content of the sidecars stays"
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        for name in ("dry_run", "yes", "undo"):
            if getattr(self, name) and self.write is None:
                raise ConfigError(f"--{name} has an effect only with --write. Add --write xmp, or omit --{name}.")
        if self.dry_run and self.yes:
            raise ConfigError("--dry_run and --yes contradict each other. Use only one of them.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateConfig(Section):
    """Settings of `cosplace locate`."""

    photos: tuple[Path, ...] = required(
        "photos, folders or tables of photos; with --sequence also a video", positional=True, metavar="PHOTO"
    )
    index: str = index_setting()
    model: str | None = moved_model_setting()
    root: tuple[str, ...] = root_setting()
    engine: str | None = index_engine_setting()
    neighbors: int = setting(
        NUM_MATCHES, "number of matches to report", at_least=1, metavar="K", aliases=("neighbours",)
    )
    exact: bool = setting(False, "compare with every photo of the index, even if approximate search is the default")
    rerank: bool = setting(
        False, "check uncertain answers with local features (SIFT); needs OpenCV: pip install 'cosplace[rerank]'"
    )
    fail_unknown: bool = setting(
        False, "exit with code 3 if a photo has no answer, because it cannot be read or its confidence is below the "
        "threshold; all answers are printed first",
    )  # fmt: skip
    follow_outside: bool = follow_outside_setting()
    confidence: ConfidenceSettings = section(ConfidenceSettings)
    filter: FilterSettings = section(FilterSettings)
    sequence: SequenceSettings = section(SequenceSettings)
    output: OutputSettings = section(OutputSettings)
    sidecars: SidecarSettings = section(SidecarSettings)
    device: DeviceSettings = section(DeviceSettings)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.rerank and self.sequence.sequence:
            raise ConfigError("--rerank and --sequence cannot be used together. Use only one of them.")
        if self.sidecars.write is not None and not self.output.is_text:
            raise ConfigError("--write shows a list of changes as text. Omit --json, --geojson and --csv.")
