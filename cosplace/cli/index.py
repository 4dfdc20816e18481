"""cosplace index build, add, sync, calibrate."""

import dataclasses
import logging
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, on_interrupt, print_result, print_times
from cosplace.cli.index_maintenance import calibration_text, print_info
from cosplace.config.index import (
    IndexAddConfig,
    IndexBuildConfig,
    IndexCalibrateConfig,
    IndexSyncConfig,
)
from cosplace.config.values import loading_workers
from cosplace.errors import CosPlaceError, none_readable
from cosplace.photos.paths import path_text
from cosplace.progress import Stopwatch, format_count

if TYPE_CHECKING:
    from cosplace.engines.encoder import Encoder
    from cosplace.index.approximate import BuildSearch
    from cosplace.index.indexing import AddPhotos, IndexingResult
    from cosplace.index.photo_index import PhotoIndex
    from cosplace.localization.confidence import Calibration
    from cosplace.models.views import PhotoViews
    from cosplace.photos.image_list import ImageList

MAX_UNREADABLE_LINES = 10
CONTINUE = "Run the same command again to continue."

log = logging.getLogger("cosplace")


def run_build(config: IndexBuildConfig) -> None:
    """Build an index of the photos of a folder, and calibrate it."""
    from cosplace.index.building import build_index
    from cosplace.index.sources import find_photos, require_positions

    # Problems with the folder are found before the model is loaded.
    part = _part_of_build(config)
    photos = find_photos(config.dataset, part=part, follow_outside=config.follow_outside)
    if not config.without_positions:
        require_positions(photos, config.dataset)
    watch = Stopwatch()
    with watch.of("loading the model"):
        encoder = _load_model(config, photos)
    if config.image_size is None and (note := _size_note(config.model, photos)):
        log.info("%s", note)
    bars = Bars()
    with on_interrupt(CONTINUE), _builder(config) as builder:
        result = build_index(
            photos,
            encoder,
            config.to,
            dataset=config.dataset,
            part=part,
            settings=config.storage,
            source=config.source,
            batch_size=config.encoding.infer_batch_size,
            num_workers=builder.num_workers,
            progress=bars,
            add=builder.add,
        )
        bars.close()
        _print_counts(result)
        _require_readable(result)
        for name, seconds in result.spent.items():
            watch.add(name, seconds)
        _finish(config.to, encoder, bars, watch, calibrate=not config.no_calibrate, build=builder.build)
        print_times(watch.seconds)
    if result.num_added or result.num_known:
        index = shlex.quote(config.to)
        print_result(f"Next: cosplace locate PHOTO --index {index}, or cosplace serve --index {index}")


def _load_model(config: IndexBuildConfig, photos: "ImageList") -> "Encoder":
    from cosplace.engines.encoder import load_model

    return load_model(
        config.model,
        image_size=config.image_size,
        device=config.device.device,
        reduce_to=config.reduce_to,
        trust_remote_code=config.device.trust_remote_code,
        views=_views(config, photos),
        accept_license=config.accept_license,
        engine="torch" if config.engine == "ray" else config.engine,
        photos=photos,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """What builds an index; None: this process."""

    num_workers: int  # that load photos, of each process that describes them
    add: "AddPhotos | None" = None
    build: "BuildSearch | None" = None


@contextmanager
def _builder(config: IndexBuildConfig) -> Generator[_Builder]:
    """With --engine ray, the cluster is open within."""
    num_workers = config.encoding.num_workers
    if config.engine != "ray":
        yield _Builder(num_workers=loading_workers(num_workers))
        return
    from cosplace.index.cluster_building import add_photos_on_cluster
    from cosplace.index.cluster_search import PACKAGES, build_on_cluster
    from cosplace.ray_cluster import open_cluster

    with open_cluster(PACKAGES) as cluster:
        # By default, there is a process for each core.
        yield _Builder(
            num_workers=1 if num_workers is None else num_workers,
            add=partial(add_photos_on_cluster, cluster=cluster),
            build=partial(build_on_cluster, cluster=cluster),
        )


def _part_of_build(config: IndexBuildConfig) -> str | None:
    """--part, also of an index that was begun with it."""
    from cosplace.index.parts import choose_part
    from cosplace.index.photo_index import open_index
    from cosplace.index.store import has_index

    if not has_index(config.to):
        return config.part
    with open_index(config.to) as index:
        return choose_part(index, config.dataset, config.part)


def _size_note(model: str, photos: "ImageList") -> str:
    """A sentence if the photos, which keep their size, have another one than those of training; "" if not known.

    The card of a model has the size of training.  It is not used by itself, as `cosplace eval` does not use it either.
    """
    from cosplace.models.weight_files import read_card
    from cosplace.photos.opening import open_image

    beside = Path(model).with_suffix(".safetensors")
    try:
        size = read_card(beside).get("image_size", "") if Path(model).is_file() and beside.is_file() else ""
        side = min(open_image(photos.path(0)).shape[-2:])
    except CosPlaceError:  # another command reports it
        return ""
    if not size.isdecimal() or int(size) == side:
        return ""
    return (
        f"The model was trained with photos of {size} pixels. Yours have {side} and keep their size; --image_size "
        f"{size} resizes them. Compare both with `cosplace eval`."
    )


def _views(config: IndexBuildConfig, photos: "ImageList") -> "PhotoViews":
    from cosplace.models.views import PhotoViews
    from cosplace.photos.crops import CENTRAL_CROP, WITH_SIZE

    size, shape = config.query_size, None
    if size is None and config.query_policy in WITH_SIZE:
        size = config.image_size
    if config.query_policy == CENTRAL_CROP and size is None:
        from cosplace.retrieval.query_views import database_shape

        shape = database_shape(photos, config.image_size)
    return PhotoViews(
        scales=config.scales, flip=config.flip, query_policy=config.query_policy, query_size=size, query_shape=shape
    )


def run_add(config: IndexAddConfig) -> None:
    """Add the photos of a folder to an index."""
    from cosplace.index.building import add_photos
    from cosplace.index.parts import choose_part, record_part
    from cosplace.index.photo_index import open_index
    from cosplace.index.sources import find_photos, require_positions

    bars = Bars()
    with on_interrupt(CONTINUE):
        with open_index(config.index, write=True, roots=config.root) as index:
            part = choose_part(index, config.photos, config.part)
            photos = find_photos(config.photos, part=part, follow_outside=config.follow_outside)
            if not config.without_positions:
                require_positions(photos, config.photos)
            record_part(index, config.photos, photos.folder, part)
            encoder = _open_encoder(index, config)
            result = add_photos(
                index,
                encoder,
                photos,
                check_content=config.check_content,
                **_encoding_options(config, photos.folder, bars),
            )
            bars.close()
            _print_counts(result)
            _require_readable(result)
        _finish(config.index, encoder, bars, calibrate=False)


def run_sync(config: IndexSyncConfig) -> None:
    """Make an index agree with a folder."""
    from cosplace.index.photo_index import open_index
    from cosplace.index.syncing import sync_folder

    bars = Bars()
    encoder = None
    with on_interrupt(CONTINUE):
        with open_index(config.index, write=not config.dry_run, roots=config.root) as index:
            if not config.dry_run:
                encoder = _open_encoder(index, config)
            result = sync_folder(
                index,
                encoder,
                config.photos,
                allow_many=config.yes,
                dry_run=config.dry_run,
                part=config.part,
                without_positions=config.without_positions,
                follow_outside=config.follow_outside,
                check_content=config.check_content,
                **_encoding_options(config, config.photos.resolve(), bars),
            )
            bars.close()
        if config.dry_run:
            print_result("Nothing was changed. Without --dry_run:")
        if result.indexing is not None:
            _print_counts(result.indexing, is_plan=config.dry_run)
            _require_readable(result.indexing)
        print_result(f"{format_count(result.num_removed, 'photo')} removed (no longer in the dataset)")
        if encoder is not None:
            _finish(config.index, encoder, bars, calibrate=False)


def _open_encoder(index: "PhotoIndex", config: IndexAddConfig) -> "Encoder":
    from cosplace.localization.localizer import open_index_encoder

    device = config.device
    return open_index_encoder(
        index,
        device.device,
        trust_remote_code=device.trust_remote_code,
        model=config.model,
        engine=config.engine,
    )


def _encoding_options(config: IndexAddConfig, folder: Path, bars: Bars) -> dict[str, Any]:
    """How `add_photos` describes photos."""
    return {
        "source": path_text(config.source or folder),
        "batch_size": config.encoding.infer_batch_size,
        "num_workers": loading_workers(config.encoding.num_workers),
        "progress": bars,
    }


def _print_counts(result: "IndexingResult", *, is_plan: bool = False) -> None:
    """Print what happened to each of the photos that were given, or would happen; and which could not be read."""
    per_second = result.num_added / max(result.seconds, 1e-9)
    parts = [
        f"{format_count(result.num_added, 'photo')} added"
        + (f" ({per_second:.1f} per second)" if result.num_added and not is_plan else "")
    ]
    if result.num_known:
        moved = f" ({result.num_moved:,} of them at another path)" if result.num_moved else ""
        parts.append(f"{format_count(result.num_known, 'was', 'were')} already in the index{moved}")
    if result.num_copies:
        parts.append(format_count(result.num_copies, "is a copy of another", "are copies of others"))
    if result.unreadable:
        parts.append(f"{len(result.unreadable):,} could not be read")
    total = f": {format_count(result.num_given, 'photo')} in total" if len(parts) > 1 else ""
    replace = "replaces an older version" if result.num_replaced == 1 else "replace older versions"
    replaced = f"; {result.num_replaced:,} {replace}" if result.num_replaced else ""
    print_result(", ".join(parts) + total + replaced)
    if result.num_without_position:
        have = "has no position: it can be a match, but not an answer"
        if result.num_without_position > 1:
            have = "have no position: they can be matches, but not answers"
        print_result(f"{result.num_without_position:,} of those added {have}")
    if result.unreadable:
        print_result("not added:")
        for line in result.unreadable[:MAX_UNREADABLE_LINES]:
            print_result(f"  {line}")
        if len(result.unreadable) > MAX_UNREADABLE_LINES:
            print_result(f"  ... and {len(result.unreadable) - MAX_UNREADABLE_LINES} more")


def _require_readable(result: "IndexingResult") -> None:
    """Raise ImageError if none of the photos that were given could be read."""
    if result.unreadable and len(result.unreadable) == result.num_given:
        raise none_readable(result.unreadable)


def _finish(
    address: str,
    encoder: "Encoder",
    bars: Bars,
    watch: Stopwatch | None = None,
    *,
    calibrate: bool,
    build: "BuildSearch | None" = None,
) -> None:
    """Prepare the search, calibrate, and print what the index contains.

    watch: gets the time of it.  build: builds the search index.
    """
    from cosplace.index.photo_index import open_index
    from cosplace.localization.stored_calibration import needs_recalibration, should_calibrate_again

    watch = watch or Stopwatch()
    with open_index(address, write=True) as index:
        with watch.of("writing"):
            index.update_search(bars, build=build)
        bars.close()
        failed = False
        if (calibrate and len(index)) or should_calibrate_again(index):
            try:
                with watch.of("calibration"):
                    _calibrate(index, encoder, bars, seed=0)
            except CosPlaceError as error:  # such as an index that is too small
                log.warning("The index is complete, but its confidence is not calibrated. %s", error)
                failed = True
            bars.close()
        elif needs_recalibration(index):
            print_result(
                "The size of the index has changed a lot since its calibration: run `cosplace index calibrate`."
            )
        print_info(index.info(), with_reason=not failed)


def run_calibrate(config: IndexCalibrateConfig) -> None:
    """Calibrate the confidence of an index."""
    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import open_index_encoder
    from cosplace.report.calibration_page import calibration_error_text, capture_text, overconfidence_text, trained_text

    bars = Bars()
    with open_index(config.index, write=True, roots=config.root) as index:
        encoder = open_index_encoder(
            index,
            config.device.device,
            trust_remote_code=config.device.trust_remote_code,
            model=config.model,
            engine=config.engine,
        )
        calibration, page = _calibrate(
            index, encoder, bars, seed=config.seed, queries=config.queries, unlabeled=config.unlabeled
        )
        bars.close()
        error = calibration_error_text(calibration)
        print_result(f"{index.address}: {calibration_text(calibration.about)}; expected calibration error {error}")
        for text_of in (overconfidence_text, trained_text, capture_text):
            if text := text_of(calibration.about):
                print_result(f"  {text}")
        if page:
            print_result(f"report: {page}")


def _calibrate(
    index: "PhotoIndex",
    encoder: "Encoder",
    bars: Bars,
    *,
    seed: int,
    queries: Path | None = None,
    unlabeled: Path | None = None,
) -> "tuple[Calibration, Path | None]":
    """Return the calibration of an index, and its report page; an index on object storage has none."""
    from cosplace.localization.calibration import calibrate
    from cosplace.report.calibration_page import write_calibration_page

    calibration = calibrate(index, encoder=encoder, queries=queries, unlabeled=unlabeled, seed=seed, progress=bars)
    return calibration, write_calibration_page(calibration, index.address)
