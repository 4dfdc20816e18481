"""Load a model and compute descriptors of photos.

>>> from cosplace import load_model
>>> model = load_model("logs/default/2024-01-01_12-00-00/best_model.pth", image_size=512)
>>> first, second = model.encode(["first.jpg", "second.jpg"])
>>> similarity = float(first @ second)        # cosine: 1 for the same view, near 0 for unrelated ones

The descriptors are those that `cosplace eval` computes for the same photo and size.  Legend: N photos, B batch,
D descriptor dimension.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.device import choose_device, is_out_of_memory, mixed_precision
from cosplace.errors import CheckpointError, ConfigError, DeviceError
from cosplace.models.averaging import averaged
from cosplace.models.inference import optimize_for_inference
from cosplace.models.inputs import named_photos
from cosplace.models.opening import open_model
from cosplace.models.views import PLAIN_VIEWS, PhotoViews
from cosplace.models.weight_files import model_checksum
from cosplace.photos.normalization import normalize
from cosplace.photos.resizing import batch_size_for

BATCHES_IN_MEMORY = 4  # photos are read this many batches at a time, then batched by size
PROBE_SIZE = 224  # pixels, both sides of the image that is used to find the dimension of an unknown network


def load_model(
    model: str | Path,
    *,
    image_size: int | None = None,
    device: str = "auto",
    reduce_to: int | None = None,
    trust_remote_code: bool = False,
    views: PhotoViews = PLAIN_VIEWS,
    accept_license: bool = False,
) -> "Encoder":
    """Load a model that computes descriptors of photos.

    model: a name from `cosplace zoo list`, a weights file (.pth or .safetensors), or `hub:owner/repo:entry(args)`,
    which needs trust_remote_code.  image_size: pixels of the shorter side after resizing; None keeps the size of each
    photo.  device: auto, cpu, cuda, cuda:N or mps.  reduce_to: keep only the first `reduce_to` dimensions of a model
    written by `cosplace reduce`.  views: copies whose descriptors are averaged, and the size of queries.
    accept_license: accept the license of weights that need it, see `cosplace zoo info`.

    Raises ConfigError, CheckpointError, DownloadError or DeviceError.
    """
    network = open_model(model, reduce_to=reduce_to, trust_remote_code=trust_remote_code, accept_license=accept_license)
    return Encoder(network, name=model_name(model), image_size=image_size, device=device, views=views)


def model_name(model: str | Path) -> str:
    """Name that opens the same model from any folder: absolute paths of files, other names unchanged."""
    path = Path(model)
    return str(path.absolute()) if path.is_file() else str(model)


class Encoder:
    """Photos in, unit descriptors out.

    name: the model given to `load_model`, files as absolute paths; network: (B, 3, H, W) ImageNet-normalized -> (B, D),
    in evaluation mode; dimension: D; image_size: pixels of the shorter side, None for each photo's own; views: copies
    whose descriptors are averaged, and the sizes and crops of queries; device; checksum: SHA-256 of the structure and
    the tensors of the model.  May be called from several threads.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "",
        image_size: int | None = None,
        device: str | torch.device = "auto",
        views: PhotoViews = PLAIN_VIEWS,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size must be at least 1, got {image_size}. Use for example 512.")
        self.name, self.image_size, self.views = name, image_size, views
        self.device = choose_device(str(device))
        network = network.to(self.device).eval()
        self.checksum = model_checksum(network)
        self.network = averaged(network, views.scales, flip=views.flip)
        self._fast_network = averaged(optimize_for_inference(network), views.scales, flip=views.flip)
        self.dimension = find_dimension(network, self.device)

    def encode(self, photos: Any, *, batch_size: int = 16, database: bool = False) -> np.ndarray:
        """Compute unit descriptors (N, D) float32 of one photo or of many, in their order.

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
        waiting: list[Tensor] = []
        views = PLAIN_VIEWS if database else self.views
        for photo, name in named_photos(photos):
            waiting += views.crops_of_query(photo, self.image_size, name)
            if len(waiting) >= BATCHES_IN_MEMORY * batch_size:
                descriptors.append(self._encode_by_size(waiting, batch_size))
                waiting = []
        if waiting:
            descriptors.append(self._encode_by_size(waiting, batch_size))
        found = np.concatenate(descriptors) if descriptors else np.empty((0, self.dimension), np.float32)
        if views.num_crops == 1:
            return found
        means = found.reshape(-1, views.num_crops, self.dimension).mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)

    def _encode_by_size(self, photos: list[Tensor], batch_size: int) -> np.ndarray:
        """Descriptors (n, D) of photos (3, H, W); photos of one size and type share batches."""
        descriptors = np.empty((len(photos), self.dimension), np.float32)
        rows_by_size: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for row, photo in enumerate(photos):
            rows_by_size.setdefault((photo.shape, photo.dtype), []).append(row)
        for (shape, _), rows in rows_by_size.items():
            size = batch_size_for(*shape[-2:], batch_size)
            for start in range(0, len(rows), size):
                batch_rows = rows[start : start + size]
                with torch.inference_mode():
                    batch = torch.stack([photos[row] for row in batch_rows])
                    found = encode_batch(self._fast_network, batch, device=self.device)
                    descriptors[batch_rows] = found.cpu().numpy()
        if not np.isfinite(descriptors).all():
            raise CheckpointError(
                f"{self.name or 'The model'} computes descriptors that are not finite: its weights are damaged."
            )
        return descriptors


def find_dimension(network: nn.Module, device: torch.device) -> int:
    """Descriptor dimension of a network: its `fc_output_dim`, else that of the descriptor of a gray image."""
    known = getattr(network, "fc_output_dim", None)
    if isinstance(known, int):
        return known
    gray = torch.full((1, 3, PROBE_SIZE, PROBE_SIZE), 127, dtype=torch.uint8)
    with torch.inference_mode():
        return encode_batch(network, gray, device=device).shape[1]


def encode_batch(
    model: nn.Module, photos: Tensor, *, device: torch.device, autocast: torch.dtype | None = None
) -> Tensor:
    """Compute descriptors (B, D) float32 of photos (B, 3, H, W) uint8 of one size.

    model: on `device` and in evaluation mode.  autocast: 16-bit type of mixed precision, None for fp32.
    Raises DeviceError when memory runs out, ConfigError when the model does not return descriptors.
    """
    # Convolutions on CPU are a fifth faster with channels last, and 16-bit ones on CUDA accept no other layout.
    layout = torch.channels_last if device.type == "cpu" or autocast is not None else torch.contiguous_format
    try:
        normalized = normalize(photos.to(device, non_blocking=True).contiguous(memory_format=layout))
        with mixed_precision(device, autocast):
            descriptors = model(normalized)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"Not enough memory on {device} for a batch of {len(photos)} photos of {photos.shape[3]} x "
                f"{photos.shape[2]} pixels.",
                "use a smaller --infer_batch_size",
                "use a smaller --max_batch",
                "use a smaller --image_size",
                "resize photos with --resize_test_imgs",
                "use another --device",
            ) from error
        raise
    if not isinstance(descriptors, Tensor) or descriptors.ndim != 2 or len(descriptors) != len(photos):
        kind = tuple(descriptors.shape) if isinstance(descriptors, Tensor) else type(descriptors).__name__
        raise ConfigError(f"The model returns {kind} for {len(photos)} photos. It must return (B, D), one row each.")
    return descriptors.float()
