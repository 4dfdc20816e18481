"""Gradients of L2 normalization and GeM pooling by formula, in a fraction of autograd's time and memory.

The layers in `layers` use these functions in eager training only.  Compilers and exporters see the plain formulas.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

UNIT_EPS = 1e-12  # smallest divisor, as in F.normalize
LN_2 = math.log(2)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records a gradient for any of `tensors`, in eager mode."""
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


class UnitLength(Function):
    """L2 normalization along dimension 1: y = x / max(|x|, UNIT_EPS), dx = (dy - y <y, dy>) / |x|."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        """(B, D, ...) -> (B, D, ...)."""
        lengths = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1, ...)
        units = inputs / lengths.clamp(min=UNIT_EPS)
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        """Map dy (B, D, ...) to dx (B, D, ...)."""
        units, lengths = ctx.saved_tensors
        products = units * gradients
        along = products.sum(1, keepdim=True)  # (B, 1, ...), <y, dy>
        along.masked_fill_(lengths < UNIT_EPS, 0.0)  # for shorter vectors the divisor is constant
        torch.mul(units, along, out=products)
        return torch.sub(gradients, products, out=products).div_(lengths.clamp(min=UNIT_EPS))


class PowerMean(Function):
    """GeM pooling: y = (mean of max(x, eps) ** p over height and width) ** (1 / p), with gradients of x and p.

    With M the mean: dy/dx = y / (M H W) x ** (p - 1) where x >= eps, else 0, and dy/dp = y / p (mean(x ** p ln x) / M -
    ln(M) / p).  One tensor of the input's size is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, p: Tensor, eps: float) -> Tensor:
        """(B, D, H, W), (1,) -> (B, D, 1, 1)."""
        # Logarithms to base 2, because exp2 takes a third of exp's time on CPU.
        logs = inputs.clamp(min=eps).log2_()  # (B, D, H, W)
        powers = (logs * p).exp2_()  # (B, D, H, W)
        means = powers.mean((-2, -1), keepdim=True)  # (B, D, 1, 1)
        log_means = means.log2()
        pooled = (log_means / p).exp2_()
        mean_logs = logs.mul_(powers).mean((-2, -1), keepdim=True) / means
        by_power = (mean_logs - log_means / p) * (pooled * (LN_2 / p))  # (B, D, 1, 1), dy/dp
        # The largest number below eps: clamp passes gradients where x >= eps, but threshold keeps only x > its limit.
        below = torch.nextafter(torch.tensor(eps, dtype=inputs.dtype), torch.zeros((), dtype=inputs.dtype)).item()
        slopes = powers.div_(F.threshold(inputs, below, math.inf))  # (B, D, H, W), x ** (p - 1) or 0
        by_input = pooled / (means * (inputs.size(-2) * inputs.size(-1)))  # (B, D, 1, 1)
        ctx.save_for_backward(slopes, by_input, by_power)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Map dy (B, D, 1, 1) to dx (B, D, H, W) and dp (1,)."""
        slopes, by_input, by_power = ctx.saved_tensors
        return slopes * (by_input * gradients), (by_power * gradients).sum().view(1), None
