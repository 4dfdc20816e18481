"""Photos of any kind as tensors or arrays: paths, PIL images, arrays, tensors and batches of them.

Torch is imported only for tensors, so that an engine that runs without torch starts fast.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image, ImageOps

from cosplace.errors import ImageError
from cosplace.photos.modes import to_rgb
from cosplace.photos.opening import MAX_PIXELS, damaged_photo, open_pixels
from cosplace.photos.resizing import resize_shorter_side

if TYPE_CHECKING:
    from torch import Tensor

ACCEPTED = "a path, a PIL image, an array or a tensor"


def photo_tensors(photos: Any, image_size: int | None = None) -> "Iterator[Tensor]":
    """Yield one photo or many as tensors (3, H, W), uint8 or float32 in [0, 1], one after another.

    photos: as for `Encoder.encode`.  image_size: pixels of the shorter side after resizing; None does not resize.
    Raises ImageError, which names the photo, for the first that is not accepted.
    """
    for photo, name in named_photos(photos):
        yield resize_shorter_side(photo, image_size, name)


def named_photos(photos: Any) -> "Iterator[tuple[Tensor, str | Path]]":
    """Each photo as a tensor (3, H, W), and its name for error messages."""
    for photo, name in named_pixels(photos):
        if isinstance(photo, np.ndarray):
            import torch

            yield torch.from_numpy(photo), name
        else:
            yield photo, name


def named_pixels(photos: Any) -> "Iterator[tuple[Tensor | np.ndarray, str | Path]]":
    """Each photo as it is opened without torch, an array (3, H, W) uint8, but tensors as tensors; and its name."""
    if _is_array(photos) and photos.ndim == 4:
        for number, photo in enumerate(photos):
            yield _pixels(photo, f"photo {number}"), f"photo {number}"
    elif _is_array(photos) or isinstance(photos, str | Path | Image.Image):
        yield _pixels(photos, "the photo"), photos if isinstance(photos, str | Path) else "the photo"
    elif isinstance(photos, Iterable) and not isinstance(photos, bytes | bytearray):
        for number, photo in enumerate(photos):
            if _is_array(photo) and photo.ndim == 4:
                for place, one in enumerate(photo):
                    name = f"photo {place} of batch {number}"
                    yield _pixels(one, name), name
            else:
                name = photo if isinstance(photo, str | Path) else f"photo {number}"
                yield _pixels(photo, str(name)), name
    else:
        raise ImageError(f"A {type(photos).__name__} is not a photo. Use {ACCEPTED}.")


def _is_array(value: Any) -> "TypeGuard[np.ndarray | Tensor]":
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: Any) -> "TypeGuard[Tensor]":
    torch = sys.modules.get("torch")  # without it, there are no tensors
    return torch is not None and isinstance(value, torch.Tensor)


def _pixels(photo: Any, name: str) -> "Tensor | np.ndarray":
    if isinstance(photo, str | Path):
        return open_pixels(photo).transpose(2, 0, 1)
    if isinstance(photo, Image.Image):
        return _from_pil(photo, name)
    if isinstance(photo, np.ndarray):
        return _from_array(photo, name)
    if _is_tensor(photo):
        return _from_tensor(photo, name)
    raise ImageError(f"{name} is a {type(photo).__name__}. Use {ACCEPTED}.")


def _from_pil(image: Image.Image, name: str) -> np.ndarray:
    name = getattr(image, "filename", "") or name
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels. Use an image of 1 to {MAX_PIXELS:,} pixels."
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about transparency, which is ignored as in files
            pixels = to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise damaged_photo(name, error) from error
    return pixels.transpose(2, 0, 1)


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
    shape = pixels.shape
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name} is an array of {pixels.dtype}. Use uint8, or a float tensor (3, H, W) in [0, 1].")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise ImageError(f"{name} is an array of shape {shape}. Use (H, W), (H, W, 3) or (H, W, 4) uint8.")
    channels = pixels[..., :3] if pixels.shape[2] > 1 else np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(channels).transpose(2, 0, 1)


def _from_tensor(pixels: "Tensor", name: str) -> "Tensor":
    import torch

    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        raise ImageError(f"{name} is a tensor of shape {tuple(pixels.shape)}. Use (3, H, W) or (1, H, W).")
    pixels = pixels.detach().cpu()
    if pixels.is_floating_point():
        pixels = pixels.float()
        # Written so that NaN fails too.
        if not bool((pixels >= 0).all() & (pixels <= 1).all()):
            raise ImageError(
                f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}. Use uint8 or floats in [0, 1], "
                f"before any normalization."
            )
    elif pixels.dtype != torch.uint8:
        raise ImageError(f"{name} is a tensor of {pixels.dtype}. Use uint8 or floats in [0, 1].")
    return pixels.expand(3, -1, -1)
