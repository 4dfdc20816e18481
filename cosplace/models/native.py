"""Networks of other projects in our own code: a backbone, an aggregation, and the sizes of photos that they accept.

MegaLoc, SALAD, BoQ, ImAge, MixVPR, Conv-AP and NetVLAD differ in these parts only.  `layouts` builds them from the
released weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cosplace.errors import InputSizeError
from cosplace.models.resampling import resample
from cosplace.models.vision_transformer import VisionTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePolicy:
    """How a network wants its photos.  Sides are resized after normalization, bilinear with antialias."""

    side_multiple: int = 1  # sides become the nearest multiple, half to even
    fixed_size: tuple[int, int] | None = None  # height and width of all photos
    min_patches: int = 1  # fewer are refused

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a photo is resized to."""
        if self.fixed_size is not None:
            return self.fixed_size
        return self._nearest(height), self._nearest(width)

    def _nearest(self, side: int) -> int:
        """Nearest multiple of a side.  Whole numbers only, so that exported networks can compute it."""
        multiple = self.side_multiple
        if multiple == 1:
            return side
        half, odd = (multiple - 1) // 2, (side // multiple) % 2
        if multiple % 2:
            return (side + half) // multiple * multiple
        return (side + half + odd) // multiple * multiple


class NativeNetwork(nn.Module):
    """ImageNet-normalized images (B, 3, H, W) of any size -> unit descriptors (B, fc_output_dim) float32.

    backbone: images -> features (B, C, h, w), or features and a token; aggregator: one of `aggregations`.
    method: name of the method; backbone_name: name of the backbone.

    Attributes: method, backbone_name, size_policy, fc_output_dim.  Raises InputSizeError for photos that are too small.
    """

    def __init__(
        self, backbone: nn.Module, aggregator: nn.Module, *, method: str, backbone_name: str, size_policy: SizePolicy
    ) -> None:
        super().__init__()
        self.backbone, self.aggregator = backbone, aggregator
        self.method, self.backbone_name, self.size_policy = method, backbone_name, size_policy

    @property
    def fc_output_dim(self) -> int:
        """Dimension of the descriptors."""
        return int(self.aggregator.out_dim)  # ty: ignore[invalid-argument-type]

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors (B, fc_output_dim) of images (B, 3, H, W)."""
        images = self._resize(images.float())
        output = self.backbone(images.to(next(self.backbone.parameters()).dtype))
        features, token = output if isinstance(output, tuple) else (output, None)
        kind = next((one.dtype for one in self.aggregator.parameters()), torch.float32)
        return self.aggregator(features.to(kind), None if token is None else token.to(kind))

    def _resize(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        policy = self.size_policy
        size = policy.size_for(height, width)
        if torch.compiler.is_compiling():
            return images if policy == SizePolicy() else resample(images, *size)
        if min(size) < policy.side_multiple or size[0] * size[1] < policy.min_patches * policy.side_multiple**2:
            raise InputSizeError(
                f"Photos of {width} x {height} pixels are too small for {self.method}: they give "
                f"{size[1] // policy.side_multiple} x {size[0] // policy.side_multiple} patches of "
                f"{policy.side_multiple} pixels, and it needs at least {policy.min_patches}.",
                "use a larger --image_size",
                "use larger photos",
            )
        return images if size == (height, width) else resample(images, *size)

    def extra_repr(self) -> str:
        """Method and sizes, for `print`."""
        return f"{self.method}, {self.backbone_name}, {self.size_policy}"


def transformer_name(backbone: VisionTransformer) -> str:
    """Name of a DINOv2 transformer, such as "DINOv2-B/14" or "DINOv2-B/14-reg4"."""
    settings = backbone.settings
    size = {384: "S", 768: "B", 1024: "L", 1536: "G"}.get(settings.dim, str(settings.dim))
    registers = f"-reg{settings.num_registers}" if settings.num_registers else ""
    return f"DINOv2-{size}/{settings.patch_size}{registers}"
