"""A model in three lines: load it, describe photos, compare.

>>> from cosplace import load_model
>>> model = load_model("logs/default/2024-01-01_12-00-00/best_model.pth", image_size=512)
>>> here, there = model.encode(["here.jpg", "there.jpg"])
>>> similarity = float(here @ there)          # cosine: 1 for the same view, near 0 for unrelated ones

The descriptors are those that `cosplace eval` computes for the same photo and size.  Legend: N photos, B batch,
D descriptor dimension.
"""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cosplace.device import choose_device, is_out_of_memory, mixed_precision
from cosplace.errors import CheckpointError, ConfigError, DeviceError, ImageError
from cosplace.models.inference import for_inference
from cosplace.models.opening import open_network
from cosplace.models.reduction import first_dimensions
from cosplace.models.weight_files import model_checksum
from cosplace.photos.normalization import normalize
from cosplace.photos.opening import MAX_PIXELS, open_image

WAITING_BATCHES = 4  # photos that are held in memory at once, in batches: those of one size travel together
PROBED_SIDE = 224  # pixels, of the photo that tells an unknown network's dimension


def load_model(
    model: str | Path,
    *,
    image_size: int | None = None,
    device: str = "auto",
    reduce_to: int | None = None,
    trust_remote_code: bool = False,
) -> "Encoder":
    """Load a model that describes photos.

    model: a name of `cosplace zoo list`, a file of weights (.pth or .safetensors), or `hub:owner/repo:entry(args)`,
    which needs trust_remote_code.  image_size: pixels of the shorter side after resizing; None keeps each photo's own
    size.  device: auto, cpu, cuda, cuda:N or mps.  reduce_to: the first so many dimensions of a model that
    `cosplace reduce` wrote.

    Raises ConfigError, CheckpointError, DownloadError or DeviceError.
    """
    network = open_network(model, trust_remote_code=trust_remote_code)
    if reduce_to is not None:
        network = first_dimensions(network, reduce_to)
    return Encoder(network, name=_full_name(model), image_size=image_size, device=device)


def _full_name(model: str | Path) -> str:
    """What opens the same model from any folder: absolute paths of files, names as they are."""
    path = Path(model)
    return str(path.absolute()) if path.is_file() else str(model)


class Encoder:
    """Photos in, unit descriptors out.

    name: what `load_model` was given, files as absolute paths; network: (B, 3, H, W) ImageNet-normalised -> (B, D), in
    evaluation mode; dimension: D; image_size: pixels of the shorter side, None for each photo's own; device; checksum:
    SHA-256 of the network's structure and tensors.  May be called from several threads.
    """

    def __init__(
        self, network: nn.Module, *, name: str = "", image_size: int | None = None, device: str | torch.device = "auto"
    ) -> None:
        if image_size is not None and image_size < 1:
            raise ConfigError(f"image_size is {image_size}: it must be at least 1.")
        self.name, self.image_size = name, image_size
        self.device = choose_device(str(device))
        self.network = network.to(self.device).eval()
        self.checksum = model_checksum(self.network)
        self._fast = for_inference(self.network)
        self.dimension = find_dimension(self.network, self.device)

    def encode(self, photos: Any, *, batch_size: int = 16) -> np.ndarray:
        """Unit descriptors (N, D) float32 of one photo or of many, in their order.

        A photo is a path, a PIL picture (its EXIF orientation is applied), an array (H, W), (H, W, 3) or (H, W, 4)
        uint8, or a tensor (3, H, W) or (1, H, W), uint8 or float in [0, 1].  Many are a batch (N, H, W, C) or
        (N, C, H, W) of one size, or any iterable of photos of any kinds and sizes.
        Raises ImageError, which names the photo, for the first that cannot be opened, CheckpointError for a descriptor
        that is not finite.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be at least 1.")
        rows: list[np.ndarray] = []
        waiting: list[Tensor] = []
        for photo in _each(photos):
            waiting.append(self._resized(photo))
            if len(waiting) == WAITING_BATCHES * batch_size:
                rows.append(self._described(waiting, batch_size))
                waiting = []
        if waiting:
            rows.append(self._described(waiting, batch_size))
        return np.concatenate(rows) if rows else np.empty((0, self.dimension), np.float32)

    def _resized(self, photo: Tensor) -> Tensor:
        if self.image_size is None:
            return photo
        return resize(photo, [self.image_size], InterpolationMode.BILINEAR, antialias=True)

    def _described(self, photos: list[Tensor], batch_size: int) -> np.ndarray:
        """Descriptors (n, D) of photos (3, H, W), those of one size and type together."""
        found = np.empty((len(photos), self.dimension), np.float32)
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for place, photo in enumerate(photos):
            alike.setdefault((photo.shape, photo.dtype), []).append(place)
        for places in alike.values():
            for start in range(0, len(places), batch_size):
                some = places[start : start + batch_size]
                with torch.inference_mode():
                    batch = torch.stack([photos[place] for place in some])
                    found[some] = encode_batch(self._fast, batch, device=self.device).cpu().numpy()
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"{self.name or 'The model'} gives descriptors that are not finite: its weights are damaged."
            )
        return found


def find_dimension(network: nn.Module, device: torch.device) -> int:
    """How many numbers describe a photo: what the network says, or else gives for a grey one."""
    known = getattr(network, "fc_output_dim", None)
    if isinstance(known, int):
        return known
    grey = torch.full((1, 3, PROBED_SIDE, PROBED_SIDE), 127, dtype=torch.uint8)
    with torch.inference_mode():
        return encode_batch(network, grey, device=device).shape[1]


# --- photos of every kind --------------------------------------------------------------------------------------------


def _each(photos: Any) -> Iterator[Tensor]:
    """One photo or many as (3, H, W) tensors, uint8 or float32 in [0, 1], one after another."""
    if isinstance(photos, np.ndarray | Tensor):
        if photos.ndim == 4:
            for number, photo in enumerate(photos):
                yield _one(photo, f"photo {number}")
            return
        yield _one(photos, "the photo")
    elif isinstance(photos, str | Path | Image.Image):
        yield _one(photos, "the photo")
    elif isinstance(photos, Iterable) and not isinstance(photos, bytes | bytearray):
        for number, photo in enumerate(photos):
            if isinstance(photo, np.ndarray | Tensor) and photo.ndim == 4:
                yield from (_one(one, f"photo {place} of batch {number}") for place, one in enumerate(photo))
            else:
                yield _one(photo, f"photo {number}")
    else:
        raise ImageError(f"A {type(photos).__name__} is no photo: give a path, a PIL picture, an array or a tensor.")


def _one(photo: Any, name: str) -> Tensor:
    if isinstance(photo, str | Path):
        return open_image(photo)
    if isinstance(photo, Image.Image):
        return _from_pillow(photo, name)
    if isinstance(photo, np.ndarray):
        return _from_array(photo, name)
    if isinstance(photo, Tensor):
        return _from_tensor(photo, name)
    raise ImageError(f"{name} is a {type(photo).__name__}: give a path, a PIL picture, an array or a tensor.")


def _from_pillow(picture: Image.Image, name: str) -> Tensor:
    shown = getattr(picture, "filename", "") or name
    if not 0 < picture.width * picture.height <= MAX_PIXELS:
        raise ImageError(f"{shown} has {picture.width} x {picture.height} pixels: give 1 to {MAX_PIXELS:,} in all.")
    try:
        with warnings.catch_warnings(action="ignore"):  # of transparency, which is left out as in files
            pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ImageError(f"{shown} cannot be decoded ({str(error).rstrip('.') or type(error).__name__}).") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _from_array(pixels: np.ndarray, name: str) -> Tensor:
    shape = pixels.shape
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name} is an array of {pixels.dtype}: give uint8, or a float tensor (3, H, W) in [0, 1].")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise ImageError(f"{name} is an array of shape {shape}: give (H, W), (H, W, 3) or (H, W, 4) uint8.")
    channels = pixels[..., :3] if pixels.shape[2] > 1 else np.repeat(pixels, 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(channels)).permute(2, 0, 1)


def _from_tensor(pixels: Tensor, name: str) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        raise ImageError(f"{name} is a tensor of shape {tuple(pixels.shape)}: give (3, H, W) or (1, H, W).")
    pixels = pixels.detach().cpu()
    if pixels.is_floating_point():
        pixels = pixels.float()
        # Written so that NaN fails too.
        if not bool((pixels >= 0).all() & (pixels <= 1).all()):
            raise ImageError(
                f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}: give uint8 or floats in [0, 1], "
                f"before any normalisation."
            )
    elif pixels.dtype != torch.uint8:
        raise ImageError(f"{name} is a tensor of {pixels.dtype}: give uint8 or floats in [0, 1].")
    return pixels.expand(3, -1, -1)


# --- reductions ------------------------------------------------------------------------------------------------------


def encode_batch(
    model: nn.Module, photos: Tensor, *, device: torch.device, autocast: torch.dtype | None = None
) -> Tensor:
    """Descriptors (B, D) float32 of photos (B, 3, H, W) uint8 of one size; the model is where and as it should be."""
    # Convolutions on CPU are a fifth faster with channels last, and 16-bit ones on CUDA take nothing else.
    layout = torch.channels_last if device.type == "cpu" or autocast is not None else torch.contiguous_format
    try:
        normalized = normalize(photos.to(device, non_blocking=True).contiguous(memory_format=layout))
        with mixed_precision(device, autocast):
            found = model(normalized)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"Not enough memory on {device} for {len(photos)} photos of {photos.shape[3]} x {photos.shape[2]} "
                f"pixels at once: use a smaller --infer_batch_size, or --resize_test_imgs."
            ) from error
        raise
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(photos):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"The model turns {len(photos)} photos into {shape}: it must return (B, D), one row each.")
    return found.float()
