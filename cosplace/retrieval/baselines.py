"""Descriptors without a network: what any network must beat."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.photos.image_list import ImageList
from cosplace.photos.normalization import IMAGENET_STD, LUMA
from cosplace.retrieval.extraction import Progress, extract


class TinyImage(nn.Module):
    """The photo itself as its descriptor: side x side grey pixels, zero mean, unit length.  What any network must beat.

    After Torralba, Fergus and Freeman, "80 million tiny images", PAMI 2008.
    """

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.side = side

    def forward(self, normalized: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalized photos -> (B, side * side); zeros for a photo of one color."""
        scale = torch.tensor([grey * std for grey, std in zip(LUMA, IMAGENET_STD, strict=True)])
        grey = torch.einsum("bchw,c->bhw", normalized, scale.to(normalized))  # up to a constant, which the mean takes
        size = (self.side, self.side)
        tiny = functional.interpolate(grey[:, None], size, mode="bilinear", antialias=True).flatten(1)
        return functional.normalize(tiny - tiny.mean(1, keepdim=True), eps=1e-6)

    def extra_repr(self) -> str:
        """Tell one size from another, also in a folder's checksum."""
        return f"side={self.side}"


def tiny_image_descriptors(
    images: ImageList, side: int = 16, *, num_workers: int = 0, progress: Progress | None = None
) -> np.ndarray:
    """Descriptors (I, side * side) float32 of the TinyImage baseline.  Raises ImageError for unreadable photos."""
    extraction = extract(TinyImage(side), images, num_workers=num_workers, progress=progress)
    return extraction.descriptors[:]
