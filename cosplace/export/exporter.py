"""From a model's name to a checked file.  Side effects: reads the model and photos, writes one file or none."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cosplace import __version__
from cosplace.errors import ConfigError
from cosplace.export.deployable import Portable, check_exportable, smallest_side
from cosplace.export.onnx_format import add_facts, opset_of, write_onnx
from cosplace.export.quantization import quantize, sized, spread_photos
from cosplace.export.runtime import UINT8_INPUT, open_exported
from cosplace.export.settings import ExportSettings, check_extra, check_target
from cosplace.export.torch_program import write_program
from cosplace.export.verification import (
    NUM_PHOTOS,
    SIZES,
    Check,
    Difference,
    Progress,
    batches_of,
    compare_recalls,
    find_differences,
    made_photos,
    measure_ms,
)
from cosplace.models.encoder import find_dimension, load_model
from cosplace.models.opening import model_file
from cosplace.models.reduction import ReducedNetwork, unreduced
from cosplace.photos.image_list import ImageList
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.storage import storage_errors, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """A file that passed its check."""

    path: Path
    num_bytes: int
    opset: int | None  # of ONNX
    facts: dict[str, str]  # what the file tells of itself
    num_calibrated_on: int  # photos; 0 where none were needed
    check: Check

    def lines(self) -> list[str]:
        """What was written and what was checked, for people."""
        facts = self.facts
        opset = "" if self.opset is None else f", opset {self.opset}"
        calibrated = f", calibrated on {self.num_calibrated_on} photos" if self.num_calibrated_on else ""
        return [
            *self.check.lines(),
            f"{self.path}: {facts['backbone']} to {facts['dimension']} dimensions, {facts['precision']}{opset}"
            f"{calibrated}, takes {facts['input_type']} {facts['input_layout']}, {self.num_bytes / 1e6:.1f} MB",
        ]


def export_model(
    model: str | Path,
    to: str | Path,
    settings: ExportSettings = ExportSettings(),  # noqa: B008 - frozen
    *,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model and check the file, which is there only when it passed.

    model: what `load_model` takes: a name of the zoo, a path of weights, with a reduction or without.
    Raises ConfigError for what cannot be exported, ExportError when the check fails, DatasetError and ImageError for
    the folders of photos, StorageError, and what `load_model` raises.
    """
    _check_before(Path(to), settings)
    file = model_file(model)  # first: what comes through torch.hub is no file
    if Path(to).exists() and Path(to).samefile(file):
        raise ConfigError(f"--to {to} is the model itself: give another name.")
    network = load_model(model, device="cpu").network
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return export_network(network, to, settings, name=Path(model).name, source_sha256=digest, progress=progress)


def export_network(
    network: nn.Module,
    to: str | Path,
    settings: ExportSettings = ExportSettings(),  # noqa: B008 - frozen
    *,
    name: str = "",
    source_sha256: str = "",
    progress: Progress | None = None,
) -> ExportReport:
    """Export a network of this package, as `export_model` does; name and source_sha256 are written into the file."""
    path = Path(to)
    _check_before(path, settings)
    check_exportable(network)
    network = deepcopy(network).cpu().eval()
    least = smallest_side(network)
    if settings.image_size is not None and settings.image_size < least:
        raise ConfigError(
            f"--image_size {settings.image_size} is too small for {unreduced(network).backbone_name}, whose poolings "
            f"would leave nothing: give at least {least}."
        )
    photos = _Photos(settings)
    told = progress or _no_progress
    facts = _facts(network, settings, name=name, source_sha256=source_sha256, smallest=least)
    with tempfile.TemporaryDirectory(prefix="cosplace-export-") as folder:
        made = Path(folder) / path.name
        with storage_errors(made):
            _write(network, made, settings=settings, facts=facts, photos=photos, told=told)
            check = _check(network, made, settings, photos, told)
        check.require(settings.difference_limit, settings.recall_limit)
        with made.open("rb") as source:
            write_atomically(path, lambda file: shutil.copyfileobj(source, file, 1 << 20))
        opset = opset_of(made) if settings.format == "onnx" else None
    return ExportReport(
        path=path,
        num_bytes=path.stat().st_size,
        opset=opset,
        facts=facts,
        num_calibrated_on=len(photos.calibration_rows),
        check=check,
    )


def _no_progress(what: str, done: int, total: int, note: str) -> None:
    """Nobody looks."""


def _check_before(path: Path, settings: ExportSettings) -> None:
    check_extra(settings.format)
    check_target(path, settings.force)


# --- photos ----------------------------------------------------------------------------------------------------------


class _Photos:
    """The photos that an export needs, found before any work: for calibration, for the check, for recalls."""

    def __init__(self, settings: ExportSettings) -> None:
        self.dataset: RetrievalDataset | None = None
        self.calibration: ImageList | None = None
        self.calibration_rows: list[int] = []
        if settings.check_dataset is not None:
            self.dataset = open_retrieval_dataset(settings.check_dataset, settings.queries_folder)
        if settings.precision == "int8":
            assert settings.calibrate_on is not None
            self.calibration = scan_images(settings.calibrate_on)
            self.calibration_rows = spread_photos(self.calibration, settings.calibration_photos)

    def to_check_on(self) -> tuple[str, list[Tensor]]:
        """Some photos (3, H, W) uint8 and a name for them; where there are others, none that int8 was calibrated on."""
        if self.dataset is not None:
            queries = self.dataset.queries
            rows = spread_photos(queries, NUM_PHOTOS)
            return f"queries of {self.dataset.name}", [open_image(queries.path(row)) for row in rows]
        if self.calibration is None:
            return "made pictures", made_photos(NUM_PHOTOS)
        seen = set(self.calibration_rows)
        others = [row for row in spread_photos(self.calibration, len(seen) + NUM_PHOTOS) if row not in seen]
        rows = others[:NUM_PHOTOS] or self.calibration_rows[:NUM_PHOTOS]
        kind = "photos it was not calibrated on" if others else "photos it was calibrated on"
        return kind, [open_image(self.calibration.path(row)) for row in rows]


# --- writing and checking --------------------------------------------------------------------------------------------


def _write(
    network: nn.Module,
    path: Path,
    *,
    settings: ExportSettings,
    facts: Mapping[str, str],
    photos: _Photos,
    told: Progress,
) -> None:
    log.info("tracing %s for photos of any size", facts["backbone"])
    half = settings.precision == "fp16"
    portable = Portable(network, with_preprocessing=settings.with_preprocessing, half=half)
    if settings.format == "torch_export":
        write_program(portable, path, facts)
        return
    if settings.precision != "int8":
        write_onnx(portable, path)
    else:
        assert photos.calibration is not None
        fp32 = path.with_name(f"fp32-{path.name}")
        write_onnx(portable, fp32)
        log.info("measuring ranges on %d photos of %s", len(photos.calibration_rows), photos.calibration.folder)
        quantize(
            fp32,
            path,
            photos.calibration,
            photos.calibration_rows,
            image_size=settings.image_size,
            with_preprocessing=settings.with_preprocessing,
            progress=lambda done, total: told("calibration", done, total, ""),
        )
    add_facts(path, facts)


def _check(network: nn.Module, path: Path, settings: ExportSettings, photos: _Photos, told: Progress) -> Check:
    log.info("comparing the file with PyTorch")
    exported = open_exported(path, settings.format)
    what, chosen = photos.to_check_on()
    typical = sized(chosen[0], settings.image_size)
    batches = batches_of(chosen, SIZES)
    batches += [sized(photo, settings.image_size)[None] for photo in chosen] if what != "made pictures" else []
    differences = _merged(find_differences(network, exported, batches))
    pytorch_ms, exported_ms = measure_ms(network, exported, typical)
    dataset, before, after = photos.dataset, None, None
    if dataset is not None:
        before, after = compare_recalls(network, exported, dataset, settings.image_size, told)
    return Check(
        precision=settings.precision,
        photos=what,
        differences=differences,
        latency_size=(typical.shape[1], typical.shape[2]),
        pytorch_ms=pytorch_ms,
        exported_ms=exported_ms,
        num_threads=torch.get_num_threads(),
        dataset=None if dataset is None else dataset.name,
        num_queries=0 if dataset is None else len(dataset.queries),
        pytorch_recalls=before,
        exported_recalls=after,
    )


def _merged(differences: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """One for each height and width: photos of one size that were described one by one count as a batch."""
    by_size: dict[tuple[int, int], list[Difference]] = {}
    for difference in differences:
        by_size.setdefault(difference.size[1:], []).append(difference)
    merged = []
    for (height, width), alike in by_size.items():
        count = sum(difference.size[0] for difference in alike)
        merged.append(
            Difference(
                size=(count, height, width),
                largest=max(difference.largest for difference in alike),
                least_cosine=min(difference.least_cosine for difference in alike),
                mean_cosine=sum(difference.size[0] * difference.mean_cosine for difference in alike) / count,
            )
        )
    return tuple(merged)


def _facts(
    network: nn.Module, settings: ExportSettings, *, name: str, source_sha256: str, smallest: int
) -> dict[str, str]:
    """What a file tells of itself; everything that a runtime needs to feed it photos."""
    base, pixels = unreduced(network), settings.with_preprocessing
    size = settings.image_size
    reduction = network.reduction.method if isinstance(network, ReducedNetwork) else "none"
    return {
        "cosplace_version": __version__,
        "torch_version": torch.__version__,
        "model": name,
        "source_sha256": source_sha256,
        "backbone": str(base.backbone_name),
        "fc_output_dim": str(base.fc_output_dim),
        "reduction": reduction,
        "dimension": str(find_dimension(network, torch.device("cpu"))),
        "precision": settings.precision,
        "input_layout": "NHWC" if pixels else "NCHW",
        "input_type": UINT8_INPUT if pixels else "float32",
        "color": "RGB",
        "normalisation": "inside" if pixels else "(pixel / 255 - mean) / std",
        "mean": " ".join(map(str, IMAGENET_MEAN)),
        "std": " ".join(map(str, IMAGENET_STD)),
        "image_size": "" if size is None else str(size),  # pixels of the shorter side; empty for each photo's own
        "resize": "none" if size is None else "shorter side to image_size, bilinear, antialiased",
        "smallest_side": str(smallest),
    }
