"""Protocols by which results of the field are published: names, versions, and what a dataset must be.

A number is comparable only with numbers of the same queries, database, radius and image size.  The protocols are data,
in protocols.toml, each with its source.  Legend: Q queries, R database images.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cosplace.config.evaluation import EvalConfig
from cosplace.config.names import either, similar_names
from cosplace.errors import ConfigError, DatasetError
from cosplace.models.zoo import HUB_MODELS, HubModel, NativeModel, find_model
from cosplace.progress import format_count
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.recall import find_positives

CUSTOM = "custom"  # the name of an evaluation that follows no protocol
FRAMES, PAIRS, GROUND = "frames", "pairs", "ground"
NATIVE = "native"
PAIR_M = 1000.0  # distance between two pairs
DATA = Path(__file__).with_name("protocols.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What a dataset must be, and how it is evaluated."""

    name: str
    version: int
    title: str
    num_database: int  # R
    num_queries: int  # Q
    radius_m: float | None = None  # None for frames
    radius_frames: int | None = None  # a prediction this number of frames away is correct
    positions: str = GROUND  # or FRAMES or PAIRS, whose positions are not places on Earth
    queries_folder: str = ""  # the usual name of the folder of queries; "" for the default
    without_positives: str = "miss"  # or "dropped": removed from the dataset before
    all_have_positives: bool = False
    image_size: str = NATIVE  # photos keep their size, unless the model has an input size
    source: str = ""
    note: str = ""

    @property
    def id(self) -> str:
        """Name and version, such as pitts30k-test@1."""
        return f"{self.name}@{self.version}"

    @property
    def has_mock_positions(self) -> bool:
        """Whether positions are numbers instead of places on Earth."""
        return self.positions != GROUND

    @property
    def radius_text(self) -> str:
        """The radius with its unit."""
        if self.radius_frames is None:
            return f"{self.radius_m:g} m"
        return f"{self.radius_frames} frame{'' if self.radius_frames == 1 else 's'}"


Protocols = Mapping[str, Protocol]  # by id


@cache
def all_protocols() -> Protocols:
    """All protocols by id, in the order of the file."""
    rows = tomllib.loads(DATA.read_text("utf-8"))["protocol"]
    protocols = [Protocol(**row) for row in rows]
    return MappingProxyType({protocol.id: protocol for protocol in protocols})


def find_protocol(text: str, protocols: Protocols | None = None) -> Protocol:
    """The protocol `name@version`, or the newest version of `name`.

    Raises ConfigError for an unknown name or version.
    """
    protocols = all_protocols() if protocols is None else protocols
    name, _, version = text.strip().lower().partition("@")
    versions = [protocol for protocol in protocols.values() if protocol.name == name]
    if not versions:
        names = sorted({protocol.name for protocol in protocols.values()})
        closest = similar_names(name, names)
        hint = f"Did you mean {either(closest)}? " if closest else ""
        raise ConfigError(f"Unknown protocol '{text}'. {hint}`cosplace protocols` lists all protocols.")
    newest = max(versions, key=lambda protocol: protocol.version)
    found = newest if not version else protocols.get(f"{name}@{version}")
    if found is None:
        known = ", ".join(protocol.id for protocol in versions)
        raise ConfigError(f"The protocol {name} has no version '{version}'. Choose from {known}.")
    return found


# --- the dataset -----------------------------------------------------------------------------------------------------


def check_dataset(protocol: Protocol, dataset: RetrievalDataset, *remedies: str) -> float:
    """The radius of a protocol in meters, for a dataset that matches it.

    Raises DatasetError with all differences in one line, if it does not match.
    """
    found = differences(protocol, dataset)
    if found:
        has_other_queries = len(dataset.queries) != protocol.num_queries
        folder = protocol.queries_folder if has_other_queries else ""
        hint = [f"use --queries_folder {folder}"] if folder and not dataset.name.endswith(f"/{folder}") else []
        raise DatasetError(f"{dataset.folder} does not match {protocol.id}: {'; '.join(found)}.", *hint, *remedies)
    return radius_in_meters(protocol, dataset)


def differences(protocol: Protocol, dataset: RetrievalDataset) -> tuple[str, ...]:
    """What is different between a dataset and a protocol, as clauses with both numbers; empty if it matches."""
    found = []
    for what, count, wanted, num_unknown in (
        ("queries", len(dataset.queries), protocol.num_queries, dataset.num_unknown_queries),
        ("database images", len(dataset.database), protocol.num_database, dataset.num_unknown_database),
    ):
        if count != wanted:
            without = f" without {num_unknown:,} whose position is unknown" if num_unknown else ""
            found.append(f"it has {count:,} {what}{without}, {protocol.id} has {wanted:,}")
    kind = positions_kind(dataset)
    if kind != protocol.positions:
        words = {GROUND: "positions on the ground", FRAMES: "frame numbers", PAIRS: "pairs without positions"}
        found.append(f"it has {words[kind]}, {protocol.id} has {words[protocol.positions]}")
    elif not found and protocol.all_have_positives:
        radius_m = radius_in_meters(protocol, dataset)
        counts = find_positives(dataset.database_positions, dataset.query_positions, radius_m).counts
        if num_missing := int((counts == 0).sum()):
            found.append(
                f"{format_count(num_missing, 'query has', 'queries have')} no database image within "
                f"{protocol.radius_text}, but all queries of {protocol.id} have one"
            )
    return tuple(found)


def positions_kind(dataset: RetrievalDataset) -> str:
    """FRAMES or PAIRS if all photos are on one line from south to north and no name has a zone, else GROUND."""
    database, queries = dataset.database_positions, dataset.query_positions
    if dataset.zones or database.shape[1] != 2 or not len(database) or not len(queries):
        return GROUND
    on_line = (database[:, 0] == database[0, 0]).all() and (queries[:, 0] == queries[0, 0]).all()
    if not on_line or np.ptp(database[:, 1]) == 0:
        return GROUND
    return PAIRS if spacing_m(dataset) >= PAIR_M / 2 else FRAMES


def spacing_m(dataset: RetrievalDataset) -> float:
    """Mean distance in meters between neighboring places of a database on a line; names round single distances."""
    places = np.unique(dataset.database_positions[:, 1])
    return float(np.ptp(places)) / max(1, len(places) - 1)


def radius_in_meters(protocol: Protocol, dataset: RetrievalDataset) -> float:
    """The radius in meters; that of n frames lies between the frames n and n + 1, so that rounding does not matter."""
    if protocol.radius_frames is None:
        assert protocol.radius_m is not None
        return protocol.radius_m
    return (protocol.radius_frames + 0.5) * spacing_m(dataset)


def has_radius(protocol: Protocol, dataset: RetrievalDataset, radius_m: float) -> bool:
    """Whether a radius in meters is that of a protocol; for frames, whether it includes the same frames."""
    if protocol.radius_frames is None:
        return radius_m == protocol.radius_m
    spacing = spacing_m(dataset)
    return spacing > 0 and math.floor(radius_m / spacing) == protocol.radius_frames


def matching_protocols(
    dataset: RetrievalDataset, radius_m: float | None = None, protocols: Protocols | None = None
) -> list[Protocol]:
    """The newest versions of all protocols that a dataset matches; with a radius, those with this radius."""
    protocols = all_protocols() if protocols is None else protocols
    newest = {protocol.name: protocol for protocol in sorted(protocols.values(), key=lambda one: one.version)}
    return [
        protocol
        for protocol in newest.values()
        if len(dataset.queries) == protocol.num_queries
        and protocol.num_database == len(dataset.database)
        and not differences(protocol, dataset)
        and (radius_m is None or has_radius(protocol, dataset, radius_m))
    ]


def matching_protocol(
    dataset: RetrievalDataset,
    radius_m: float,
    model: str | None,
    image_size: int | None,
    protocols: Protocols | None = None,
) -> Protocol | None:
    """The protocol that an evaluation with these settings follows; None if it is none, or more than one."""
    if image_size != protocol_image_size(model):
        return None
    found = matching_protocols(dataset, radius_m, protocols)
    return found[0] if len(found) == 1 else None


# --- settings --------------------------------------------------------------------------------------------------------


def protocol_image_size(model: str | None) -> int | None:
    """Pixels of the shorter side at which a protocol evaluates a model: its own input size, or None for native."""
    found = next((one for one in HUB_MODELS.values() if one.spec == model), None)
    if found is None and model:
        with suppress(ConfigError):  # the path of a file
            found = find_model(model)
    return found.input_size if isinstance(found, HubModel | NativeModel) else None


def check_image_size(protocol: Protocol, model: str | None, image_size: int | None) -> None:
    """Raise ConfigError unless photos are evaluated at the size of the protocol.

    image_size: pixels of the shorter side; None keeps the size of each photo.
    """
    wanted = protocol_image_size(model)
    if image_size == wanted:
        return
    found = "their own size" if image_size is None else f"{image_size} pixels"
    size = "their own size" if wanted is None else f"{wanted} pixels, the input size of {model}"
    raise ConfigError(
        f"{protocol.id} evaluates photos at {size}, got {found}. Omit --resize_test_imgs and --image_size, or omit "
        f"--protocol to evaluate it as custom."
    )


def with_protocol(config: EvalConfig, given: Mapping[str, Any], protocol: Protocol) -> EvalConfig:
    """Settings of an evaluation by a protocol: its folder of queries and image size, where the user gave none.

    given: the settings of the command line.  Raises ConfigError for an image size that contradicts the protocol.
    """
    model, wanted = config.weights.resume_model, protocol_image_size(config.weights.resume_model)
    folders, testing, size = config.folders, config.testing, config.test_size
    if protocol.queries_folder and folders.queries_folder is None:
        folders = replace(folders, queries_folder=protocol.queries_folder)
    if wanted is not None and not {"resize_test_imgs", "image_size"} & given.keys():
        testing, size = replace(testing, resize_test_imgs=True), replace(size, image_size=wanted)
    check_image_size(protocol, model, size.image_size if testing.resize_test_imgs else None)
    return replace(config, folders=folders, testing=testing, test_size=size)


def with_radius(
    config: EvalConfig, given: Mapping[str, Any], protocol: Protocol, dataset: RetrievalDataset, *remedies: str
) -> EvalConfig:
    """Settings with the radius of a protocol, for a dataset that matches it.

    Raises DatasetError if the dataset does not match, ConfigError for a radius that contradicts the protocol.
    """
    radius_m = check_dataset(protocol, dataset, *remedies)
    if "positive_dist_threshold" in given:
        radius_m = config.testing.positive_dist_threshold
        if not has_radius(protocol, dataset, radius_m):
            raise ConfigError(
                f"--positive_dist_threshold {radius_m:g} contradicts {protocol.id}, whose radius is "
                f"{protocol.radius_text}. Omit the flag, or omit --protocol to evaluate it as custom."
            )
    return replace(config, testing=replace(config.testing, positive_dist_threshold=radius_m))


def protocol_record(
    protocol: Protocol | None,
    radius_m: float,
    *,
    similar: Protocol | None = None,
    deviations: Sequence[str] = (),
) -> dict[str, Any]:
    """The entry of results.json.

    similar: the protocol that an evaluation without one follows, see `matching_protocol`.
    deviations: what is wrong although the dataset matched or has no protocol, such as photos that cannot be opened.
    """
    if protocol is None:
        return {
            "name": CUSTOM,
            "version": None,
            "id": CUSTOM,
            "radius_m": radius_m,
            "similar": None if similar is None else similar.id,
            "deviations": [*deviations],
        }
    return {
        **asdict(protocol),
        "id": protocol.id,
        "radius_m": radius_m,
        "similar": None,
        "deviations": [*deviations],
    }
