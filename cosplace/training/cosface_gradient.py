"""The CosFace loss with its gradient by formula: half the work of autograd, and two tensors of the size of the logits.

`cosface.py` holds the plain formula; both give the same loss and the same gradients.  Legend: B batch, C classes,
D descriptor dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

NORM_EPS = 1e-8  # a zero vector has cosine 0 with everything instead of NaN
CPU_ROWS = 1024  # class weights per matrix product, so that the next product finds them in the cache


def cosface_loss(descriptors: Tensor, weight: Tensor, labels: Tensor, s: float, m: float) -> Tensor:
    """Mean cross entropy () of the CosFace logits of descriptors (B, D) and class weights (C, D).

    Both are float32 or both float64.  labels: (B,) int64.  Cannot be differentiated twice.
    """
    return _CosFaceLoss.apply(descriptors, weight, labels, s, m)


class _CosFaceLoss(Function):
    """Cross entropy of the logits and its gradients.

    With G = (softmax - one_hot) / B, shape (B, C), and x^ = s x / |x|, the derivative of the cosine gives
    dw = (G' x^) / |w| - w * sum over b of (G * logit) / |w|^2, and likewise for x, with the logits before the margin.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes arguments by position
        ctx: Any, inputs: Tensor, weight: Tensor, labels: Tensor, s: float, m: float
    ) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            input_norms = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1)
            input_scales = s / input_norms.clamp(min=NORM_EPS)
            scaled = inputs * input_scales  # (B, D)
            logits, norms = class_logits(scaled, weight)
            divisors = norms.clamp(min=NORM_EPS)

            index = labels.unsqueeze(1)  # (B, 1)
            right = logits.gather(1, index)
            slopes = logits.scatter(1, index, right - s * m)  # (B, C), with margin
            log_sums = slopes.logsumexp(1, keepdim=True)
            loss = (log_sums - (right - s * m)).mean()
            slopes.sub_(log_sums).exp_().scatter_add_(1, index, torch.full_like(right, -1.0)).div_(len(inputs))

            logits.mul_(slopes)
            # Where the clamp applies, the norm is a constant.
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
            by_scaled, by_weight = gradients_of_product(
                weight, slopes, of_classes * gradient, scaled * gradient, needs=ctx.needs_input_grad[:2]
            )
            by_inputs = by_scaled.addcmul_(scaled, of_inputs, value=-1).mul_(input_scales * gradient)
        return (by_inputs if ctx.needs_input_grad[0] else None), by_weight, None, None, None


def class_logits(scaled: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Products of inputs (B, D) and unit class weights, (B, C), and the norms (C,) of the class weights (C, D)."""
    norms, logits = weight.new_empty(len(weight)), weight.new_empty(len(scaled), len(weight))  # (C,), (B, C)
    rows = _rows(weight)
    for part, of_norms, of_logits in zip(weight.split(rows), norms.split(rows), logits.split(rows, dim=1), strict=True):
        torch.linalg.vector_norm(part, dim=1, out=of_norms)
        torch.mm(scaled, part.t(), out=of_logits)
    logits.div_(norms.clamp(min=NORM_EPS))
    return logits, norms


def gradients_of_product(
    weight: Tensor, slopes: Tensor, of_classes: Tensor, right: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the logits: of the inputs (B, D) except for their norms, and of the class weights (C, D).

    slopes: (B, C), those of the logits over the norms of the classes.  of_classes: (C,), what depends on the norms,
    over the class weights.  right: (B, D), the inputs times the gradient of the loss.  needs: which of the two are
    needed; the first one is zero if it is not.
    """
    by_weight = torch.empty_like(weight) if needs[1] else None  # (C, D)
    by_scaled = torch.zeros_like(right)  # (B, D)
    rows = _rows(weight)
    for start in range(0, len(weight), rows):
        some = slice(start, start + rows)
        if needs[0]:
            by_scaled.addmm_(slopes[:, some], weight[some])
        if by_weight is not None:
            torch.mm(slopes[:, some].t(), right, out=by_weight[some])
            by_weight[some].addcmul_(weight[some], of_classes[some].unsqueeze(1), value=-1)
    return by_scaled, by_weight


def _rows(weight: Tensor) -> int:
    """Class weights per matrix product: all of them on a GPU, where launching a kernel costs more than reading."""
    return CPU_ROWS if weight.device.type == "cpu" else len(weight)
