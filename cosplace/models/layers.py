"""The layers of the aggregation: L2 normalization and GeM pooling.

GeM is equation 3 of Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.models.gradients import PowerMean, UnitLength, needs_gradient

GEM_START = 3.0  # initial value of the learned power
GEM_EPS = 1e-6


class L2Norm(nn.Module):
    """Scale vectors along dimension 1 to length 1, in float32 or more: (B, D, ...) -> (B, D, ...)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each vector of `inputs`; zero vectors stay zero."""
        inputs = at_least_float32(inputs)
        if needs_gradient(inputs):
            return UnitLength.apply(inputs)  # the same, with a faster gradient
        return F.normalize(inputs, p=2.0, dim=1)


class GeM(nn.Module):
    """Generalized mean over height and width with a learned power `p`: (B, D, H, W) -> (B, D, 1, 1)."""

    def __init__(self, p: float = GEM_START, eps: float = GEM_EPS) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool `inputs` in float32 or more; the result has the type of the parameters, for the layers that follow."""
        inputs, p = at_least_float32(inputs), at_least_float32(self.p)
        if needs_gradient(inputs, p):
            return PowerMean.apply(inputs, p, self.eps).to(self.p.dtype)  # the same, with a faster gradient
        # exp(p log x) is x ** p in half the time.  A mean over dimensions can be exported for images of any size; a
        # pooling whose kernel has the size of the input cannot.
        powers = (inputs.clamp(min=self.eps).log() * p).exp()  # (B, D, H, W)
        means = powers.mean(dim=(-2, -1), keepdim=True)  # (B, D, 1, 1)
        return (means.log() / p).exp().to(self.p.dtype)

    def extra_repr(self) -> str:
        """Arguments that `print` shows."""
        return f"p={self.p.detach().tolist()}, eps={self.eps}"
