"""The teacher of a distillation: a model whose descriptors are computed once and kept on disk.

    <cache>/<key>/      descriptors of a list of photos, see `retrieval.shards`

The key is a checksum of the teacher's structure and weights, its image size, precision and type, and of the name, size
and time of change of each photo.  So a teacher or photos that have changed get a folder of their own, and an
interrupted computation continues after its last finished shard.

Legend: I photos, D dimensions of the teacher, d of the student.  Side effects: reads photos, writes the cache.
"""

import hashlib
import json
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.assessment.provenance import describe_model, usual_image_size
from cosplace.config.defaults import MAX_FITTED_PHOTOS
from cosplace.config.distillation import DistillConfig
from cosplace.config.values import loading_workers
from cosplace.errors import ConfigError, DatasetError, one_line
from cosplace.models.inference import find_dimension
from cosplace.models.opening import open_model
from cosplace.models.reduction import Reduction, fit
from cosplace.models.weight_files import model_checksum
from cosplace.photos.image_list import ImageList
from cosplace.progress import Progress, no_progress, part_of
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings, evaluate_descriptors
from cosplace.retrieval.extraction import Extraction, ExtractionSettings, extract
from cosplace.retrieval.shards import META, Descriptors
from cosplace.storage import cache_folder

CACHE = "teachers"
SHARD_ROWS = 1024  # a large network on a CPU describes as many photos in some minutes
LENGTH_TOLERANCE = 0.02  # of unit vectors in 16 bits
UNKNOWN = "unknown"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model to learn from."""

    name: str  # as given; a file without its folders
    network: nn.Module
    dimension: int  # D
    checksum: str  # SHA-256 of structure and tensors, as an index records it
    licence: str
    settings: ExtractionSettings
    cache: Path

    def describe(self, images: ImageList, progress: Progress = no_progress) -> Extraction:
        """Descriptors (I, D) of photos: from the cache, or computed and kept there.  Raises what `extract` raises."""
        folder = self.cache / self.key(images)
        try:
            found = extract(self.network, images, self.settings, to=folder, progress=progress)
        except DatasetError:
            if not folder.is_dir() or _is_readable(folder):
                raise  # it is about the photos
            found = None
        if found is None or not _are_units(found):
            log.warning("%s is damaged: the descriptors of the teacher are computed again", folder)
            del found
            shutil.rmtree(folder)
            found = extract(self.network, images, self.settings, to=folder, progress=progress)
        return found

    def evaluate(
        self, dataset: RetrievalDataset, settings: EvaluationSettings, progress: Progress = no_progress
    ) -> Evaluation:
        """Evaluate the teacher on a dataset, at its own image size.  settings: those of the student."""
        num_database = len(dataset.database)
        total = num_database + len(dataset.queries)
        task = f"teacher on {dataset.name}"
        database = self.describe(dataset.database, part_of(progress, task, 0, total))
        queries = self.describe(dataset.queries, part_of(progress, task, num_database, total))
        return evaluate_descriptors(database, queries, dataset, replace(settings, extraction=self.settings))

    def key(self, images: ImageList) -> str:
        """What the descriptors depend on, as 32 hexadecimal digits."""
        settings = self.settings
        record = (self.checksum, settings.image_size, str(settings.autocast), settings.stored_dtype)
        digest = hashlib.sha256(json.dumps(record).encode())
        for row in range(len(images)):
            name = images.name(row)
            digest.update(os.fsencode(name) + b"\n")
            with suppress(OSError):  # a photo that cannot be read is reported when it is opened
                status = os.stat(images.folder / name)  # noqa: PTH116 - much faster than pathlib
                digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
        return digest.hexdigest()[:32]

    def card_entries(self) -> dict[str, str]:
        """What the model card of a student says about its teacher."""
        return {
            "teacher": one_line(self.name),
            "teacher_checksum": self.checksum,
            "teacher_dim": str(self.dimension),
            "teacher_licence": one_line(self.licence),
            "teacher_note": "Learned from the outputs of the teacher: check whether the license of the teacher also "
            "covers this model before you publish or sell it.",
        }


def _is_readable(folder: Path) -> bool:
    """Whether the record of cached descriptors can be read."""
    try:
        json.loads((folder / META).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _are_units(found: Extraction) -> bool:
    """Whether all descriptors have length 1, as those of a network have; damaged files do not."""
    for first in range(0, len(found.readable), SHARD_ROWS):
        rows = np.asarray(found.descriptors[first : first + SHARD_ROWS], np.float32)
        lengths = np.linalg.norm(rows[found.readable[first : first + SHARD_ROWS]], axis=1)
        if not (np.abs(lengths - 1) < LENGTH_TOLERANCE).all():  # also False for NaN
            return False
    return True


def open_teacher(config: DistillConfig, device: torch.device, autocast: torch.dtype | None) -> Teacher:
    """Open the teacher.  Raises what `open_model` raises."""
    knobs, model = config.teaching, config.teacher
    network = open_model(model, trust_remote_code=knobs.trust_remote_code, accept_license=knobs.accept_license)
    network = network.to(device).eval()
    settings = ExtractionSettings(
        image_size=knobs.teacher_image_size or usual_image_size(model),
        batch_size=config.infer_batch_size,
        num_workers=loading_workers(config.running.num_workers),
        loader=config.running.loader,
        device=device,
        autocast=autocast,
        stored_dtype=knobs.teacher_dtype,
        skip_unreadable=True,
        shard_rows=SHARD_ROWS,
    )
    return Teacher(
        name=Path(model).name if Path(model).is_file() else model,
        network=network,
        dimension=find_dimension(network, device),
        checksum=model_checksum(network),
        licence=licence_of(model, network),
        settings=settings,
        cache=Path(knobs.teacher_cache) if knobs.teacher_cache else cache_folder(CACHE),
    )


def licence_of(model: str, network: nn.Module) -> str:
    """What is known about the license of a model: from its card, else from the zoo."""
    record = describe_model(model, network)
    card, licenses = record["card"], record["licenses"]
    if text := card.get("licence") or card.get("teacher_licence"):
        return text
    known = [f"{what}: {text}" for what, text in licenses.items() if text != UNKNOWN]
    return "; ".join(known) or UNKNOWN


# --- targets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the student learns for each training photo."""

    descriptors: Descriptors  # (I, D) of the teacher, in memory or on disk
    reduction: Reduction | None  # to the dimension of the student; None if they are equal, or not compared

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Unit descriptors (B, D) float32 of the teacher for some photos, and the same in d dimensions."""
        stored = np.asarray(self.descriptors[rows.numpy()], np.float32)
        descriptors = functional.normalize(torch.from_numpy(stored).to(device), dim=1)  # 16-bit ones have other lengths
        return descriptors, descriptors if self.reduction is None else self.reduction(descriptors)


def check_dimensions(student: int, teacher: int, cosine_weight: float) -> None:
    """Raise ConfigError for a student with more dimensions than its teacher, unless only similarities are learned."""
    if student > teacher and cosine_weight:
        raise ConfigError(
            f"--fc_output_dim {student} is more than the {teacher} dimensions of the teacher, which cannot teach the "
            f"others. Use --fc_output_dim {teacher} or less, or learn only the similarities of photos with "
            f"--cosine_weight 0."
        )


def fit_reduction_of_teacher(descriptors: Descriptors, rows: np.ndarray, dims: int) -> Reduction | None:
    """Map of a teacher (D) to the d dimensions of a student, fitted on training photos; None if D = d.

    descriptors: (I, D).  rows: the photos to fit on, of which up to MAX_FITTED_PHOTOS are used.
    The map keeps the d directions of largest mean square (PCA without subtracting the mean).  Of all linear maps to d
    dimensions, it changes the similarities t_i . t_j of the photos least in the mean square (Eckart and Young, "The
    approximation of one matrix by another of lower rank", 1936); for unit vectors, similarities are distances.
    Raises ConfigError if there are too few photos.
    """
    dimension = descriptors.shape[1]
    if dims >= dimension:
        return None
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_FITTED_PHOTOS)).astype(np.int64))]
    if len(sample) <= dims:
        raise ConfigError(
            f"{len(sample)} photos are too few for a student of {dims} dimensions, fewer than the {dimension} of its "
            f"teacher: the map between them is fitted on the photos. Use more than {dims} photos, or a smaller "
            f"--fc_output_dim."
        )
    pieces = (
        np.asarray(descriptors[sample[first : first + SHARD_ROWS]], np.float32)
        for first in range(0, len(sample), SHARD_ROWS)
    )
    return fit(pieces, dims, "pca_uncentered")
