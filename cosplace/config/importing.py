"""Settings of import."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, section, setting

MODES = ("copy", "link", "table")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings(Section):
    """Tables of positions"""

    column: tuple[str, ...] = setting(
        (), "name a column of the tables that has an unusual name, as latitude=Breite or filename=Bild; several may "
        "follow", metavar="FIELD=NAME",
    )  # fmt: skip
    crs: str = setting(
        "", "coordinate system of the positions in the tables, and of reconstructions, as an EPSG code; "
        "the column of eastings or longitudes is x, that of northings or latitudes is y", metavar="EPSG:CODE",
        default_text="that of the file, else latitude and longitude (EPSG:4326)",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackSettings(Section):
    """Tracks and videos"""

    clock_offset: float | None = setting(
        None, "seconds to add to the times of photos, so that they match the track; -7200 for a camera that is two "
        "hours ahead", metavar="SECONDS", default_text="estimated, and reported",
    )  # fmt: skip
    mount_angle: float = setting(
        0.0, "direction in which the camera looks, in degrees clockwise from the direction of travel: 90 for a camera "
        "that looks to the right", at_least=-360, at_most=360, metavar="DEGREES",
    )  # fmt: skip
    max_gap_s: float = setting(
        30.0, "points of a track that are more than this number of seconds apart belong to different parts of it; "
        "photos taken between them have no position", above=0, metavar="SECONDS",
    )  # fmt: skip
    every_m: float | None = setting(
        None, "take a frame of a video each time the camera has moved by this distance", at_least=0.1, metavar="METERS",
        default_text="5 with a track",
    )  # fmt: skip
    every_s: float | None = setting(
        None, "take a frame of a video after this number of seconds", at_least=0.01, metavar="SECONDS",
        default_text="1 without a track",
    )  # fmt: skip
    video_start: str = setting(
        "", "time at which the video starts, as 2026-05-01T12:00:00Z or with an offset as +02:00",
        metavar="TIME", default_text="that of the track in the video, else the creation time of the file",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseSettings(Section):
    """Reconstructions: COLMAP, OpenSfM, Nerfstudio"""

    origin: str = setting(
        "", "position where the coordinates of the reconstruction are 0, in degrees and meters; x is then east, y "
        "north and z up, in meters", metavar="LAT,LON,ALT",
        default_text="that of the source, else estimated from GPS positions of the photos",
    )  # fmt: skip
    similarity: Path | None = setting(
        None, "JSON file with scale, rotation, translation and origin: from the coordinates of the reconstruction to "
        "meters east, north and up of the origin", metavar="FILE",
    )  # fmt: skip
    max_error_m: float = setting(
        10.0, "when a reconstruction is aligned with GPS positions, those farther than this number of meters from "
        "their camera count as wrong; half must agree", above=0, metavar="METERS",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings(Section):
    """What sources of photos and positions may use.  Each kind of source has a section of its own."""

    mode: str = setting(
        "copy", "copy: copy the photos into DATASET; link: link them, which needs no space; table: only write the "
        "table, and leave the photos where they are, inside DATASET",
        choices=MODES,
    )  # fmt: skip
    timezone: str = setting(
        "", "time zone of camera clocks that do not state one, such as Europe/Rome",
        default_text="that which GPS times show, else UTC", metavar="ZONE",
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
        (), "kind of all sources, or of each in order: see docs/import.md for the names", metavar="NAME",
        default_text="recognized by their content",
    )  # fmt: skip
    keep_unplaced: bool = setting(False, "also keep photos whose position is unknown; they are listed either way")
    dry_run: bool = setting(False, "only report what would be imported, without writing anything")
