"""Batch normalization with the statistics of the whole batch, of which each process has a part.

Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.  With n values of a channel in all parts,

    mean = sum of x / n,  variance = sum of (x - mean)^2 / n,  y = weight (x - mean) / sqrt(variance + eps) + bias
    dx = weight / sqrt(variance + eps) (dy - mean of dy - x^ (mean of dy x^)),  x^ = (x - mean) / sqrt(variance + eps)

On the CPU this module computes them; torch has a function for CUDA only.  The parts may have different sizes.
Legend: N own images of the batch, C channels, K processes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from cosplace.device import at_least_float32
from cosplace.training.processes import Processes


class SyncedForward:
    """Replaces `forward` of a batch norm, which keeps its type, weights and statistics.

    A norm of timm that includes an activation is meant too.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, processes: Processes) -> None:
        self.norm, self.processes = norm, processes

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)."""
        norm = self.norm
        if not norm.training and norm.running_mean is not None:
            return type(norm).forward(norm, inputs)
        outputs = synced_batch_norm(inputs, norm, self.processes)
        for name in ("drop", "act"):
            layer = getattr(norm, name, None)
            outputs = outputs if layer is None else layer(outputs)
        return outputs


def synced_batch_norm(inputs: Tensor, norm: nn.modules.batchnorm._BatchNorm, processes: Processes) -> Tensor:
    """Normalize inputs (N, C, ...) by the statistics of all processes, and update those that the norm keeps."""
    momentum = 0.0 if norm.momentum is None else norm.momentum
    keeps = norm.training and norm.track_running_stats
    if keeps and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    mean, variance = (norm.running_mean, norm.running_var) if keeps else (None, None)
    if inputs.device.type == "cuda":
        from torch.nn.modules._functions import SyncBatchNorm  # what torch.nn.SyncBatchNorm calls

        weight = torch.ones_like(inputs[0, :, 0]) if norm.weight is None else norm.weight
        bias = torch.zeros_like(weight) if norm.bias is None else norm.bias
        group = torch.distributed.group.WORLD
        return SyncBatchNorm.apply(
            inputs, weight, bias, mean, variance, norm.eps, momentum, group, processes.world_size
        )
    return _SyncedBatchNorm.apply(inputs, norm.weight, norm.bias, mean, variance, momentum, norm.eps, processes)


class _SyncedBatchNorm(Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes arguments by position
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        momentum: float,
        eps: float,
        processes: Processes,
    ) -> Tensor:
        numbers = at_least_float32(inputs)
        kind = numbers.dtype
        count, channels = numbers.numel() // numbers.shape[1], numbers.shape[1]
        own_mean, own_variance = torch.batch_norm_update_stats(numbers, None, None, 0.0)  # (C,), divided by n

        # A row per process: adding zeros is exact, and all processes combine the rows in the same order.
        table = torch.zeros(processes.world_size, 1 + 2 * channels, dtype=torch.float64)
        table[processes.rank] = torch.cat([torch.tensor([float(count)]), own_mean, own_variance])
        counts, means, variances = processes.add_up(table).split([1, channels, channels], dim=1)
        total = counts.sum()
        if total <= 1:
            raise ValueError(f"Batch normalization needs more than one value per channel, got {list(inputs.shape)}")
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        if running_mean is not None and running_variance is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(kind), alpha=momentum)
            running_variance.mul_(1 - momentum).add_((variance * (total / (total - 1))).to(kind), alpha=momentum)
        mean, variance = mean.to(kind), variance.to(kind)
        ctx.save_for_backward(inputs, weight, mean, variance)
        ctx.eps, ctx.total, ctx.processes = eps, float(total), processes
        return F.batch_norm(numbers, mean, variance, weight, bias, False, 0.0, eps).to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, variance = ctx.saved_tensors
        numbers, slopes = at_least_float32(inputs), at_least_float32(gradients)
        # Own sums: of the gradients times x^, and of the gradients.
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            slopes, numbers, torch.ones_like(mean), mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        by_input = None
        if ctx.needs_input_grad[0]:
            sums = ctx.processes.add_up(torch.stack([by_weight, by_bias]).double()) / ctx.total  # (2, C), means
            scale = (variance.double() + ctx.eps).rsqrt()
            gain = scale if weight is None else scale * weight.double()
            slope = -gain * scale * sums[0]
            shift = -gain * sums[1] - slope * mean.double()
            shape = (1, -1, *[1] * (inputs.dim() - 2))
            gain, slope, shift = (one.to(slopes.dtype).view(shape) for one in (gain, slope, shift))
            by_input = torch.addcmul(shift, numbers, slope).addcmul_(slopes, gain).to(inputs.dtype)
        return (
            by_input,
            by_weight if ctx.needs_input_grad[1] else None,
            by_bias if ctx.needs_input_grad[2] else None,
            None, None, None, None, None,
        )  # fmt: skip
