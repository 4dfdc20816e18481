"""Export a model and check the file.  Side effects: reads the model and photos, writes one file or none."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosplace import __version__
from cosplace.engines.comparison import synthetic_photos
from cosplace.engines.deployable import (
    DeployableNetwork,
    ResizingNetwork,
    check_exportable,
    find_smallest_side,
    summarize_error,
)
from cosplace.engines.onnx_format import add_metadata, opset_of, write_onnx
from cosplace.engines.quantization import quantize, select_photos
from cosplace.errors import ConfigError, ExportError
from cosplace.export.parity import write_parity
from cosplace.export.runtime import UINT8_INPUT, open_exported
from cosplace.export.settings import ExportSettings, check_extra, check_target
from cosplace.export.torch_program import write_program
from cosplace.export.verification import (
    NUM_PHOTOS,
    SIZES,
    Comparison,
    compare_recalls,
    find_differences,
    measure_latency_ms,
    merge_by_size,
    resized_batches,
)
from cosplace.models.inference import find_dimension
from cosplace.models.opening import open_model, weights_path
from cosplace.models.reduction import ReducedNetwork, unreduced
from cosplace.photos.image_list import ImageList
from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from cosplace.progress import Progress, no_progress
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.storage import storage_errors, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """An exported file that passed its check."""

    path: Path
    num_bytes: int
    opset: int | None  # ONNX only
    metadata: dict[str, str]  # stored in the file
    num_calibration_photos: int  # 0 except for int8
    comparison: Comparison
    parity: Path | None = None  # the parity file

    def summary_lines(self) -> list[str]:
        """Format what was compared and written as lines of text."""
        metadata = self.metadata
        opset = "" if self.opset is None else f", opset {self.opset}"
        calibrated = f", calibrated on {self.num_calibration_photos} photos" if self.num_calibration_photos else ""
        return [
            *self.comparison.summary_lines(),
            f"wrote {self.path}: {metadata['backbone']}, {metadata['dimension']} dimensions, {metadata['precision']}"
            f"{opset}{calibrated}, input {metadata['input_type']} {metadata['input_layout']}, "
            f"{self.num_bytes / 1e6:.1f} MB",
            *([] if self.parity is None else [f"wrote {self.parity}: an input and the descriptors expected for it"]),
        ]


def export_model(
    model: str | Path,
    to: str | Path,
    settings: ExportSettings | None = None,
    *,
    progress: Progress = no_progress,
) -> ExportReport:
    """Export a model and check the file, which is written only if it passes.

    model: a name from `cosplace zoo list` or a weights file, with or without a reduction.
    Raises ConfigError for what cannot be exported, ExportError if the check fails, DatasetError and ImageError for the
    folders of photos, StorageError, and what `open_model` raises.
    """
    settings = settings or ExportSettings()
    _check_before_export(Path(to), settings)
    weights = weights_path(model)  # raises for models from torch.hub
    if Path(to).exists() and Path(to).samefile(weights):
        raise ConfigError(f"--to {to} is the model itself. Choose another name.")
    network = open_model(model)
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return export_network(network, to, settings, name=Path(model).name, source_sha256=sha256, progress=progress)


def export_network(
    network: nn.Module,
    to: str | Path,
    settings: ExportSettings | None = None,
    *,
    name: str = "",
    source_sha256: str = "",
    progress: Progress = no_progress,
) -> ExportReport:
    """Export a network of this package, as `export_model` does; name and source_sha256 are stored in the file."""
    path, settings = Path(to), settings or ExportSettings()
    _check_before_export(path, settings)
    check_exportable(network)
    network = deepcopy(network).cpu().eval()
    smallest_side = find_smallest_side(network)
    if settings.image_size is not None and settings.image_size < smallest_side:
        raise ConfigError(
            f"--image_size {settings.image_size} is too small for {unreduced(network).backbone_name}. Use at least "
            f"{smallest_side}."
        )
    photos, resize_to = _find_photos(settings), settings.inputs.resize_to
    reference = network if resize_to is None else ResizingNetwork(network, resize_to)
    smallest_side = smallest_side if resize_to is None else 1
    if settings.static_shape and min(settings.static_shape[1:]) < smallest_side:
        raise ConfigError(f"--static_shape has a side below {smallest_side} pixels, the smallest of this network.")
    metadata = _metadata(network, settings, name=name, source_sha256=source_sha256, smallest_side=smallest_side)
    with tempfile.TemporaryDirectory(prefix="cosplace-export-") as folder:
        unchecked = Path(folder) / path.name
        with storage_errors(unchecked):
            _write(network, unchecked, settings=settings, metadata=metadata, photos=photos, progress=progress)
            comparison = _compare(reference, unchecked, settings, photos, progress)
        comparison.check_limits(settings.difference_limit, settings.recall_limit)
        with unchecked.open("rb") as source:
            write_atomically(path, lambda file: shutil.copyfileobj(source, file, 1 << 20))
        parity = None
        if settings.parity_file:
            parity = write_parity(
                path,
                reference,
                settings.inputs,
                smallest_side=smallest_side,
                precision=settings.precision,
                tolerance=settings.difference_limit,
            )
        opset = opset_of(unchecked) if settings.format == "onnx" else None
    return ExportReport(
        path=path,
        num_bytes=path.stat().st_size,
        opset=opset,
        metadata=metadata,
        num_calibration_photos=len(photos.calibration_rows),
        comparison=comparison,
        parity=parity,
    )


def _check_before_export(path: Path, settings: ExportSettings) -> None:
    check_extra(settings.format)
    check_target(path, settings.force)


def _metadata(
    network: nn.Module, settings: ExportSettings, *, name: str, source_sha256: str, smallest_side: int
) -> dict[str, str]:
    """The metadata of the file: what it contains and the input that it needs."""
    base, image_size, inputs = unreduced(network), settings.image_size, settings.inputs
    resize = "inside" if inputs.resize_to is not None else "shorter side to image_size, bilinear, antialiased"
    return {
        "cosplace_version": __version__,
        "torch_version": torch.__version__,
        "model": name,
        "source_sha256": source_sha256,
        "backbone": str(base.backbone_name),
        "fc_output_dim": str(base.fc_output_dim),
        "reduction": network.reduction.method if isinstance(network, ReducedNetwork) else "none",
        "dimension": str(find_dimension(network, torch.device("cpu"))),
        "precision": settings.precision,
        "input_layout": inputs.layout,
        "input_type": UINT8_INPUT if inputs.values == UINT8_INPUT else "float32",
        "input_values": inputs.values,
        "input_name": settings.input_name,
        "output_name": settings.output_name,
        "static_shape": " ".join(map(str, inputs.static_shape or ())),  # batch, height, width; empty: any
        "color": "RGB",
        "normalisation": "(pixel / 255 - mean) / std" if inputs.values == "normalized" else "inside",
        "mean": " ".join(map(str, IMAGENET_MEAN)),
        "std": " ".join(map(str, IMAGENET_STD)),
        "image_size": "" if image_size is None else str(image_size),  # pixels of the shorter side; empty: any size
        "resize": "none" if image_size is None else resize,
        "smallest_side": str(smallest_side),
    }


# --- photos ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photos:
    """The photos that an export needs."""

    dataset: RetrievalDataset | None  # to compare recalls on
    calibration: ImageList | None
    calibration_rows: list[int]


def _find_photos(settings: ExportSettings) -> _Photos:
    """Find all photos before the work starts, so that a wrong folder fails at once."""
    dataset, calibration, rows = None, None, []
    if settings.check_dataset is not None:
        dataset = open_retrieval_dataset(settings.check_dataset, settings.queries_folder)
    if settings.precision == "int8":
        assert settings.calibrate_on is not None
        calibration = scan_images(settings.calibrate_on)
        rows = select_photos(calibration, settings.calibration_photos)
    return _Photos(dataset=dataset, calibration=calibration, calibration_rows=rows)


def _photos_to_compare(photos: _Photos) -> tuple[str, list[Tensor]]:
    """Description of some photos, and the photos (3, H, W) uint8, to compare descriptors on.

    If possible, they are not photos of the calibration.
    """
    if photos.dataset is not None:
        queries = photos.dataset.queries
        return f"queries of {photos.dataset.name}", _open_all(queries, select_photos(queries, NUM_PHOTOS))
    if photos.calibration is None:
        return "synthetic images", synthetic_photos(NUM_PHOTOS)
    used = set(photos.calibration_rows)
    unused = [row for row in select_photos(photos.calibration, len(used) + NUM_PHOTOS) if row not in used]
    if unused:
        return "photos outside the calibration", _open_all(photos.calibration, unused[:NUM_PHOTOS])
    return "photos of the calibration", _open_all(photos.calibration, photos.calibration_rows[:NUM_PHOTOS])


def _open_all(images: ImageList, rows: list[int]) -> list[Tensor]:
    return [open_image(images.path(row)) for row in rows]


# --- writing and comparing -------------------------------------------------------------------------------------------


def _write(
    network: nn.Module,
    path: Path,
    *,
    settings: ExportSettings,
    metadata: Mapping[str, str],
    photos: _Photos,
    progress: Progress,
) -> None:
    size = metadata["static_shape"] or "any size"
    log.info("tracing %s for photos of %s", metadata["backbone"], size)
    half = settings.precision == "fp16"
    deployable = DeployableNetwork(network, inputs=settings.inputs, half=half)
    options: dict[str, Any] = {"opset": settings.opset, "names": (settings.input_name, settings.output_name)}
    if settings.format == "torch_export":
        write_program(deployable, path, metadata)
        return
    if settings.precision != "int8":
        write_onnx(deployable, path, **options)
    else:
        assert photos.calibration is not None
        fp32_path = path.with_name(f"fp32-{path.name}")
        write_onnx(deployable, fp32_path, **options)
        log.info("calibrating on %d photos of %s", len(photos.calibration_rows), photos.calibration.folder)
        quantize(
            fp32_path,
            path,
            photos.calibration,
            photos.calibration_rows,
            image_size=settings.image_size,
            inputs=settings.inputs,
            input_name=settings.input_name,
            progress=progress,
        )
    add_metadata(path, metadata)


def _compare(
    network: nn.Module, path: Path, settings: ExportSettings, photos: _Photos, progress: Progress
) -> Comparison:
    """Compare the file with the network, which resizes photos if the file does."""
    log.info("comparing the file with PyTorch")
    exported = open_exported(path, settings.format)
    description, compared = _photos_to_compare(photos)
    inputs = settings.inputs
    resized = [inputs.fit(photo, settings.image_size) for photo in compared]
    smallest = int(exported.metadata["smallest_side"])
    sizes = [(count, max(height, smallest), max(width, smallest)) for count, height, width in SIZES]
    if inputs.static_shape is not None:
        sizes = [inputs.static_shape]
    batches = resized_batches(compared, sizes)
    if photos.dataset is not None or photos.calibration is not None:  # real photos, at the size of the settings too
        batches += [photo[None] for photo in resized]
    try:
        differences = merge_by_size(find_differences(network, exported, batches))
    except Exception as error:  # each runtime raises types of its own
        raise ExportError(
            f"The check failed and no file was written: the file does not run ({summarize_error(error)}). Use another "
            f"version of torch, or --static_shape."
        ) from error
    pytorch_ms, exported_ms = measure_latency_ms(network, exported, resized[0])
    dataset, pytorch_recalls, exported_recalls = photos.dataset, None, None
    if dataset is not None:
        pytorch_recalls, exported_recalls = compare_recalls(network, exported, dataset, settings.image_size, progress)
    return Comparison(
        precision=settings.precision,
        photos=description,
        differences=differences,
        latency_size=(resized[0].shape[1], resized[0].shape[2]),
        pytorch_ms=pytorch_ms,
        exported_ms=exported_ms,
        num_threads=torch.get_num_threads(),
        dataset=None if dataset is None else dataset.name,
        num_queries=0 if dataset is None else len(dataset.queries),
        pytorch_recalls=pytorch_recalls,
        exported_recalls=exported_recalls,
    )
