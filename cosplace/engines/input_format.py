"""What an exported file takes as input: which values, in which layout, of which sizes; and photos in that form.

Legend: B batch, H x W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cosplace.photos.normalization import IMAGENET_MEAN, IMAGENET_STD, to_unit_floats
from cosplace.photos.resizing import resize, resize_shorter_side


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """The input of an exported file."""

    values: str = "normalized"  # see `config.export.INPUT_VALUES`
    layout: str = "NCHW"  # or NHWC
    resize_to: int | None = None  # the file resizes photos to this shorter side; None: it takes photos as they are
    static_shape: tuple[int, int, int] | None = None  # B, H, W; None: any

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last axis."""
        return self.layout == "NHWC"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return torch.uint8 if self.values == "uint8" else torch.float32

    def from_normalized(self, images: Tensor) -> Tensor:
        """Input (B, 3, H, W) or (B, H, W, 3) from ImageNet-normalized images (B, 3, H, W).

        For uint8, exactly the pixels that were normalized.
        """
        if self.values != "normalized":
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            images = images * std + mean
            images = (255 * images).round().clamp(0, 255).byte() if self.values == "uint8" else images
        return (images.permute(0, 2, 3, 1) if self.channels_last else images).contiguous()

    def from_pixels(self, photos: Tensor) -> Tensor:
        """Input of the file from photos (B, 3, H, W) uint8."""
        images = photos if self.values == "uint8" else to_unit_floats(photos)
        if self.values == "normalized":
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            images = (images - mean) / std
        return (images.permute(0, 2, 3, 1) if self.channels_last else images).contiguous()

    def fit(self, photo: Tensor, image_size: int | None) -> Tensor:
        """Resize a photo (3, H, W) uint8 as the file needs it.  image_size: pixels of the shorter side, or None."""
        if self.static_shape is not None:
            return resize(photo, *self.static_shape[1:])
        return photo if self.resize_to is not None else resize_shorter_side(photo, image_size)
