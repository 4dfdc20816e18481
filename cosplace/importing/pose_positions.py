"""Reconstructions give positions and headings to photos by name.

A reconstruction without a georeference is aligned with positions of the same photos: pose priors of the source, else
those of tables or of EXIF.  Values of a pose replace those of EXIF, which are less accurate.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.geo import ecef_from_lla, geodesic_distances_m
from cosplace.importing.exif_photos import PHOTOS_FOLDER
from cosplace.importing.photo_references import find_reference, source_folders
from cosplace.importing.poses import (
    CameraPoses,
    Georeference,
    PlacedCameras,
    given_georeference,
    local_frame,
    place,
    to_local_frame,
)
from cosplace.importing.positions import PhotoStream, annotated, has_position, is_known
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.row_names import RowNames
from cosplace.importing.similarity import align
from cosplace.photos.paths import path_text, printable
from cosplace.photos.tables import PhotoRecord

HEADING_SOURCE = "pose"
FAR_M = 1000.0  # from the GPS position of a photo: its pose is elsewhere
ALIGN_ADVICE = (
    "Import photos with GPS positions, or a table of positions, together with it; or specify its coordinates: --origin "
    "LAT,LON,ALT, --crs EPSG:CODE or --similarity FILE."
)

log = logging.getLogger("cosplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionPriors:
    """Positions of photos that a source knows without a reconstruction; N photos."""

    source: Path
    names: tuple[str, ...]
    folders: tuple[Path, ...]
    positions: np.ndarray  # (N, 3): latitude, longitude, altitude, nan where unknown
    accuracies_m: np.ndarray  # (N,) nan where unknown


class PosePositions:
    """Positions and headings from reconstructions; see `positions.Annotations`."""

    def __init__(
        self, reconstructions: Sequence[CameraPoses], settings: ImportSettings, priors: Sequence[PositionPriors] = ()
    ) -> None:
        self.reconstructions, self.priors, self.settings = reconstructions, priors, settings
        self.given = given_georeference(settings.poses, settings.tables.crs)
        self.rows = [RowNames(one.names, one.folders[0]) for one in reconstructions]
        self.prior_rows = [RowNames(one.names, one.folders[0]) for one in priors]

    @property
    def needs_positions(self) -> bool:
        """Whether a reconstruction has no georeference."""
        return any(self._georeference_of(one) is None for one in self.reconstructions)

    def photos(self) -> Iterator[Entry]:
        """The photos that the sources name, below their folders or other sources; never outside of these."""
        seen = set()
        for one in (*self.reconstructions, *self.priors):
            folders = [*one.folders, *source_folders(one.source, self.settings)[1:]]
            for name in one.names:
                file, relative = find_reference(name, folders)
                if file is not None and file not in seen:
                    seen.add(file)
                    yield FoundPhoto(file=file, record=PhotoRecord(path=f"{PHOTOS_FOLDER}/{relative}"))

    def annotate(self, photos: PhotoStream) -> Iterator[Entry]:
        """Every photo with its pose; then what has no photo, and cameras that were left out."""
        for rows in (*self.rows, *self.prior_rows):
            rows.compare(photos.list_files())
        stream, known = iter(photos), []
        if self.needs_positions:
            known = list(stream)  # all positions are needed first
            stream = iter(known)
        placed, problems = self._place_all(known)
        yield from problems
        for photo in stream:
            yield from self._annotate(photo, placed)
        for one, rows in zip((*self.reconstructions, *self.priors), (*self.rows, *self.prior_rows), strict=True):
            yield from one.problems if isinstance(one, CameraPoses) else ()
            for row in rows.unused():
                yield Problem(
                    name=f"{one.source}: {one.names[row]}", reason="no photo with this name was found in the sources"
                )

    # --- where the cameras are ---------------------------------------------------------------------------------------

    def _georeference_of(self, poses: CameraPoses) -> Georeference | None:
        return self.given or poses.georeference

    def _place_all(self, photos: Sequence[FoundPhoto]) -> tuple[list[PlacedCameras | None], list[Problem]]:
        """The placed cameras of each reconstruction, None for one that cannot be aligned; and why.

        Raises DatasetError if no reconstruction can be aligned, and there are no priors.
        """
        placed: list[PlacedCameras | None] = []
        errors: list[DatasetError] = []
        for poses, rows in zip(self.reconstructions, self.rows, strict=True):
            try:
                georeference = self._georeference_of(poses) or self._aligned(poses, rows, photos)
            except DatasetError as error:
                errors.append(error)
                placed.append(None)
                continue
            cameras = place(poses, georeference)
            placed.append(cameras)
            if len(poses) and np.isnan(cameras.latitudes).all():
                raise DatasetError(
                    f"{poses.source}: none of the cameras is on Earth, for example coordinates "
                    f"{_short(poses.centers[0])}. Check --crs, --origin or --similarity."
                )
        if errors and len(errors) == len(self.reconstructions) and not self.priors:
            raise errors[0]
        return placed, [Problem(name="reconstruction", reason=str(error)) for error in errors]

    def _aligned(self, poses: CameraPoses, rows: RowNames, photos: Sequence[FoundPhoto]) -> Georeference:
        """The georeference that agrees best with known positions; a log line says how well."""
        known = self._known_positions(poses, rows, photos)
        cameras = np.flatnonzero(np.isfinite(known[:, :2]).all(1))
        latitudes, longitudes, heights_m = known[cameras].T
        if np.isnan(heights_m).any():
            heights_m = np.zeros(len(cameras))  # as on a plain: better than two heights of different kinds
        try:
            if not len(cameras):
                raise DatasetError("none of its photos has a known position.")
            middle = len(cameras) // 2
            origin = float(latitudes[middle]), float(longitudes[middle]), float(np.median(heights_m))
            targets = to_local_frame(ecef_from_lla(latitudes, longitudes, heights_m), *origin)
            found = align(poses.centers[cameras], targets, self.settings.poses.max_error_m, poses.up)
        except DatasetError as error:
            message, *remedies = error.args
            raise DatasetError(f"{poses.source} cannot be aligned: {message} {ALIGN_ADVICE}", *remedies) from error
        log.info(
            "%s: aligned with %s of %s known positions; residual %.2f m, error of headings about %.1f degrees",
            printable(poses.source), f"{int(found.agree.sum()):,}", f"{len(cameras):,}", found.residual_m,
            found.angle_error,
        )  # fmt: skip
        to_earth, similarity = local_frame(*origin), found.similarity
        return lambda points: to_earth(similarity(points))

    def _known_positions(self, poses: CameraPoses, rows: RowNames, photos: Sequence[FoundPhoto]) -> np.ndarray:
        """Latitude, longitude and altitude of each camera (N, 3), by priors of the source, else by EXIF; else nan."""
        known = np.full((len(poses), 3), np.nan)
        for priors in self.priors:
            row_of = {name: row for row, name in enumerate(priors.names)}
            for camera, name in enumerate(poses.names):
                if name in row_of:
                    known[camera] = priors.positions[row_of[name]]
        if np.isfinite(known[:, 0]).any():
            return known
        for photo in photos:
            camera, _ = rows.find(photo.named_file)
            if camera is not None and has_position(photo):
                known[camera] = photo.record.latitude, photo.record.longitude, photo.record.altitude_m
        return known

    # --- one photo ---------------------------------------------------------------------------------------------------

    def _annotate(self, photo: FoundPhoto, placed: Sequence[PlacedCameras | None]) -> Iterator[Entry]:
        reasons: list[str] = []
        values: Mapping[str, Any] = {}
        for poses, rows, cameras in zip(self.reconstructions, self.rows, placed, strict=True):
            row, reason = rows.find(photo.named_file)
            reasons += [f"{poses.source}: {reason}"] if reason else []
            if row is not None and cameras is not None and not np.isnan(cameras.latitudes[row]):
                values = values or _values_of(photo, poses, cameras, row)
        for priors, rows in zip(self.priors, self.prior_rows, strict=True):
            row, reason = rows.find(photo.named_file)
            reasons += [f"{priors.source}: {reason}"] if reason else []
            if row is not None and not values and not np.isnan(priors.positions[row, 0]):
                latitude, longitude, altitude_m = map(float, priors.positions[row])
                values = {
                    "latitude": latitude,
                    "longitude": longitude,
                    "altitude_m": altitude_m,
                    "accuracy_m": float(priors.accuracies_m[row]),
                    "source": path_text(priors.source),
                }
        if not values:
            reason = "; ".join(reasons) or "no reconstruction has a pose of this photo"
            yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        elif has_position(photo) and (away_m := _away_m(photo, values)) > FAR_M:
            reason = f"its pose is {away_m:,.0f} m from its GPS position; check both"
            yield Problem(name=str(photo.named_file), reason=reason, is_left_out=False)
        yield annotated(photo, **values)


def _values_of(photo: FoundPhoto, poses: CameraPoses, cameras: PlacedCameras, row: int) -> Mapping[str, Any]:
    """Columns of a record for a pose."""
    heading = float(cameras.headings[row])
    values: dict[str, Any] = {
        "latitude": float(cameras.latitudes[row]),
        "longitude": float(cameras.longitudes[row]),
        "altitude_m": float(cameras.altitudes_m[row]),
        "heading": heading,
        "heading_source": HEADING_SOURCE if is_known(heading) else "",
        "pitch": float(cameras.pitches[row]),
        "roll": float(cameras.rolls[row]),
        "field_of_view": float(poses.fields_of_view[row]),
        "projection": poses.projections[row],
        "source": path_text(poses.source),
    }
    if not is_known(photo.record.time):
        values["time"] = float(poses.times[row])
    return values


def _away_m(photo: FoundPhoto, values: Mapping[str, Any]) -> float:
    own = photo.record.latitude, photo.record.longitude
    return float(geodesic_distances_m(*own, values["latitude"], values["longitude"]))


def _short(point: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in point)
