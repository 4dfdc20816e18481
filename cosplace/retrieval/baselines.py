"""Descriptors without a network: the recalls that any network must exceed."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cosplace.photos.normalization import IMAGENET_STD, LUMA


class TinyImage(nn.Module):
    """The photo itself as its descriptor: side x side gray pixels, zero mean, unit length.

    After Torralba, Fergus and Freeman, "80 million tiny images", PAMI 2008.
    """

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.side = side

    def forward(self, normalized: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalized photos -> (B, side * side); zeros for a photo of one color."""
        scale = torch.tensor([luma * std for luma, std in zip(LUMA, IMAGENET_STD, strict=True)])
        # ImageNet's mean only adds a constant to the gray values; the mean below is subtracted with it.
        gray = torch.einsum("bchw,c->bhw", normalized, scale.to(normalized))
        size = (self.side, self.side)
        tiny = functional.interpolate(gray[:, None], size, mode="bilinear", antialias=True).flatten(1)
        return functional.normalize(tiny - tiny.mean(1, keepdim=True), eps=1e-6)

    def extra_repr(self) -> str:
        """Show the side, so that checksums of models with other sides differ."""
        return f"side={self.side}"
