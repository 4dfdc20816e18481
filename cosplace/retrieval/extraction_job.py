"""Model, photos and settings of `cosplace extract`, in this process or in one of a cluster.

Side effects: reads the model and lists the photos.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cosplace.config.extraction import ExtractConfig
from cosplace.config.values import loading_workers
from cosplace.device import amp_type, choose_device
from cosplace.engines.engine import Engine
from cosplace.engines.opening import open_engine
from cosplace.models.opening import open_model
from cosplace.photos.image_list import ImageList
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress
from cosplace.ranks import ALONE, Ranks
from cosplace.retrieval.dataset import dataset_lists
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.shards import read_meta
from cosplace.retrieval.store_extraction import extract_to_store
from cosplace.retrieval.store_files import open_files


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionJob:
    """What a process needs to compute shards."""

    config: ExtractConfig
    model: nn.Module
    engine: Engine | None  # that runs the model; None: PyTorch, as the settings say
    images: ImageList
    settings: ExtractionSettings

    def run(self, ranks: Ranks = ALONE, progress: Progress = no_progress, **options: Any) -> int:
        """Compute shards; returns the number of photos.  options: those of `extract_to_store`."""
        return extract_to_store(
            self.engine or self.model,
            self.images,
            self.config.to,
            self.settings,
            dtype=self.config.storage.dtype,
            ranks=ranks,
            progress=progress,
            **options,
        )


def list_photos(config: ExtractConfig) -> ImageList:
    """The photos, sorted.  Raises DatasetError for a folder that is missing or has no photos, or not this part."""
    assert config.dataset is not None
    if config.part is None:
        return scan_images(config.dataset, dataset=config.dataset, follow_outside=config.follow_outside)
    lists = dataset_lists(config.dataset, config.queries_folder, follow_outside=config.follow_outside)
    return lists.database if config.part == "database" else lists.queries


def open_job(config: ExtractConfig, images: ImageList | None = None, device: str | None = None) -> ExtractionJob:
    """Open the model.  images: None lists them; device: in place of --device.

    Raises what `list_photos`, `open_model` and `open_engine` raise, and DeviceError.
    """
    assert config.model is not None
    images = list_photos(config) if images is None else images
    chosen = choose_device(device or config.device.device)
    model = open_model(
        config.model,
        reduce_to=config.reduce_to,
        trust_remote_code=config.device.trust_remote_code,
        accept_license=config.accept_license,
    )
    settings = ExtractionSettings(
        image_size=config.image_size,
        scales=config.scales,
        flip=config.flip,
        batch_size=config.encoding.infer_batch_size,
        num_workers=loading_workers(config.encoding.num_workers),
        device=str(chosen),
        autocast=amp_type(config.use_amp16, "auto", chosen),
        shard_rows=rows_of_shard(config, len(images)),
    )
    engine = None
    if config.engine not in ("torch", "ray"):
        engine = open_engine(
            config.engine,
            model,
            image_size=config.image_size,
            device=device or config.device.device,
            scales=config.scales,
            flip=config.flip,
            photos=images,
            batch_size=settings.batch_size,
        )
    return ExtractionJob(config=config, model=model, engine=engine, images=images, settings=settings)


def rows_of_shard(config: ExtractConfig, num_photos: int) -> int:
    """Photos per shard: --shard_rows; by default those of the store, if it exists."""
    stored = read_meta(open_files(config.to)) if config.storage.shard_rows is None else None
    return config.storage.rows_of_shard(num_photos) if stored is None else stored.extraction.shard_rows


def shard_numbers(num_photos: int, shard_rows: int) -> Sequence[int]:
    """Numbers of all shards of a list of photos."""
    return range(-(-num_photos // shard_rows))
