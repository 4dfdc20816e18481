"""Engines that run the network in PyTorch: fp32 or bf16.

Legend: B photos of one size, D descriptor dimension.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from cosplace.engines.engine import Engine
from cosplace.engines.kinds import KINDS, EngineKind
from cosplace.models.averaging import averaged
from cosplace.models.inference import encode_batch, find_dimension, optimize_for_inference
from cosplace.models.weight_files import model_checksum


class TorchEngine:
    """An engine that runs a network, which moves to the device and into evaluation mode.

    network: (B, 3, H, W) ImageNet-normalized photos -> (B, D).  scales, flip: descriptors are averaged over copies of
    each photo with these scales, and over mirror images.  autocast: 16-bit type of mixed precision, in place of that
    of the kind.
    """

    file_sha256 = ""

    def __init__(
        self,
        network: nn.Module,
        kind: EngineKind = KINDS["torch"],
        *,
        device: str | torch.device = "cpu",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.kind, self.device = kind, torch.device(device)
        self.original = network.to(self.device).eval()
        self.network = averaged(self.original, scales, flip=flip)
        self.autocast = torch.bfloat16 if kind.numbers == "bf16" else autocast
        self._optimized = optimize_for_inference(self.original)
        self._fast_network = averaged(self._optimized, scales, flip=flip)

    @cached_property
    def dimension(self) -> int:
        """D."""
        return find_dimension(self._optimized, self.device)

    @cached_property
    def checksum(self) -> str:
        """Checksum of the model."""
        return model_checksum(self.original)

    def release_original(self) -> None:
        """Free the memory of the network that was given, unless it is also used elsewhere.

        Afterwards `network` is missing, and the rest works as before.
        """
        _ = self.checksum  # computed now, from the network
        del self.original, self.network

    def describe(self, photos: np.ndarray) -> np.ndarray:
        """Descriptors (B, D) float32 of photos (B, 3, H, W): uint8, or floats in [0, 1].

        Raises DeviceError when memory runs out, ConfigError when the network does not return descriptors.
        """
        return self.describe_on_device(torch.from_numpy(photos)).cpu().numpy()

    def describe_on_device(self, photos: Tensor) -> Tensor:
        """The same of a tensor; the descriptors stay on the device, so that the CPU does not wait for it."""
        with torch.inference_mode():
            return encode_batch(self._fast_network, photos, device=self.device, autocast=self.autocast)


def describe_tensors(engine: Engine, photos: Tensor) -> Tensor:
    """Descriptors (B, D) float32 of photos (B, 3, H, W) uint8 by any engine, on its device."""
    if isinstance(engine, TorchEngine):
        return engine.describe_on_device(photos)
    return torch.from_numpy(engine.describe(photos.numpy()))
