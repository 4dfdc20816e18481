"""Average the descriptors of a photo at several scales, and of its mirror image.

As in image retrieval (Radenović et al., TPAMI 2019, section 3.4): descriptors of length 1 are summed, and the sum is
normalized.  Legend: B batch, D descriptor dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_SCALES = 10


class AveragedModel(nn.Module):
    """A model (B, 3, H, W) normalized photos -> (B, D) that also sees each photo at other scales, or mirrored."""

    def __init__(self, model: nn.Module, scales: Sequence[float] = (1.0,), *, flip: bool = False) -> None:
        super().__init__()
        self.model, self.scales, self.flip = model, tuple(scales), flip

    def forward(self, photos: Tensor) -> Tensor:
        """Descriptors (B, D) of length 1."""
        views = []
        for scale in self.scales:
            scaled = photos if scale == 1 else _resized(photos, scale)
            views += [scaled, scaled.flip(-1)] if self.flip else [scaled]
        descriptors = [functional.normalize(self.model(view).float(), dim=1) for view in views]
        return functional.normalize(torch.stack(descriptors).sum(0), dim=1)


def _resized(photos: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(scale * side)) for side in photos.shape[-2:])
    return functional.interpolate(photos, (height, width), mode="bilinear", antialias=True)


def averaged(model: nn.Module, scales: Sequence[float] = (1.0,), *, flip: bool = False) -> nn.Module:
    """The model, or an AveragedModel if there is anything to average."""
    return model if tuple(scales) == (1.0,) and not flip else AveragedModel(model, scales, flip=flip)
