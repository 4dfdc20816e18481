"""cosplace pairs, dataset export."""

import dataclasses
import logging
from typing import TYPE_CHECKING

from cosplace.cli.console import Bars, print_result
from cosplace.config.pairs import PAIR_RADIUS_M, DatasetExportConfig, PairsConfig
from cosplace.config.values import loading_workers
from cosplace.errors import ConfigError
from cosplace.progress import format_count

if TYPE_CHECKING:
    from cosplace.photos.image_list import ImageList
    from cosplace.retrieval.pairs import Pairs

MAX_TURN = 180.0  # degrees: no difference of headings is larger

log = logging.getLogger("cosplace")


def run_pairs(config: PairsConfig) -> None:
    """Find pairs in all ways that the flags ask for, and write them."""
    if config.radius_m is None and config.next_photos is None and config.model is None:
        config = dataclasses.replace(config, radius_m=PAIR_RADIUS_M)
    if config.queries_folder and config.next_photos is not None:
        raise ConfigError(
            "--next_photos pairs photos of one sequence and cannot be combined with --queries_folder. Use one of them."
        )

    from cosplace.photos.labels import with_positions
    from cosplace.photos.scanning import scan_images
    from cosplace.retrieval.pairs import common_folder, join_pairs, write_pairs

    bars, within = Bars(), config.queries_folder is None
    folders = [config.dataset] if within else [config.dataset / "database", config.dataset / str(config.queries_folder)]
    lists = [scan_images(folder, dataset=config.dataset, follow_outside=config.follow_outside) for folder in folders]
    if config.radius_m is not None:
        lists = [with_positions(images, bars) for images in lists]
    database, queries = lists[0], None if within else lists[1]
    parts = _positions_and_order(config, queries, database)
    if config.model is not None:
        parts.append(_similar(config, queries, database, bars))
    bars.close()
    pairs = join_pairs(parts, within=within)
    count = write_pairs(config.to, pairs, queries or database, database, common_folder(*lists))
    print_result(f"{config.to}: {format_count(count, 'pair')}; names are relative to {common_folder(*lists)}")


def _positions_and_order(config: PairsConfig, queries: "ImageList | None", database: "ImageList") -> "list[Pairs]":
    import numpy as np

    from cosplace.retrieval.pairs import (
        MAX_GAP_S,
        pairs_by_order,
        pairs_by_position,
        sequences_of,
        times_of,
        viewpoints_of,
    )

    parts = []
    if config.radius_m is not None:
        lists = [database] if queries is None else [database, queries]
        views = viewpoints_of(*lists)
        num_unknown = sum(int(np.isnan(one.headings).sum()) for one in views)
        if num_unknown and config.max_heading_difference < MAX_TURN:
            log.warning(
                "%s of %s without a heading: --max_heading_difference %g does not apply to their pairs.",
                f"{num_unknown:,}", format_count(sum(map(len, lists)), "photo"), config.max_heading_difference,
            )  # fmt: skip
        limits = config.radius_m, config.max_heading_difference, config.num_matches
        parts.append(pairs_by_position(views[-1] if queries is not None else None, views[0], *limits))
    if config.next_photos is not None:
        parts.append(pairs_by_order(sequences_of(database, times_of(database), MAX_GAP_S), config.next_photos))
    return parts


def _similar(config: PairsConfig, queries: "ImageList | None", database: "ImageList", bars: Bars) -> "Pairs":
    """Pairs by descriptors; photos that cannot be read have none."""
    import numpy as np

    from cosplace.device import choose_device
    from cosplace.models.opening import open_model
    from cosplace.retrieval.extraction import ExtractionSettings, extract
    from cosplace.retrieval.pairs import pairs_by_descriptor

    device = choose_device(config.device.device)
    model = open_model(str(config.model), trust_remote_code=config.device.trust_remote_code)
    settings = ExtractionSettings(
        image_size=config.image_size,
        batch_size=config.encoding.infer_batch_size,
        num_workers=loading_workers(config.encoding.num_workers),
        device=device,
        skip_unreadable=True,
    )
    found = [extract(model, images, settings, progress=bars) for images in (database, queries) if images is not None]
    rows = [np.flatnonzero(one.readable) for one in found]
    for images, one in zip((database, queries), found, strict=False):
        if one.unreadable and images is not None:
            log.warning(
                "%s: %s photos cannot be read and have no pairs by descriptor.",
                images.folder,
                f"{len(one.unreadable):,}",
            )
    readable = [np.asarray(one.descriptors[own]) for one, own in zip(found, rows, strict=True)]
    pairs = pairs_by_descriptor(
        readable[1] if queries is not None else None, readable[0], config.num_matches, str(device)
    )
    return np.stack([rows[-1][pairs[:, 0]], rows[0][pairs[:, 1]]], 1)


def run_dataset_export(config: DatasetExportConfig) -> None:
    """Export a dataset, and print what was written."""
    from cosplace.importing.table_export import export_dataset

    bars = Bars()
    result = export_dataset(
        config.dataset, config.to, config.format, link=config.link, follow_outside=config.follow_outside, progress=bars
    )
    bars.close()
    left_out = f"; {result.num_left_out:,} left out: {result.why}" if result.num_left_out else ""
    print_result(f"{config.to}: {format_count(result.num_written, 'photo')}{left_out}")
