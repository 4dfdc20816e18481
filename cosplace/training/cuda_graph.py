"""The network of a training step as CUDA graphs.

On a fast GPU, a small network waits for the main process, which launches hundreds of small kernels in each iteration.
Two graphs, recorded once, launch the forward and the backward pass as a whole.  They run the same kernels, so losses
and gradients are the same.
"""

import logging
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cosplace.device import is_out_of_memory

log = logging.getLogger(__name__)


class RecordedNetwork:
    """A network in training mode, called with images (B, 3, H, W) on a CUDA device; (B, D) descriptors.

    The first call records the graphs for its shape; other shapes run without them.  The descriptors of a call are
    overwritten by the next one.  dtype: of mixed precision.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        self.network, self.dtype = network, dtype
        self.recorded: nn.Module | None = None
        self.shape: torch.Size | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Compute descriptors; raises what the network raises."""
        if self.shape is None:
            self.shape = images.shape
            self.recorded = self._record(images)
        if self.recorded is None or images.shape != self.shape or not self.network.training:
            return self.network(images)
        return self.recorded(images)

    def _record(self, images: Tensor) -> nn.Module | None:
        """Record the graphs; None if the network cannot be recorded."""
        # Recording runs the network a few times, which must not change its batch-norm statistics.
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        wrapper = _Wrapper(self.network).train()
        precision = nullcontext() if self.dtype is None else torch.autocast("cuda", self.dtype, cache_enabled=False)
        try:
            with precision:
                torch.cuda.make_graphed_callables(wrapper, (images.clone(),), allow_unused_input=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.warning("This network cannot be recorded as CUDA graphs (%s). Training is slower without.", error)
            return None
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
        return wrapper


class _Wrapper(nn.Module):
    """Recording replaces the method `forward` of a module: of this one instead of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
