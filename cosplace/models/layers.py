"""The layers of the aggregation: L2 normalisation and GeM, with gradients by formula.

GeM is equation 3 of Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

GEM_START = 3.0  # GeM's first power
GEM_EPS = 1e-6
UNIT_EPS = 1e-12  # shorter vectors are divided by this, as by F.normalize
LN_2 = math.log(2)


class L2Norm(nn.Module):
    """Scale vectors along dimension 1 to length 1, in float32: (B, D, ...) -> (B, D, ...)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale each vector of `inputs`; zero vectors stay zero."""
        inputs = inputs.float()
        return _UnitLength.apply(inputs) if _learns(inputs) else F.normalize(inputs, p=2.0, dim=1)


class GeM(nn.Module):
    """Generalised mean over height and width with a learned power `p`: (B, D, H, W) -> (B, D, 1, 1)."""

    def __init__(self, p: float = GEM_START, eps: float = GEM_EPS) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Pool `inputs` in float32; the result has the precision of the parameters, for the layers that follow."""
        inputs, p = inputs.float(), self.p.float()
        if _learns(inputs, p):
            return _PowerMean.apply(inputs, p, self.eps).to(self.p.dtype)
        # exp(p log x) is x ** p with half the work; a mean over dimensions, unlike pooling with the input's size as
        # kernel, can be exported for photos of any size.
        powers = (inputs.clamp(min=self.eps).log() * p).exp()  # (B, D, H, W)
        means = powers.mean(dim=(-2, -1), keepdim=True)  # (B, D, 1, 1)
        return (means.log() / p).exp().to(self.p.dtype)

    def extra_repr(self) -> str:
        """Describe the module for `print`."""
        return f"p={self.p.detach().tolist()}, eps={self.eps}"


# --- gradients by formula: a fraction of autograd's work and memory --------------------------------------------------


def _learns(*tensors: Tensor) -> bool:
    """Whether gradients of any of `tensors` are recorded, eagerly: compilers and exporters take plain formulas."""
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


class _UnitLength(Function):
    """y = x / max(|x|, UNIT_EPS) along dimension 1; dx = (dy - y <y, dy>) / |x|."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)  # (B, 1, ...)
        units = inputs / lengths.clamp(min=UNIT_EPS)
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        products = units * slopes
        along = products.sum(1, keepdim=True)  # (B, 1, ...)
        along.masked_fill_(lengths < UNIT_EPS, 0.0)  # there the divisor is constant
        torch.mul(units, along, out=products)
        return torch.sub(slopes, products, out=products).div_(lengths.clamp(min=UNIT_EPS))


class _PowerMean(Function):
    """y = (mean of max(x, eps) ** p over height and width) ** (1 / p), with gradients of x and p.

    With M the mean: dy/dx = y / (M H W) x ** (p - 1) where x >= eps, else 0, and dy/dp = y / p (mean(x ** p ln x) / M -
    ln(M) / p).  One tensor of the input's size is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, p: Tensor, eps: float) -> Tensor:
        # Logarithms to base 2, as exp2 takes a third of exp's time on CPU.
        logs = inputs.clamp(min=eps).log2_()  # (B, D, H, W)
        powers = (logs * p).exp2_()  # (B, D, H, W)
        means = powers.mean((-2, -1), keepdim=True)  # (B, D, 1, 1)
        log_means = means.log2()
        pooled = (log_means / p).exp2_()
        mean_logs = logs.mul_(powers).mean((-2, -1), keepdim=True) / means
        by_power = (mean_logs - log_means / p) * (pooled * (LN_2 / p))  # (B, D, 1, 1)
        # The largest number below eps: clamp passes gradients where x >= eps, and threshold keeps what is greater.
        below = torch.nextafter(torch.tensor(eps, dtype=inputs.dtype), torch.zeros((), dtype=inputs.dtype)).item()
        slopes = powers.div_(F.threshold(inputs, below, math.inf))  # (B, D, H, W), x ** (p - 1) or 0
        by_input = pooled / (means * (inputs.size(-2) * inputs.size(-1)))  # (B, D, 1, 1)
        ctx.save_for_backward(slopes, by_input, by_power)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        slopes, by_input, by_power = ctx.saved_tensors
        return slopes * (by_input * gradients), (by_power * gradients).sum().view(1), None
