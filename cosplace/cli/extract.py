"""cosplace extract."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, on_interrupt, print_json, print_result
from cosplace.config.extraction import ExtractConfig
from cosplace.config.values import to_values
from cosplace.errors import DatasetError, none_readable
from cosplace.photos.paths import printable
from cosplace.progress import format_bytes, format_count, format_duration, no_progress
from cosplace.ranks import Ranks, local_device, ranks_from_environment

if TYPE_CHECKING:
    from torch import nn

    from cosplace.retrieval.descriptor_store import StoreState

MAX_UNREADABLE_LINES = 10
MAX_CLAIM_LINES = 20
CONTINUE = "Run the same command again to continue."

log = logging.getLogger("cosplace")


def run_extract(config: ExtractConfig) -> None:
    """Compute the descriptors of photos into a store, or check one."""
    if config.status:
        _print_status(config)
        return
    ranks = ranks_from_environment()
    if config.verify:
        _verify(config, ranks)
        if config.dataset is None:
            return
    with on_interrupt(CONTINUE):
        _extract(config, ranks)


# --- extraction ------------------------------------------------------------------------------------------------------


def _extract(config: ExtractConfig, ranks: Ranks) -> None:
    import torch

    from cosplace.retrieval.descriptor_store import remove_store, store_state
    from cosplace.retrieval.extraction_job import list_photos, open_job
    from cosplace.retrieval.store_files import open_files

    bars = Bars()
    progress = bars if ranks.is_first else no_progress
    images = list_photos(config)  # problems with the photos are found before the model is loaded
    if config.retry_unreadable and ranks.is_first:
        _remove_unreadable(config)
    device = local_device(config.device.device, torch.cuda.device_count())
    started = time.perf_counter()
    job = open_job(config, images, device)
    about = _about(config, job.model)
    if config.engine == "ray":
        from cosplace.retrieval.ray_extraction import extract_by_ray

        num_done = extract_by_ray(config, _values(config), images, about=about, progress=progress)
    else:
        num_done = job.run(ranks, progress, about=about)
    bars.close()
    seconds = time.perf_counter() - started
    if ranks.world_size > 1:
        log.info("rank %d: %s", ranks.rank, _speed_text(num_done, seconds))
    if ranks.is_first:
        state = store_state(config.to)
        _print_store(state)
        print_result(_speed_text(num_done, seconds))
        if len(state.unreadable) == state.num_photos:
            remove_store(open_files(config.to))
            raise none_readable([entry.message for entry in state.unreadable])


def _values(config: ExtractConfig) -> dict[str, Any]:
    """The settings for a task of a cluster: paths as seen from any folder, and workers as for one core."""
    from cosplace.engines.encoder import model_name

    assert config.dataset is not None and config.model is not None
    store = config.to if "://" in config.to else str(Path(config.to).resolve())
    num_workers = 1 if config.encoding.num_workers is None else config.encoding.num_workers
    paths = {"dataset": config.dataset.resolve(), "to": store, "model": model_name(config.model)}
    return to_values(config) | paths | {"num_workers": num_workers}


def _about(config: ExtractConfig, model: "nn.Module") -> dict[str, Any]:
    """What meta.json says for people, and what results.json will say of the model."""
    from cosplace.assessment.provenance import describe_model
    from cosplace.engines.encoder import model_name

    assert config.model is not None
    record = describe_model(config.model, model, reduced_to=config.reduce_to)
    return {"model": model_name(config.model), "model_record": record}


def _speed_text(num_done: int, seconds: float) -> str:
    if not num_done:
        return "nothing was left to compute"
    rate = f"{num_done / seconds:.1f} per second"
    return f"computed here: {format_count(num_done, 'photo')} in {format_duration(seconds)} ({rate})"


def _remove_unreadable(config: ExtractConfig) -> None:
    """Remove shards with photos that could not be opened, so that they are computed again."""
    from cosplace.retrieval.descriptor_store import remove_files, store_state
    from cosplace.retrieval.shards import shard_name

    state = store_state(config.to)
    rows = state.meta.extraction.shard_rows
    numbers = sorted({entry.index // rows for entry in state.unreadable})
    remove_files(config.to, [shard_name(number) for number in numbers])
    if numbers:
        log.info("%s have photos that could not be opened: computing them again", format_count(len(numbers), "shard"))


# --- status and checksums --------------------------------------------------------------------------------------------


def _print_status(config: ExtractConfig) -> None:
    from cosplace.retrieval.descriptor_store import store_state

    state = store_state(config.to)
    if config.json:
        print_json(_status_values(state))
        return
    _print_store(state)
    for one in state.claims[:MAX_CLAIM_LINES]:
        kind = "active" if one.is_active else "ended or hung: another worker takes its shard over"
        print_result(
            f"  shard {one.number:,}: {printable(one.claim.worker)}, {one.claim.done:,} photos, "
            f"{one.claim.photos_per_s:.1f} per second, {format_duration(one.age_s)} ago ({kind})"
        )
    if len(state.claims) > MAX_CLAIM_LINES:
        print_result(f"  ... and {len(state.claims) - MAX_CLAIM_LINES} more")
    if state.is_complete:
        return
    left = state.seconds_left
    if left is None:
        active = any(one.is_active for one in state.claims)
        print_result("rate: not known yet" if active else "no worker is active; run the same command again to continue")
    else:
        print_result(f"rate: {state.photos_per_s:.1f} photos per second; time left: {format_duration(left)}")


def _print_store(state: "StoreState") -> None:
    meta = state.meta
    share = 100 * state.num_photos_finished / state.num_photos
    print_result(
        f"{state.address}: {state.num_photos_finished:,} of {format_count(state.num_photos, 'photo')} ({share:.0f}%), "
        f"{state.num_finished:,} of {format_count(state.num_shards, 'shard')}; {meta.dimension:,} dimensions, "
        f"{meta.extraction.dtype}, {format_bytes(state.num_bytes)}"
    )
    if state.unreadable:
        were = "was" if len(state.unreadable) == 1 else "were"
        print_result(f"{format_count(len(state.unreadable), 'photo')} could not be opened and {were} left out:")
        for entry in state.unreadable[:MAX_UNREADABLE_LINES]:
            print_result(f"  {printable(entry.message)}")
        if len(state.unreadable) > MAX_UNREADABLE_LINES:
            print_result(f"  ... and {len(state.unreadable) - MAX_UNREADABLE_LINES} more; --status --json has all")


def _status_values(state: "StoreState") -> dict[str, Any]:
    return {
        "store": state.address,
        "complete": state.is_complete,
        "num_photos": state.num_photos,
        "num_photos_finished": state.num_photos_finished,
        "num_shards": state.num_shards,
        "num_shards_finished": state.num_finished,
        "dimension": state.meta.dimension,
        "dtype": state.meta.extraction.dtype,
        "num_bytes": state.num_bytes,
        "photos_per_s": state.photos_per_s,
        "seconds_left": state.seconds_left,
        "claims": [
            {
                "shard": one.number,
                "active": one.is_active,
                "age_s": round(one.age_s, 1),
                **dataclasses.asdict(one.claim),
            }
            for one in state.claims
        ],
        "unreadable": [dataclasses.asdict(entry) for entry in state.unreadable],
    }


def _verify(config: ExtractConfig, ranks: Ranks) -> None:
    """Compare checksums, and remove damaged files.  Raises DatasetError for these, unless they are computed again."""
    from cosplace.retrieval.descriptor_store import remove_files, verify_store

    bars = Bars()
    found = verify_store(config.to, ranks, bars if ranks.is_first else no_progress)
    bars.close()
    remove_files(config.to, found.damaged)
    if config.json:
        print_json(dataclasses.asdict(found))
    else:
        print_result(f"{config.to}: {format_count(found.num_checked, 'shard')} compared with their checksums")
        if found.num_unchecked:
            print_result(f"  without checksums, from an earlier version: {format_count(found.num_unchecked, 'shard')}")
        if found.num_missing:
            print_result(f"  missing: {format_count(found.num_missing, 'shard')}")
        for line in found.problems:
            print_result(f"  {line}")
    if found.damaged and config.dataset is None:
        raise DatasetError(
            f"{format_count(len(found.damaged), 'damaged file')} of {config.to} removed. Run the same `cosplace "
            f"extract` again to compute them again."
        )
