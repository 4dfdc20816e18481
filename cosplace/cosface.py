"""CosFace: cosines between descriptors and class weights, with a margin taken off the right class.

Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, equation 4; used by
CosPlace section 3.2 with one classifier per group.  Feed the logits to `torch.nn.functional.cross_entropy`.
"""

import torch
from torch import Tensor, nn

from cosplace.errors import ConfigError

NORM_EPS = 1e-8  # a zero vector has cosine 0 with everything instead of NaN


class MarginCosineProduct(nn.Module):
    """Logits `s * (cos(descriptor, class) - m * [class is the right one])`.

    in_features is D, out_features is C, the number of classes of one group.  `weight` is (C, D), Xavier-uniform from
    `generator` (torch's own when None).  `s` (no unit) sharpens the softmax, `m` (in cosine) is the margin; both are
    plain attributes, so `m` may be raised from one call to the next.  Raises ConfigError for sizes below 1.
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
                f"A classifier needs at least 1 feature and 1 class, not {in_features} and {out_features}: "
                f"choose another --fc_output_dim or lower --min_images_per_class."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.s = s
        self.m = m
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.xavier_uniform_(self.weight, generator=generator)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, C) float32 of descriptors (B, D), of any length, with right classes `labels` (B,) int64."""
        # At bf16 precision (3 digits) cosines of neighbouring classes would tie, so autocast is kept out.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs, weight = inputs.float(), self.weight.float()
            scaled = inputs * (self.s / inputs.norm(dim=1, keepdim=True).clamp(min=NORM_EPS))  # (B, D)
            logits = scaled @ weight.t() / weight.norm(dim=1).clamp(min=NORM_EPS)  # (B, C)
            # The margin touches one logit per row; a (B, C) one-hot would be as large as the logits themselves.
            margins = torch.full_like(logits[:, :1], -self.s * self.m)  # (B, 1)
            return logits.scatter_add_(1, labels.unsqueeze(1), margins)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, s={self.s}, m={self.m}"
