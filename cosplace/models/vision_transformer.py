"""The vision transformer of DINOv2, with the names of the released weights.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; Darcet et al., "Vision
Transformers Need Registers", ICLR 2024.  Positions of a 37 x 37 grid are resampled to the grid of the photo as DINOv2
does it: models without registers use the scale (side + 0.1) / 37 without antialias, those with registers the plain
scale with antialias.

Legend: B batch, D dimension, h x w patches, R registers, T learned tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32
from cosplace.errors import ConfigError, InputSizeError
from cosplace.models.resampling import bicubic_weights

PATCH_SIZE = 14  # pixels
HEAD_DIM = 64  # dimensions of an attention head, in all sizes
MLP_RATIO = 4
NORM_EPS = 1e-6
GRID = 37  # patches of a side in training, 518 pixels
OFFSET = 0.1  # added to the side of the grid, in models without registers
INITIAL_SCALE = 1e-5  # of LayerScale
DINOV2_SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24)}
"""Size -> dimension and number of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSettings:
    """What a DINOv2 transformer is made of."""

    dim: int = 768
    depth: int = 12
    patch_size: int = PATCH_SIZE
    grid: int = GRID  # of the stored positions
    num_registers: int = 0
    offset: float = OFFSET  # see `bicubic_weights`
    antialias: bool = False
    final_norm: bool = True  # of the outputs; without it, they are those of the last block
    num_learned_tokens: int = 0  # tokens that are added before a block, T
    learned_tokens_block: int = 0

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return max(1, self.dim // HEAD_DIM)


def dinov2_settings(size: str, *, registers: bool = False) -> TransformerSettings:
    """Settings of a released DINOv2 model: size "small", "base" or "large".  Raises ConfigError for other sizes."""
    if size not in DINOV2_SIZES:
        raise ConfigError(f"There is no DINOv2 '{size}'. Use {', '.join(DINOV2_SIZES)}.")
    dim, depth = DINOV2_SIZES[size]
    if registers:
        return TransformerSettings(dim=dim, depth=depth, num_registers=4, offset=0.0, antialias=True)
    return TransformerSettings(dim=dim, depth=depth)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017): (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend from each token to all."""
        parts = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, n, D')
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.proj(attended.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned factor per dimension (Touvron et al., ICCV 2021): (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), INITIAL_SCALE))

    def forward(self, tokens: Tensor) -> Tensor:
        """Multiply each dimension."""
        return tokens * self.gamma


class MLP(nn.Module):
    """Two layers with exact GELU on each token: (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform each token."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added with a scale: (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the block."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class PatchEmbedding(nn.Module):
    """Each patch of pixels becomes a token: (B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches."""
        return self.proj(images)


class VisionTransformer(nn.Module):
    """DINOv2: normalized images (B, 3, H, W) -> features (B, D, h, w) and tokens.

    H and W are multiples of the patch size.  The tokens are the class token (B, D), or the learned tokens (B, T, D) if
    the settings have any: T tokens that join the others before one of the blocks, as in ImAge (Lu et al., NeurIPS
    2025).  Names of the parameters are those of the released weights, plus `learned_tokens`.

    Attributes: settings, out_channels (D), patch_size.  Raises InputSizeError for other sides.
    """

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        self.settings, dim = settings, settings.dim
        self.out_channels, self.patch_size = dim, settings.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + settings.grid**2, dim))
        if settings.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, settings.num_registers, dim))
        if settings.num_learned_tokens:
            self.learned_tokens = nn.Parameter(0.02 * torch.randn(1, settings.num_learned_tokens, dim))
        self.patch_embed = PatchEmbedding(dim, settings.patch_size)
        self.blocks = nn.ModuleList([Block(dim, settings.num_heads) for _ in range(settings.depth)])
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, D, h, w), and the class token (B, D) or the learned tokens (B, T, D)."""
        settings = self.settings
        self._check_sides(images)
        patches = self.patch_embed(images)  # (B, D, h, w)
        grid = patches.shape[-2:]
        patches = patches + self.positions(*grid)
        batch = patches.shape[0]
        first = [(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)]
        if settings.num_registers:
            first.append(self.register_tokens.expand(batch, -1, -1))
        tokens = torch.cat([*first, patches.flatten(2).transpose(1, 2)], dim=1)  # (B, 1 + R + h w, D)
        for number, block in enumerate(self.blocks):
            if settings.num_learned_tokens and number == settings.learned_tokens_block:
                tokens = torch.cat([self.learned_tokens.expand(batch, -1, -1), tokens], dim=1)
            tokens = block(tokens)
        if settings.final_norm:
            tokens = self.norm(tokens)
        num_learned = settings.num_learned_tokens
        features = tokens[:, num_learned + 1 + settings.num_registers :].transpose(1, 2).unflatten(2, grid)
        return features, tokens[:, :num_learned] if num_learned else tokens[:, 0]

    def positions(self, height: int, width: int) -> Tensor:
        """Positions (D, height, width) of the patches: the stored grid, resampled.

        The weights of the resampling are computed once per size, the product with them each time: it takes a
        thousandth of the time of the blocks, and follows the stored positions while they are trained.
        """
        settings = self.settings
        stored = self.pos_embed[0, 1:].T.unflatten(1, (settings.grid, settings.grid))
        stored = at_least_float32(stored)  # (D, grid, grid)
        offset = self._offset(height, width)
        rows, columns = (
            bicubic_weights(size, settings.grid, stored, offset=offset, antialias=settings.antialias)
            for size in (height, width)
        )
        return (rows @ stored @ columns.T).to(self.pos_embed.dtype)

    def _offset(self, height: int, width: int) -> float | Tensor:
        """Offset of the scale; DINOv2 does not resample its own grid, which is the same as no offset."""
        grid, offset = self.settings.grid, self.settings.offset
        if not torch.compiler.is_compiling():
            return 0.0 if (height, width) == (grid, grid) else offset
        # In an exported network, the sides are symbols: they are counted, so that no branch is fixed.
        own = (torch.ones(height).sum() == grid) & (torch.ones(width).sum() == grid)
        return offset * (~own).double()

    def _check_sides(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if not torch.compiler.is_compiling() and (height % self.patch_size or width % self.patch_size):
            raise InputSizeError(
                f"Photos of {width} x {height} pixels have sides that are not multiples of {self.patch_size}, the size "
                f"of a patch. Resize them first."
            )
