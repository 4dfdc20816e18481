"""What a plan is asked for: the inputs of its formulas, from flags, measurements and constants.

Side effects: `find_network` may read a weights file.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cosplace.config.names import BACKBONES
from cosplace.config.planning import PlanConfig, SpeedSettings
from cosplace.errors import ConfigError
from cosplace.models.inference import find_dimension
from cosplace.models.opening import open_model
from cosplace.models.reduction import unreduced
from cosplace.models.speeds import Speed, machine, measured_speed
from cosplace.models.zoo import ZooModel, find_model
from cosplace.planning.constants import Constant, constants
from cosplace.planning.quantities import Quantity, Sheet

DEFAULT_BACKBONE, DEFAULT_DIMENSION, SIDE = "ResNet18", 512, 512
PAPER_IMAGES = 16_000_000  # 50 epochs of 10,000 iterations with 32 images
REFERENCE = "ResNet18"  # the backbone whose speed is known for all kinds of devices
BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNetwork:
    """The network of a plan."""

    name: str  # as the user gave it
    backbone: str  # name of a backbone, or of a model of the zoo with a network of its own
    dimension: int  # of the descriptors
    model_dimension: int  # of the model, before its descriptors are reduced
    side: int  # pixels of square photos
    is_trained: bool  # whether it exists


def find_network(config: PlanConfig) -> PlannedNetwork:
    """The network of a plan.

    Raises ConfigError for an unknown model, and for more dimensions than a model has; CheckpointError for a file that
    cannot be read.
    """
    if config.model is None:
        backbone = config.backbone or DEFAULT_BACKBONE
        dimension = config.dim or DEFAULT_DIMENSION
        return PlannedNetwork(
            name=backbone,
            backbone=backbone,
            dimension=dimension,
            model_dimension=dimension,
            side=SIDE,
            is_trained=False,
        )
    if Path(config.model).is_file():
        found = _network_of_file(config.model, config.dim)
    else:
        model = find_model(config.model)
        is_own = isinstance(model, ZooModel) and model.backbone in BACKBONES
        found = PlannedNetwork(
            name=model.name,
            backbone=model.backbone if is_own else model.name,
            dimension=config.dim or model.fc_output_dim,
            model_dimension=model.fc_output_dim,
            side=model.input_size or SIDE,
            is_trained=True,
        )
    if found.dimension > found.model_dimension:
        raise ConfigError(
            f"--dim {config.dim} is more than the {found.model_dimension} dimensions of {found.name}. Use --dim "
            f"{found.model_dimension} or less, or another model."
        )
    return found


def _network_of_file(path: str, dim: int | None) -> PlannedNetwork:
    network = open_model(path)
    base = unreduced(network)
    dimension = find_dimension(network, torch.device("cpu"))
    return PlannedNetwork(
        name=path,
        backbone=getattr(base, "backbone_name", type(base).__name__),
        dimension=dim or dimension,
        model_dimension=dimension,
        side=SIDE,
        is_trained=True,
    )


# --- inputs of the formulas ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Inputs:
    """Enters the inputs of a plan into its sheet, each with where it comes from."""

    sheet: Sheet
    given: Collection[str]  # flags that the command line has
    measured: Mapping[str, Constant]  # on this machine
    side: int = SIDE  # pixels, of photos when the network processes them

    def flag(self, name: str, title: str, value: float, unit: str = "") -> Quantity:
        """Enter the value of a flag."""
        self.sheet.enter(name, title, value, unit, "given" if name in self.given else "default", f"--{name}")
        return self.sheet[name]

    def constant(self, name: str, flag_value: float | None = None) -> Quantity:
        """Enter a constant: of a flag, measured on this machine, or recorded."""
        found = self.measured.get(name) or constants()[name]
        if flag_value is not None:
            self.sheet.enter(name, found.title, flag_value, found.unit, "given", f"--{name}")
        else:
            self.sheet.enter(name, found.title, found.value, found.unit, "measured", found.detail)
        return self.sheet[name]

    def has(self, name: str) -> bool:
        """Whether an input has been entered."""
        return name in self.sheet.figures

    def at_side(self, name: str, title: str, value: float, side: int, source: str) -> Quantity:
        """Enter a speed that was measured with square photos of some side, and scale it by the number of pixels."""
        if side == self.side:
            self.sheet.enter(name, title, value, "/s", "measured", source)
            return self.sheet[name]
        base = f"{name}_at_{side}"
        self.sheet.enter(base, f"{title}, {side} pixels", value, "/s", "measured", source)
        if not self.has("image_size"):
            self.sheet.enter("image_size", "side of the photos in the network", self.side, "pixels", "default", "model")
        pixels = self.sheet["image_size"] * self.sheet["image_size"]
        return self.sheet.compute(name, title, self.sheet[base] * float(side * side) / pixels, "/s")


def enter_photos(inputs: Inputs, config: PlanConfig, network: PlannedNetwork) -> None:
    """Enter sizes: of photos, descriptors, rows and codes, in bytes."""
    sheet = inputs.sheet
    inputs.flag("photos", "photos", config.photos)
    if "dim" in inputs.given or config.model is None:
        inputs.flag("dim", "dimension of the descriptors", network.dimension)
    else:
        sheet.enter("dim", "dimension of the descriptors", network.dimension, "", "given", "--model")
    bits, stored_bits = BITS[config.dtype], BITS[config.stored_dtype]
    sheet.enter("bits", "bits of a number in the store", bits, "", _origin(inputs, "dtype"), f"--dtype {config.dtype}")
    sheet.enter("index_bits", "bits of a number in the index", stored_bits, "", _origin(inputs, "stored_dtype"),
                f"--stored_dtype {config.stored_dtype}")  # fmt: skip
    inputs.flag("shard_rows", "photos in a shard", config.shard_rows)
    inputs.flag("queries_per_second", "queries", config.queries_per_second, "/s")
    if "image_size" in inputs.given:
        inputs.flag("image_size", "side of the photos in the network", float(inputs.side), "pixels")
    inputs.constant("photo_kb", config.speeds.photo_kb)
    if config.thumbnail_size:
        if config.speeds.thumbnail_kb is not None or config.thumbnail_size == 192:
            inputs.constant("thumbnail_kb", config.speeds.thumbnail_kb)
        else:
            base = constants()["thumbnail_kb"]
            sheet.enter("thumbnail_kb_at_192", f"{base.title}, 192 pixels", base.value, "KB", "measured", base.detail)
            side = inputs.flag("thumbnail_size", "side of a thumbnail", config.thumbnail_size, "pixels")
            scaled = sheet["thumbnail_kb_at_192"] * side * side / 192.0**2
            sheet.compute("thumbnail_kb", base.title, scaled, "KB")


def enter_speeds(inputs: Inputs, config: PlanConfig, network: PlannedNetwork) -> None:
    """Enter speeds of networks and storage.

    Raises ConfigError if the speed of the network is not known.
    """
    given: SpeedSettings = config.speeds
    for name in ("decoded_mb_per_s", "write_mb_per_s", "indexed_mb_per_s", "assigned_gflop_per_s"):
        inputs.constant(name, getattr(given, name))
    cpu = _enter_network_speed(inputs, network, "cpu", given.cpu_photos_per_s, needed=True)
    if config.machine.gpus or config.machine.server_gpus:
        gpu = _enter_network_speed(inputs, network, "gpu", given.gpu_photos_per_s, needed=False)
        if gpu is None:
            _enter_by_reference(inputs, "gpu_photos_per_s", "photos in the network, one GPU", cpu)


def _enter_network_speed(
    inputs: Inputs, network: PlannedNetwork, kind: str, given: float | None, *, needed: bool
) -> Quantity | None:
    """Enter photos per second in the network on one core or one GPU; None if it is unknown."""
    name, title = f"{kind}_photos_per_s", f"photos in the network, one {'core' if kind == 'cpu' else 'GPU'}"
    if given is not None:
        inputs.sheet.enter(name, title, given, "/s", "given", f"--{name}")
        return inputs.sheet[name]
    if here := inputs.measured.get(name):
        inputs.sheet.enter(name, title, here.value, "/s", "measured", here.detail)
        return inputs.sheet[name]
    if kind == "cpu":
        if (speed := measured_speed(network.backbone)) is not None:
            return inputs.at_side(name, title, speed.photos_per_s, speed.side, cpu_source())
    elif (known := constants().get(f"{name}.{network.backbone}")) is not None:
        return inputs.at_side(name, title, known.value, SIDE, known.detail)
    if needed:
        raise ConfigError(
            f"The speed of {network.name} was not measured. Add --measure, or use --cpu_photos_per_s and "
            f"--gpu_photos_per_s."
        )
    return None


def _enter_by_reference(inputs: Inputs, name: str, title: str, cpu: Quantity | None) -> Quantity:
    """Compute a speed on a GPU from that of the reference backbone, by their speeds on a CPU."""
    assert cpu is not None
    sheet, known = inputs.sheet, constants()[f"{name}.{REFERENCE}"]
    own = reference_speed()
    base, base_cpu = f"{name}_{REFERENCE.lower()}", f"cpu_photos_per_s_{REFERENCE.lower()}"
    sheet.enter(base, f"{title}, {REFERENCE}, {SIDE} pixels", known.value, "/s", "measured", known.detail)
    if not inputs.has(base_cpu):
        sheet.enter(base_cpu, f"photos in the network, one core, {REFERENCE}, {SIDE} pixels", own.photos_per_s, "/s",
                    "measured", cpu_source())  # fmt: skip
    return sheet.compute(name, title, sheet[base] * cpu / sheet[base_cpu], "/s")


def enter_training_speed(inputs: Inputs, config: PlanConfig, network: PlannedNetwork) -> None:
    """Enter the photos per second of training on one GPU, or on one core."""
    sheet, name = inputs.sheet, "gpu_training_photos_per_s"
    if not config.machine.gpus:
        passes = constants().get(f"training_passes.{network.backbone}") or constants()["training_passes.others"]
        sheet.enter("training_passes", passes.title, passes.value, "", "measured", passes.detail)
        speed = sheet["cpu_photos_per_s"] / sheet["training_passes"]
        sheet.compute("training_photos_per_s", "training, one core", speed, "/s")
        return
    known, title = constants().get(f"{name}.{network.backbone}"), "training, one GPU"
    if config.speeds.gpu_training_photos_per_s is not None:
        sheet.enter(name, title, config.speeds.gpu_training_photos_per_s, "/s", "given", f"--{name}")
    elif known is not None:
        inputs.at_side(name, title, known.value, SIDE, known.detail)
    else:
        _enter_by_reference(inputs, name, title, sheet["cpu_photos_per_s"])


def enter_search(inputs: Inputs, config: PlanConfig) -> None:
    """Enter speeds of the search, and the memory of a server."""
    inputs.constant("search_ms", config.speeds.search_ms)
    inputs.constant("scan_gb_per_s", config.speeds.scan_gb_per_s)
    inputs.constant("probed_share", config.speeds.probed_share)
    for name in ("row_bytes", "column_bytes", "name_bytes", "code_extra_bytes", "server_gb", "old_versions"):
        inputs.constant(name)


def reference_speed() -> Speed:
    """Speed of the reference backbone on one core."""
    found = measured_speed(REFERENCE)
    assert found is not None and math.isclose(found.side, SIDE)
    return found


def cpu_source() -> str:
    """Where the speeds on one core come from."""
    return f"`python -m benchmarks.model_speed`, random weights; {machine()}"


def _origin(inputs: Inputs, name: str) -> str:
    return "given" if name in inputs.given else "default"
