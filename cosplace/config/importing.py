"""Settings of import."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, section, setting

MODES = ("copy", "link", "table")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings(Section):
    """Tables of positions"""

    column: tuple[str, ...] = setting(
        (), "columns of the tables that have unusual names, such as latitude=Breite filename=Bild",
        metavar="FIELD=NAME",
    )  # fmt: skip
    crs: str = setting(
        "", "coordinate system of the positions in tables and of reconstructions, as an EPSG code; x is "
        "easting or longitude and y is northing or latitude, whatever its axis order", metavar="EPSG:CODE",
        default_text="that of the file, else latitude and longitude (EPSG:4326)",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackSettings(Section):
    """Tracks and videos"""

    clock_offset: float | None = setting(
        None, "seconds to add to the times of photos so that they match the track, such as -7200 for a camera that "
        "is two hours ahead", metavar="SECONDS", default_text="estimated and printed", at_least=-1e9, at_most=1e9,
    )  # fmt: skip
    mount_angle: float = setting(
        0.0, "direction in which the camera looks, in degrees clockwise from the direction of travel, such as 90 for a "
        "camera that looks to the right", at_least=-360, at_most=360, metavar="DEGREES",
    )  # fmt: skip
    max_gap_s: float = setting(
        30.0, "split a track where two points are more than this number of seconds apart; photos taken in between get "
        "no position", above=0, metavar="SECONDS",
    )  # fmt: skip
    every_m: float | None = setting(
        None, "meters that the camera moves between two frames taken from a video", at_least=0.1, metavar="METERS",
        default_text="5 with a track",
    )  # fmt: skip
    every_s: float | None = setting(
        None, "seconds between two frames taken from a video", at_least=0.01, metavar="SECONDS",
        default_text="1 without a track",
    )  # fmt: skip
    video_start: str = setting(
        "", "time at which the video starts, such as 2026-05-01T12:00:00Z, or with an offset such as +02:00",
        metavar="TIME", default_text="that of the track in the video, else the creation time of the file",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseSettings(Section):
    """Reconstructions: COLMAP, OpenSfM, Nerfstudio"""

    origin: str = setting(
        "", "position of the origin of the reconstruction, in degrees and meters; x is then east, y north and z up, in "
        "meters", metavar="LAT,LON,ALT",
        default_text="that of the source, else estimated from GPS positions of the photos",
    )  # fmt: skip
    similarity: Path | None = setting(
        None, "JSON file with scale, rotation, translation and origin, which convert the coordinates of the "
        "reconstruction to meters east, north and up of the origin", metavar="FILE",
    )  # fmt: skip
    max_error_m: float = setting(
        10.0, "when aligning a reconstruction with GPS positions, ignore those farther than this from their camera, in "
        "meters; at least half must agree", above=0, metavar="METERS",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings(Section):
    """What sources of photos and positions may use.  Each kind of source has a section of its own."""

    mode: str = setting(
        "copy", "copy: copy the photos into DATASET; link: link them, which needs no space; table: only write the "
        "table, and leave the photos where they are inside DATASET",
        choices=MODES,
    )  # fmt: skip
    timezone: str = setting(
        "", "time zone of camera clocks that do not state one, such as Europe/Rome",
        default_text="found from GPS times, else UTC", metavar="ZONE",
    )  # fmt: skip
    tables: TableSettings = section(TableSettings)
    tracks: TrackSettings = section(TrackSettings)
    poses: PoseSettings = section(PoseSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig(ImportSettings):
    """Settings of `cosplace import`."""

    sources: tuple[str, ...] = required(
        "photos, videos, datasets, tables of positions and tracks, as files or folders, in any combination",
        positional=True, metavar="SOURCE",
    )  # fmt: skip
    to: Path | None = setting(
        None, "folder of the dataset to create or extend; photos.parquet and import_report.csv are written there",
        metavar="DATASET", default_text="with --mode table, the folder of the photos",
    )  # fmt: skip
    format: tuple[str, ...] = setting(
        (), "kind of all sources, or one for each source, in order; docs/import.md lists the names", metavar="NAME",
        default_text="recognized by their content",
    )  # fmt: skip
    keep_unplaced: bool = setting(False, "also keep photos without a position; they are listed either way")
    dry_run: bool = setting(False, "only report what would be imported, without writing anything")
