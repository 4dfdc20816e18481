"""CosFace: cosine similarity of descriptors and class weights, minus a margin for the true class.

Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, equation 4.  CosPlace
(section 3.2) uses one classifier per group.  Legend: B batch, C classes of the group, D descriptor dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.errors import ConfigError
from cosplace.training.cosface_gradient import NORM_EPS, cosface_loss


class MarginCosineProduct(nn.Module):
    """The classifier of one group: logits `s * (cos(descriptor, class) - m * [class is the true one])`.

    in_features: D.  out_features: C.  `weight` (C, D) is drawn Xavier-uniform from `generator` (torch's own if None).
    `s` scales the logits, `m` is the margin, in units of cosine; both are plain attributes, so `m` may change between
    calls.  Raises ConfigError for sizes below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        s: float = 30.0,
        m: float = 0.40,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ConfigError(
                f"A classifier needs at least 1 feature and 1 class, got {in_features} and {out_features}. "
                f"Use another --fc_output_dim or a lower --min_images_per_class."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.s = s
        self.m = m
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C) float32 of descriptors (B, D), of any norm, with true classes `labels` (B,) int64.

        They are float64 if descriptors and class weights are.
        """
        # bf16 has 3 digits: cosines of similar classes would tie, so the logits are computed in float32.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs, weight = at_least_float32(inputs), at_least_float32(self._weight_of(inputs))
            scaled = inputs * (self.s / inputs.norm(dim=1, keepdim=True).clamp(min=NORM_EPS))  # (B, D)
            logits = scaled @ weight.t() / weight.norm(dim=1).clamp(min=NORM_EPS)  # (B, C)
            # The margin changes one logit per row; a one-hot matrix would be as large as the logits.
            margins = torch.full_like(logits[:, :1], -self.s * self.m)  # (B, 1)
            return logits.scatter_add_(1, labels.unsqueeze(1), margins)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy () of the logits: `cross_entropy(self(inputs, labels), labels)`.

        inputs: descriptors (B, D), or their first d dimensions (B, d), which are compared with those of the class
        weights.  labels: (B,) int64.  Training uses the gradient by formula (cosface_gradient.py), which cannot be
        differentiated twice.
        """
        needs_gradient = torch.is_grad_enabled() and (inputs.requires_grad or self.weight.requires_grad)
        if not needs_gradient or torch.compiler.is_compiling():
            return F.cross_entropy(self(inputs, labels), labels)
        weight = self._weight_of(inputs)
        return cosface_loss(at_least_float32(inputs), at_least_float32(weight), labels, self.s, self.m)

    def _weight_of(self, inputs: Tensor) -> Tensor:
        dim = inputs.shape[1]
        return self.weight if dim == self.in_features else self.weight[:, :dim].contiguous()

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, s={self.s}, m={self.m}"
