"""Where the numbers of a run come from: dataset, model, code, libraries, machine, command and times.

Everything that another person needs to repeat the run, or to see why a repetition differs.  docs/results.md explains
the entries.  Side effects: reads the model's file and the headers of some photos, and runs git in the checkout.
"""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cosplace
from cosplace.assessment.published import terms_of
from cosplace.assessment.records import SCHEMA_VERSION
from cosplace.engines.kinds import find_kind
from cosplace.engines.machine import processor_name
from cosplace.errors import CosPlaceError, one_line
from cosplace.models.downloads import file_sha256
from cosplace.models.hub import is_hub
from cosplace.models.model_files import BASE_MODEL
from cosplace.models.opening import weights_path
from cosplace.models.reduction import unreduced
from cosplace.models.weight_files import read_card, read_state_dict, tensors_sha256
from cosplace.models.zoo import HUB_MODELS, HubModel, NativeModel, find_model
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.opening import open_image
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.retrieval.shards import UnreadableImage

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "simplejpeg", "pyarrow", "pyproj", "numba")
MAX_CARD_TEXT = 200  # longer entries of a model card are digests, which the checksum of the file covers
PHOTOS_MEASURED = 20  # whose sizes are read, per set
MAX_UNREADABLE = 1000  # photos that are named, per set
GIT_SECONDS = 10.0  # before git is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a command knows of its run."""

    command: str  # the command line
    seed: int
    device: torch.device
    autocast: torch.dtype | None = None  # of mixed precision
    engine: str = "torch"  # that computed the descriptors, see `engines.kinds`
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Entries of results.json, by their names."""

    schema_version: int
    protocol: Mapping[str, Any]
    dataset: Mapping[str, Any]
    model: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    started: str  # UTC, ISO 8601
    finished: str
    seconds: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """The entries as plain values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def protocol_text(self) -> str:
        """The protocol, such as "pitts30k-test@1", and what deviates from it."""
        return "; ".join([self.protocol["id"], *self.protocol["deviations"]])

    def summary(self) -> dict[str, Any]:
        """What a reader of the report wants to know; the counts of the dataset are elsewhere in it."""
        sizes = {f"{part}_photos": sizes_text(counts) for part, counts in self.dataset["photo_sizes"].items()}
        dataset = {"folder": self.dataset["folder"], **sizes, "unknown_positions": self.dataset["unknown_positions"]}
        return {
            "protocol": self.protocol_text(),
            "command": self.command,
            "started": self.started,
            "finished": self.finished,
            "seconds": self.seconds,
            "model": {key: value for key, value in self.model.items() if value is not None},
            "dataset": dataset,
            **self.environment,
        }


def provenance(
    evaluation: Evaluation,
    dataset: RetrievalDataset,
    *,
    protocol: Mapping[str, Any],
    model: Mapping[str, Any],
    run: RunInfo,
) -> Provenance:
    """Where the numbers of an evaluation come from.

    protocol: see `protocols.protocol_record`.  model: see `describe_model`.
    """
    extracting, database = evaluation.seconds_extracting, evaluation.seconds_database
    return Provenance(
        schema_version=SCHEMA_VERSION,
        protocol=protocol,
        dataset=describe_dataset(evaluation, dataset),
        model=model,
        environment=describe_environment(run),
        command=one_line(run.command),
        started=_utc_text(run.started),
        finished=_utc_text(datetime.now(UTC)),
        seconds={
            "database": database,
            "queries": extracting - database,
            "search": evaluation.seconds - extracting,
            "total": evaluation.seconds,
        },
    )


def _utc_text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- dataset ---------------------------------------------------------------------------------------------------------


def describe_dataset(evaluation: Evaluation, dataset: RetrievalDataset) -> dict[str, Any]:
    """Counts, photo sizes, and what was left out."""
    return {
        "name": one_line(dataset.name),
        "folder": one_line(str(dataset.folder.resolve())),
        "num_database": evaluation.num_database,
        "num_queries": evaluation.num_queries,
        "num_queries_without_positives": evaluation.num_queries_without_positives,
        "utm_zones": list(dataset.zones),
        "note": dataset.note,
        "photo_sizes": {"database": photo_sizes(dataset.database), "queries": photo_sizes(dataset.queries)},
        "unknown_positions": {"database": dataset.num_unknown_database, "queries": dataset.num_unknown_queries},
        "unreadable": {
            "database": unreadable_record(evaluation.unreadable_database),
            "queries": unreadable_record(evaluation.unreadable_queries),
        },
    }


def photo_sizes(images: ImageList) -> dict[str, int]:
    """How many of some evenly spaced photos have each size, such as 640x480, the most frequent size first."""
    sizes: Counter[str] = Counter()
    for row in evenly_spaced(images, PHOTOS_MEASURED):
        try:
            _, height, width = open_image(images.path(row)).shape
        except (CosPlaceError, OSError):
            continue
        sizes[f"{width}x{height}"] += 1
    return dict(sizes.most_common())


def sizes_text(counts: Mapping[str, int]) -> str:
    """The result of `photo_sizes` in words.

    >>> sizes_text({"640x480": 20})
    '640 x 480 pixels (20 of 20 photos measured)'
    """
    total = sum(counts.values())
    return ", ".join(
        f"{size.replace('x', ' x ')} pixels ({count} of {total} photos measured)" for size, count in counts.items()
    )


def unreadable_record(photos: Sequence[UnreadableImage]) -> dict[str, Any]:
    """How many photos could not be opened, and the first ones with the reasons."""
    named = [{"name": one_line(one.name), "reason": one_line(one.message)} for one in photos[:MAX_UNREADABLE]]
    return {"count": len(photos), "photos": named}


def deviations(evaluation: Evaluation, dataset: RetrievalDataset) -> list[str]:
    """What makes an evaluation differ from its protocol although the dataset matches."""
    found = []
    for photos, one, several in (
        (evaluation.unreadable_database, "database image", "database images"),
        (evaluation.unreadable_queries, "query", "queries"),
    ):
        if photos:
            found.append(f"{len(photos):,} {one if len(photos) == 1 else several} could not be opened")
    return [*found, *([dataset.copies] if dataset.copies else [])]


# --- model -----------------------------------------------------------------------------------------------------------


def describe_model(model: str | Path | None, network: nn.Module, *, reduced_to: int | None = None) -> dict[str, Any]:
    """Name, file with its checksum, architecture, model card and licenses.

    model: as for `open_model`; None for a network without trained weights.
    reduced_to: the dimension, if a reduction was fitted for this evaluation only.
    """
    path = _model_file(model)
    card = card_of(path) if path is not None else {}
    whole = unreduced(network)
    name = None if model is None else str(model)
    terms = terms_of(_zoo_name(name) or _zoo_name(card.get(BASE_MODEL)) or "")
    return {
        "name": None if name is None else one_line(name),
        "file": None if path is None else one_line(str(path.resolve())),
        "sha256": None if path is None else file_sha256(path),
        "backbone": getattr(whole, "backbone_name", type(whole).__name__),
        "descriptor_dim": getattr(network, "fc_output_dim", None),
        "reduced_to": reduced_to,
        "card": {key: value for key, value in card.items() if len(value) <= MAX_CARD_TEXT},
        "licenses": terms.licenses,
    }


def _model_file(model: str | Path | None) -> Path | None:
    if model is None or is_hub(model):
        return None
    try:
        path = weights_path(model)
    except CosPlaceError:  # a model of torch.hub by its name
        return None
    return path if path.is_file() else None


def _zoo_name(model: str | None) -> str | None:
    """Name in the zoo of a model that is not a file."""
    if model is None:
        return None
    spec = next((hub.name for hub in HUB_MODELS.values() if hub.spec == model), None)
    if spec is not None or Path(model).is_file():
        return spec
    with suppress(CosPlaceError):
        return find_model(model).name
    return None


def card_of(path: Path) -> dict[str, str]:
    """The card of a model; that of a .pth file is in the .safetensors file next to it, if that has the same tensors."""
    card = read_card(path)
    beside = path.with_suffix(".safetensors")
    if card or beside == path or not beside.is_file():
        return card
    with suppress(CosPlaceError):  # a damaged file next to the model does not matter
        card = read_card(beside)
        if card.get("tensors_sha256") == tensors_sha256(read_state_dict(path)):
            return card
    return {}


def usual_image_size(model: str) -> int | None:
    """Shorter side of the photos that suits a model, in pixels; None for photos of any size."""
    if Path(model).is_file():
        with suppress(CosPlaceError, ValueError):
            return int(card_of(weights_path(model)).get("image_size", "")) or None
        return None
    with suppress(CosPlaceError):  # a hub: spec that is not in the zoo
        record = find_model(model)
        return record.input_size if isinstance(record, NativeModel | HubModel) else None
    return None


# --- code and machine ------------------------------------------------------------------------------------------------


def describe_environment(run: RunInfo) -> dict[str, Any]:
    """Versions of code and libraries, machine, threads, seed and precision."""
    return {
        "cosplace": cosplace.__version__,
        "git": git_state(Path(cosplace.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "system": platform.platform(),
        "device": str(run.device),
        "device_name": device_name(run.device),
        "threads": torch.get_num_threads(),
        "engine": run.engine,
        "precision": _precision(run),
        "seed": run.seed,
    }


def _precision(run: RunInfo) -> str:
    """The numbers that the network computed with: fp32, fp16, bf16, int8 or int8_weights."""
    if run.autocast is None:
        return find_kind(run.engine).numbers
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[run.autocast]


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """Name of the GPU or processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that is exactly this folder, and whether tracked files have changed; None without one."""
    if not (folder / ".git").exists():  # an installed package may lie inside the repository of another project
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # status would write to the index
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=True, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
