"""Photos -> a store of descriptors, by any number of workers at once.

Each worker claims a shard that nobody computes, computes it, writes it, and takes the next one; no worker knows of the
others, so any of them may join, leave or be killed at any time.  A shard is always computed in the same batches,
whoever computes it.  So the files do not depend on the workers, as long as they have the same kind of processor, the
same number of threads and the same batch size.

Legend: I images, D descriptor dimension, W values of a stored row.  Side effects: reads photos, writes the store.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import cosplace
from cosplace.engines.engine import Engine
from cosplace.errors import CosPlaceError, DatasetError, ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.progress import Progress, format_count, no_progress
from cosplace.ranks import ALONE, Ranks
from cosplace.retrieval.descriptor_store import damaged_shards, finished_shards, recorded_photos, remove_store
from cosplace.retrieval.extraction import (
    TASK,
    ExtractionRun,
    ExtractionSettings,
    extract_shards,
    extraction_meta,
    int8_text,
    running_engine,
    sample_file_sizes,
)
from cosplace.retrieval.photo_changes import PhotoFiles, have_changed, photo_files
from cosplace.retrieval.shard_claims import PHOTOS_CLAIM, RENEW_S, STALE_S, ShardClaims, claim_name
from cosplace.retrieval.shards import (
    META,
    ShardsMeta,
    StoreMeta,
    UnreadableImage,
    check_same_extraction,
    read_meta,
    require_meta,
    shard_name,
    write_shard_file,
)
from cosplace.retrieval.store_files import StoreFiles, open_files
from cosplace.retrieval.stored_codes import NUM_SAMPLED, fit_codes, is_code, stored_rows
from cosplace.retrieval.stored_photos import PHOTOS, write_photos

POLL_S = 1.0  # between two looks at the shards of others, when nothing else is left to do

log = logging.getLogger("cosplace")


def extract_to_store(
    model: nn.Module | Engine,
    images: ImageList,
    address: str | Path,
    settings: ExtractionSettings,
    *,
    dtype: str = "float32",
    ranks: Ranks = ALONE,
    only: Sequence[int] | None = None,
    wait: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
    stale_s: float = STALE_S,
    renew_s: float = RENEW_S,
) -> int:
    """Compute what is missing in a store, together with all other workers; returns the number of photos computed here.

    settings: its shard_rows are those of the store.  dtype: float32, float16, int8 or binary.
    ranks: where in the list this worker begins.  only: numbers of shards that this worker may compute; None for all.
    wait: stay until the store is complete, to take over the shards of workers that are killed.
    about: names for people, stored in meta.json.  stale_s, renew_s: see `shard_claims`.
    Photos that cannot be opened are recorded with their shard, and do not stop it.

    A new store that fails before its first shard is finished is removed.

    Raises DatasetError when the store has descriptors of other photos, another model or other settings, and names the
    first one; ImageError if the photos are gone; CheckpointError, DeviceError, StorageError.
    """
    if not len(images):
        raise DatasetError("The list of photos is empty. Add photos to the folder.")
    settings = replace(settings, skip_unreadable=True, stored_dtype="float32" if is_code(dtype) else dtype)
    files = open_files(address)
    files.remove_unfinished()
    is_new = META not in files.sizes()
    with running_engine(model, settings) as engine:
        run = ExtractionRun(engine=engine, images=images, settings=settings, progress=no_progress)
        extraction = replace(
            extraction_meta(images, settings, engine.checksum, int8_text(engine)),
            dtype=dtype,
            version=cosplace.__version__,
        )
        meta = _open_meta(files, run, extraction, about or {})
        claims = ShardClaims(files, stale_s, renew_s)
        worker = _Worker(files, meta, extraction, run, claims, ranks=ranks, only=only, progress=progress)
        try:
            worker.work(wait)
        except CosPlaceError:
            worker.claims.release_all()
            if is_new and not any(name.startswith(("descriptors-", "claim-")) for name in files.sizes()):
                remove_store(files)
            raise
        finally:
            worker.claims.release_all()
    return worker.num_done


def _open_meta(files: StoreFiles, run: ExtractionRun, extraction: ShardsMeta, about: Mapping[str, Any]) -> StoreMeta:
    """What the store holds: that of its first worker, or of this one.  Raises DatasetError if this one differs."""
    stored = read_meta(files)
    if stored is None:
        if any(name.startswith("descriptors-") for name in files.sizes()):
            require_meta(files)  # raises
        dimension, codes = run.engine.dimension, None
        if is_code(extraction.dtype):
            codes = fit_codes(extraction.dtype, _sample(run))
        about = {**about, "batch_size": run.settings.batch_size, "engine": run.engine.kind.name}
        stored = StoreMeta(extraction=extraction, dimension=dimension, codes=codes, about=about)
        files.create(META, stored.text().encode())
        stored = require_meta(files)  # another worker may have been faster
    check_same_extraction(files, stored.extraction, extraction)
    before = stored.about.get("batch_size", run.settings.batch_size)
    if before != run.settings.batch_size:
        log.warning(
            "The store was begun with --infer_batch_size %s, now it is %s: the last digits of descriptors may differ.",
            before, run.settings.batch_size,
        )  # fmt: skip
    return stored


def _sample(run: ExtractionRun) -> np.ndarray:
    """Descriptors (n, D) of some evenly spaced photos, without those that cannot be opened."""
    images = run.images.subset(evenly_spaced(run.images, NUM_SAMPLED))
    sampled = replace(run, images=images)
    with closing(extract_shards(sampled, [range(len(images))], None)) as extracted:
        _, rows, failed = next(extracted)
    return np.delete(rows, [entry.index for entry in failed], axis=0)


class _Worker:
    """One worker: which shards it computes, and what it has done."""

    def __init__(
        self,
        files: StoreFiles,
        meta: StoreMeta,
        extraction: ShardsMeta,
        run: ExtractionRun,
        claims: ShardClaims,
        *,
        ranks: Ranks,
        only: Sequence[int] | None,
        progress: Progress,
    ) -> None:
        self.files, self.meta, self.extraction, self.progress, self.claims = files, meta, extraction, progress, claims
        self.run = replace(run, progress=self._report)
        num_shards = extraction.num_shards
        first = ranks.rank * num_shards // ranks.world_size
        order = [*range(first, num_shards), *range(first)]  # at the end, a rank helps the others
        allowed = None if only is None else frozenset(only)
        self.order = [number for number in order if allowed is None or number in allowed]
        self.photos: dict[int, PhotoFiles] = {}  # of the shards that this worker has begun
        self.num_done = 0  # photos of finished shards of this worker
        self.num_finished = 0  # photos of finished shards of all workers, when they were last counted
        self.done_at_count = 0  # photos of this worker at that time
        self.started = time.perf_counter()

    def work(self, wait: bool) -> None:
        """Compute shards until all are finished."""
        self._remove_damaged()
        self._remove_changed()
        while True:
            self._write_photos_once()
            # The shards of a worker: an iterator, as the next one is claimed when loading of its photos begins.
            with closing(extract_shards(self.run, self._claimed(), self.meta.dimension, self.num_done)) as extracted:
                for shard, rows, failed in extracted:
                    self._write(shard, rows, failed)
            sizes = self.files.sizes()
            if not self._missing(sizes) and PHOTOS in sizes:
                self._remove_left_claims(sizes)
                return
            if not wait:
                return
            self._report_waiting(sizes)
            time.sleep(POLL_S)

    def _remove_damaged(self) -> None:
        """Remove files that are not whole shards of this extraction, as a copy that was interrupted leaves them."""
        sizes = self.files.sizes()
        numbers = [number for number in self.order if shard_name(number) in sizes]
        for name, problem in damaged_shards(self.files, self.meta, sizes, numbers).items():
            log.warning("%s Extracting it again.", problem)
            self.files.remove(name)

    def _remove_changed(self) -> None:
        """Remove finished shards whose photos have changed; says so if their files may be copies."""
        sizes = self.files.sizes()
        numbers = [number for number in sorted(self.order) if shard_name(number) in sizes]
        num_changed = num_copied = 0
        for number, before in recorded_photos(self.files, self.meta, sizes, numbers).items():
            now = photo_files(self.run.images, self.extraction.shard(number))
            if have_changed(before, now, may_be_copies=True):
                self.files.remove(shard_name(number))
                num_changed += 1
            else:
                num_copied += have_changed(before, now)
        if num_changed:
            log.warning(
                "%s has descriptors of photos whose files have changed since (%d of %d shards). Extracting them again.",
                self.files.address, num_changed, self.extraction.num_shards,
            )  # fmt: skip
        if num_copied:
            log.warning(
                "%s: photos have other modification times than when they were described (%d of %d shards). They are "
                "treated as unchanged copies, because all sizes and some contents agree. If photos were edited, use a "
                "new store.",
                self.files.address, num_copied, self.extraction.num_shards,
            )  # fmt: skip

    def _claimed(self) -> Iterator[range]:
        while (number := self._claim_next()) is not None:
            shard = self.extraction.shard(number)
            self.photos[number] = photo_files(self.run.images, shard)
            yield shard

    def _claim_next(self) -> int | None:
        """Claim a shard that nobody computes, or else one whose worker has ended; None if there is none."""
        sizes = self.files.sizes()
        missing = self._missing(sizes)
        for is_claimed in (False, True):
            for number in missing:
                name = claim_name(number)
                if (name in sizes) != is_claimed or name in self.claims.held:
                    continue
                if self.claims.claim(name, exists=is_claimed):
                    if not self._exists(shard_name(number)):  # not finished since the files were listed
                        return number
                    self.claims.release(name)
        return None

    def _missing(self, sizes: dict[str, int]) -> list[int]:
        finished = finished_shards(self.meta, sizes)
        self.num_finished = sum(len(self.extraction.shard(number)) for number in finished)
        self.done_at_count = self.num_done
        done = frozenset(finished)
        return [number for number in self.order if number not in done]

    def _exists(self, name: str) -> bool:
        try:
            return bool(self.files.read(name, 0, 1))
        except FileNotFoundError:
            return False

    def _write(self, shard: range, rows: np.ndarray, failed: list[UnreadableImage]) -> None:
        number = shard.start // self.extraction.shard_rows
        if failed:
            self._check_photos_are_there()
            log.warning("%s", _about_failures(number, failed))
        stored = require_meta(self.files)
        if stored.digest != self.meta.digest:  # on object storage, workers that begin together may both write it
            check_same_extraction(self.files, stored.extraction, self.extraction)
            self.meta = stored
        write_shard_file(
            self.files, number, self.meta, rows=stored_rows(rows, self.meta), unreadable=failed,
            photos=self.photos.pop(number),
        )  # fmt: skip
        self.num_done += len(shard)
        self.claims.release(claim_name(number))

    def _check_photos_are_there(self) -> None:
        """Raise ImageError if no photo exists: a folder that is no longer mounted is not a folder of damaged photos."""
        if max(sample_file_sizes(self.run.images)) < 0:
            raise ImageError(
                f"The photos of {self.run.images.folder} are gone. Check whether the folder is mounted, then run the "
                f"same command again to continue."
            )

    def _write_photos_once(self) -> None:
        sizes = self.files.sizes()
        if PHOTOS not in sizes and self.claims.claim(PHOTOS_CLAIM, exists=PHOTOS_CLAIM in sizes):
            try:
                write_photos(self.files, self.run.images, self._report_reading)
            finally:
                self.claims.release(PHOTOS_CLAIM)

    def _remove_left_claims(self, sizes: dict[str, int]) -> None:
        """Remove claims of killed workers on shards that others have finished."""
        for name in sizes:
            if name.startswith("claim-") and name not in self.claims.held:
                self.files.remove(name)

    # --- progress ---

    def _report(self, _: str, done: int, total: int, note: str = "") -> None:
        """Renew the claims and report progress.  done: photos of this worker."""
        rate = done / max(time.perf_counter() - self.started, 1e-9)
        inside = done - self.num_done  # photos of the shard that is computed now, the first one that was claimed
        self.claims.renew(dict.fromkeys(list(self.claims.held)[:1], inside), rate)
        finished = self.num_finished + self.num_done - self.done_at_count
        self.progress(TASK, min(finished + inside, total), total, note)

    def _report_reading(self, task: str, done: int, total: int, note: str = "") -> None:
        self.claims.renew({}, 0.0)
        self.progress(task, done, total, note)

    def _report_waiting(self, sizes: dict[str, int]) -> None:
        num_missing = len(self._missing(sizes))
        note = f"waiting for {format_count(num_missing, 'shard')} of other workers"
        self.progress(TASK, self.num_finished, self.extraction.count, note)


def _about_failures(number: int, failed: Sequence[UnreadableImage]) -> str:
    return f"shard {number}: {format_count(len(failed), 'photo')} cannot be opened; the first: {failed[0].message}"
