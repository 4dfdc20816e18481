"""The network of a training step as CUDA graphs, for `--cuda_graphs`.

On a fast GPU, a small network waits for the main process, which launches hundreds of small kernels in each iteration.
Two graphs, recorded once, launch the forward and the backward pass as a whole.  They run the same kernels, so losses
and gradients are the same.
"""

import gc
import logging
import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from cosplace.errors import ConfigError

log = logging.getLogger(__name__)


class RecordedNetwork:
    """A network in training mode, called with images (B, 3, H, W) on a CUDA device; (B, D) descriptors.

    `record` must be called first; images of other shapes run without the graphs.  The descriptors of a call are
    overwritten by the next one.  dtype: of mixed precision.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        self.network, self.dtype = network, dtype
        self.shape: tuple[int, ...] | None = None
        self._recorded: nn.Module | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Compute descriptors; raises what the network raises."""
        if self._recorded is None or tuple(images.shape) != self.shape or not self.network.training:
            return self.network(images)
        return self._recorded(images)

    def record(self, batch_size: int, image_size: int, device: torch.device) -> None:
        """Record the graphs for square images, unless they are there already.

        Nothing else may use the GPU meanwhile, in any thread: no batch may be on its way.  Raises ConfigError for a
        network that draws random numbers, which would be the same in each iteration.
        """
        shape = (batch_size, 3, image_size, image_size)
        if shape == self.shape:
            return
        gc.collect()  # a loading process in which the graphs of an earlier network are collected would be ended by CUDA
        images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
        # Recording runs the network a few times, which must not change its batch-norm statistics.
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        wrapper = _Wrapper(self.network).train()
        mixed = nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype, cache_enabled=False)
        try:
            with mixed, warnings.catch_warnings():
                # Recording runs the network on other streams than the first runs of its own, which is intended.
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                self._refuse_random_numbers(images, device)
                torch.cuda.make_graphed_callables(wrapper, (images,), allow_unused_input=True)
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
        self.shape, self._recorded = shape, wrapper
        log.info("the network is recorded as CUDA graphs")

    def _refuse_random_numbers(self, images: Tensor, device: torch.device) -> None:
        state = torch.cuda.get_rng_state(device)
        with torch.no_grad():
            self.network(images)
        if not torch.equal(torch.cuda.get_rng_state(device), state):
            torch.cuda.set_rng_state(state, device)
            raise ConfigError("--cuda_graphs: this network draws random numbers in training. Train without this flag.")


class _Wrapper(nn.Module):
    """Recording replaces the method `forward` of a module: of this one instead of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
