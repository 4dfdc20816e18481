"""CosFace: cosines between descriptors and class weights, with a margin taken off the right class.

Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018, equation 4; used by
CosPlace section 3.2 with one classifier per group.  `loss` is the cross entropy of the logits, with gradients by
formula: half the work of autograd's and, beside the gradients themselves, two tensors of the size of the logits.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from cosplace.errors import ConfigError

NORM_EPS = 1e-8  # a zero vector has cosine 0 with everything instead of NaN
CPU_ROWS = 1024  # class weights at a time: what one product has read, the next finds in the processor's cache


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

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy () float32 of the logits of descriptors (B, D) with right classes `labels` (B,) int64.

        The same number as `cross_entropy(self(inputs, labels), labels)`; cannot be differentiated twice.
        """
        learns = torch.is_grad_enabled() and (inputs.requires_grad or self.weight.requires_grad)
        if not learns or torch.compiler.is_compiling():
            return F.cross_entropy(self(inputs, labels), labels)
        return _MarginLoss.apply(inputs.float(), self.weight.float(), labels, self.s, self.m)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, s={self.s}, m={self.m}"


class _MarginLoss(Function):
    """Mean cross entropy of the logits, and its gradients.

    With G = (softmax - one_hot) / B (B, C), x^ = s x / |x| and the cosine's own derivative:
    dw = (G' x^) / |w| - w sum over b of G logit / |w| ** 2, and the same for x; the logits here are without margin.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
        ctx: Any, inputs: Tensor, weight: Tensor, labels: Tensor, s: float, m: float
    ) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            input_norms = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1)
            input_scales = s / input_norms.clamp(min=NORM_EPS)
            scaled = inputs * input_scales  # (B, D)
            norms, logits = weight.new_empty(len(weight)), weight.new_empty(len(inputs), len(weight))  # (C,), (B, C)
            rows = _rows(weight)
            for part, of_norms, of_logits in zip(
                weight.split(rows), norms.split(rows), logits.split(rows, dim=1), strict=True
            ):
                torch.linalg.vector_norm(part, dim=1, out=of_norms)
                torch.mm(scaled, part.t(), out=of_logits)
            divisors = norms.clamp(min=NORM_EPS)
            logits.div_(divisors)

            index = labels.unsqueeze(1)  # (B, 1)
            right = logits.gather(1, index)
            slopes = logits.scatter(1, index, right - s * m)  # (B, C), with margin
            log_sums = slopes.logsumexp(1, keepdim=True)
            loss = (log_sums - (right - s * m)).mean()
            slopes.sub_(log_sums).exp_().scatter_add_(1, index, torch.full_like(right, -1.0)).div_(len(inputs))

            logits.mul_(slopes)
            # Where a clamp holds, the length is a constant.
            of_inputs = logits.sum(1, keepdim=True).masked_fill_(input_norms < NORM_EPS, 0.0)  # (B, 1)
            of_classes = (logits.sum(0) / divisors / divisors).masked_fill_(norms < NORM_EPS, 0.0)  # (C,)
            slopes.div_(divisors)
        ctx.save_for_backward(weight, slopes, scaled, input_scales, of_inputs / s**2, of_classes)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weight, slopes, scaled, input_scales, of_inputs, of_classes = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            by_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # (C, D)
            by_scaled = torch.zeros_like(scaled)  # (B, D)
            right, of_classes = scaled * gradient, of_classes * gradient
            rows = _rows(weight)
            for start in range(0, len(weight), rows):
                some = slice(start, start + rows)
                if ctx.needs_input_grad[0]:
                    by_scaled.addmm_(slopes[:, some], weight[some])
                if by_weight is not None:
                    torch.mm(slopes[:, some].t(), right, out=by_weight[some])
                    by_weight[some].addcmul_(weight[some], of_classes[some].unsqueeze(1), value=-1)
            by_inputs = by_scaled.addcmul_(scaled, of_inputs, value=-1).mul_(input_scales * gradient)
        return (by_inputs if ctx.needs_input_grad[0] else None), by_weight, None, None, None


def _rows(weight: Tensor) -> int:
    """Class weights to take at a time: all of them where launching is dearer than reading."""
    return CPU_ROWS if weight.device.type == "cpu" else len(weight)
