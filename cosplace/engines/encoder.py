"""Load a model and compute descriptors of photos.

>>> from cosplace import load_model
>>> model = load_model("logs/default/2024-01-01_12-00-00/best_model.pth", image_size=512)
>>> first, second = model.encode(["first.jpg", "second.jpg"])
>>> similarity = float(first @ second)        # cosine: 1 for the same view, near 0 for unrelated ones

The descriptors are those that `cosplace eval` computes for the same photo and size.  Legend: N photos, B batch,
D descriptor dimension.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cosplace.engines.engine import Engine, is_engine
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.inputs import named_photos, named_pixels
from cosplace.models.views import PLAIN_VIEWS, PhotoViews
from cosplace.photos.image_list import ImageList
from cosplace.photos.resizing import batch_size_for

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPILED_BATCHES = (1, 2, 16)  # photos: torch compiles for 1, for 2 to 15, and on the CPU for 16 or more
COMPILED_SIZE = 480  # pixels of the shorter side of photos, to compile for those that keep their size
BATCHES_IN_MEMORY = 4  # photos are read this many batches at a time, then batched by size


def load_model(
    model: str | Path,
    *,
    image_size: int | None = None,
    device: str = "auto",
    reduce_to: int | None = None,
    trust_remote_code: bool = False,
    views: PhotoViews = PLAIN_VIEWS,
    accept_license: bool = False,
    engine: str = "torch",
    photos: ImageList | None = None,
) -> "Encoder":
    """Load a model that computes descriptors of photos.

    model: a name from `cosplace zoo list`, a weights file (.pth or .safetensors), or `hub:owner/repo:entry(args)`,
    which needs trust_remote_code.  image_size: pixels of the shorter side after resizing; None keeps the size of each
    photo.  device: auto, cpu, cuda, cuda:N or mps.  reduce_to: keep only the first `reduce_to` dimensions of a model
    written by `cosplace reduce`.  views: copies whose descriptors are averaged, and the size of queries.
    accept_license: accept the license of weights that need it, see `cosplace zoo info`.
    engine: the program that runs the network: torch, torch_bf16, torch_compile, onnx, onnx_int8, openvino,
    openvino_bf16, openvino_fp16, openvino_int8, openvino_int8_weights, or auto, the fastest whose descriptors agree
    with those of torch.  photos: photos of yours, on which engines are compared, and int8 is calibrated.

    Raises ConfigError, CheckpointError, DownloadError, DeviceError or ExportError.
    """
    from cosplace.models.opening import open_model

    network = open_model(model, reduce_to=reduce_to, trust_remote_code=trust_remote_code, accept_license=accept_license)
    return encoder_of(network, model, image_size=image_size, device=device, views=views, engine=engine, photos=photos)


def encoder_of(
    network: "nn.Module",
    model: str | Path,
    *,
    image_size: int | None = None,
    device: str = "auto",
    views: PhotoViews = PLAIN_VIEWS,
    engine: str = "torch",
    file_sha256: str = "",
    photos: ImageList | None = None,
) -> "Encoder":
    """The encoder of a network that is open.  model: what it was opened from.  file_sha256: see `open_engine`."""
    from cosplace.engines.opening import open_engine

    opened = open_engine(
        engine,
        network,
        image_size=image_size,
        device=device,
        scales=views.scales,
        flip=views.flip,
        photos=photos,
        file_sha256=file_sha256,
    )
    return Encoder(opened, name=model_name(model), image_size=image_size, views=views)


def model_name(model: str | Path) -> str:
    """Name that opens the same model from any folder: absolute paths of files, other names unchanged."""
    path = Path(model)
    return str(path.absolute()) if path.is_file() else str(model)


class Encoder:
    """Photos in, unit descriptors out.

    model: a network (B, 3, H, W) ImageNet-normalized -> (B, D), which PyTorch then runs, or an engine (`engines`).
    name: the model given to `load_model`, files as absolute paths; image_size: pixels of the shorter side, None for
    each photo's own; views: copies whose descriptors are averaged, and the sizes and crops of queries; device: of a
    network; checksum: SHA-256 of the structure and the tensors of the model; dimension: D.
    May be called from several threads.
    """

    def __init__(
        self,
        model: "nn.Module | Engine",
        *,
        name: str = "",
        image_size: int | None = None,
        device: "str | torch.device" = "auto",
        views: PhotoViews = PLAIN_VIEWS,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size must be at least 1, got {image_size}. Use for example 512.")
        self.name, self.image_size, self.views = name, image_size, views
        if is_engine(model):
            self.engine = cast(Engine, model)
        else:
            from cosplace.device import choose_device
            from cosplace.engines.torch_engine import TorchEngine

            network, chosen = cast("nn.Module", model), choose_device(str(device))
            self.engine = TorchEngine(network, device=chosen, scales=views.scales, flip=views.flip)
        self.checksum, self.dimension = self.engine.checksum, self.engine.dimension

    @property
    def device(self) -> str:
        """Where the engine computes: cpu, cuda, cuda:N or mps."""
        return str(getattr(self.engine, "device", "cpu"))

    @property
    def engine_file(self) -> str:
        """SHA-256 of the file of an int8 engine; "" for the other engines, whose descriptors agree."""
        return self.engine.file_sha256 if self.engine.kind.is_int8 else ""

    @property
    def network(self) -> "nn.Module":
        """The network that PyTorch runs, with its views.  Raises ConfigError for an engine without torch."""
        network = getattr(self.engine, "network", None)
        if network is None:
            raise ConfigError(f"The engine {self.engine.kind.name} has no network in PyTorch. Use --engine torch.")
        return network

    def encode(self, photos: Any, *, batch_size: int = 16, database: bool = False) -> np.ndarray:
        """Compute unit descriptors (N, D) float32 of one photo or of many, in their order.

        With the query policies nearest_crop and maj_voting, those of the five crops of each photo: (N, 5, D).

        database: as photos of a database, not as queries, which may have another size.

        A photo is a path, a PIL image (its EXIF orientation is applied), an array (H, W), (H, W, 3) or (H, W, 4)
        uint8, or a tensor (3, H, W) or (1, H, W), uint8 or float in [0, 1].  Many photos are a batch (N, H, W, C) or
        (N, C, H, W) of one size, or any iterable of photos of mixed kinds and sizes.
        Raises ImageError, which names the photo, for the first that cannot be opened, CheckpointError for a descriptor
        that is not finite.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}. Use for example 16.")
        descriptors: list[np.ndarray] = []
        waiting: list[Any] = []  # photos (3, H, W): arrays or tensors
        views = PLAIN_VIEWS if database else self.views
        # Torch resizes tensors, and without it Pillow resizes arrays.
        named: Iterator[Any] = named_pixels(photos) if self.engine.kind.needs_file else named_photos(photos)
        for photo, name in named:
            waiting += views.crops_of_query(photo, self.image_size, name)
            if len(waiting) >= BATCHES_IN_MEMORY * batch_size:
                descriptors.append(self._encode_by_size(waiting, batch_size))
                waiting = []
        if waiting:
            descriptors.append(self._encode_by_size(waiting, batch_size))
        found = np.concatenate(descriptors) if descriptors else np.empty((0, self.dimension), np.float32)
        if views.num_crops == 1:
            return found
        crops = found.reshape(-1, views.num_crops, self.dimension)
        if views.num_descriptors > 1:
            return crops
        means = crops.mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)

    def compile(self, batch_size: int) -> None:
        """Compile now, for batches of up to `batch_size`, if the engine would do so for the first photos.

        Raises ConfigError.
        """
        if not self.engine.kind.compiles:
            return
        height = self.image_size or COMPILED_SIZE
        for count in (count for count in COMPILED_BATCHES if count <= batch_size):
            self.engine.describe(np.zeros((count, 3, height, 4 * height // 3), np.uint8))

    def _encode_by_size(self, photos: list[Any], batch_size: int) -> np.ndarray:
        """Descriptors (n, D) of photos (3, H, W); photos of one size and type share batches."""
        arrays = [np.asarray(photo) for photo in photos]
        descriptors = np.empty((len(arrays), self.dimension), np.float32)
        rows_by_size: dict[tuple[tuple[int, ...], np.dtype], list[int]] = {}
        for row, photo in enumerate(arrays):
            rows_by_size.setdefault((photo.shape, photo.dtype), []).append(row)
        for (shape, _), rows in rows_by_size.items():
            size = batch_size_for(*shape[-2:], batch_size)
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                descriptors[batch] = self.engine.describe(np.stack([arrays[row] for row in batch]))
        if not np.isfinite(descriptors).all():
            raise CheckpointError(
                f"{self.name or 'The model'} computes descriptors that are not finite: its weights are damaged."
            )
        return descriptors
