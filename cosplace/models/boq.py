"""Bag of Queries: learned queries that attend to the features of a photo.

Ali-bey, Chaib-draa and Giguère, "BoQ: A Place is Worth a Bag of Learnable Queries", CVPR 2024.

Legend: B batch, C channels, D dimensions inside, n patches, Q queries of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosplace.device import at_least_float32

HEAD_DIM = 64  # dimensions of an attention head
FEEDFORWARD = 4  # width of the hidden layer of an encoder, in multiples of D


class Attention(nn.Module):
    """Multi-head attention with the keys of torch's: queries (B, q, D), values (B, n, D) -> (B, q, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = max(1, dim // HEAD_DIM)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """Attend from `queries` to `values`, which are keys too."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        parts = [
            F.linear(inputs, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for inputs, weight, bias in zip((queries, values, values), weights, biases, strict=True)
        ]  # each (B, heads, tokens, D / heads)
        return self.out_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Transformer encoder that normalizes after each part (Vaswani et al., 2017): (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim)
        self.linear1 = nn.Linear(dim, FEEDFORWARD * dim)
        self.linear2 = nn.Linear(FEEDFORWARD * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend, then transform each token."""
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens))
        return self.norm2(tokens + self.linear2(self.linear1(tokens).relu()))


class QueryBlock(nn.Module):
    """Encode the tokens, then let Q learned queries attend to them: (B, n, D) -> (B, n, D) and (B, Q, D)."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim)
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim))
        self.self_attn = Attention(dim)
        self.norm_q = nn.LayerNorm(dim)
        self.cross_attn = Attention(dim)
        self.norm_out = nn.LayerNorm(dim)
        self._kept: tuple[tuple[int, ...], Tensor] | None = None  # versions of the parameters, queries

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoded tokens, for the next block, and what the queries found."""
        tokens = self.encoder(tokens)
        queries = self._refined_queries().to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return tokens, self.norm_out(self.cross_attn(queries, tokens))

    def _refined_queries(self) -> Tensor:
        """The queries (1, Q, D) after they attended to each other: the same for all photos, so computed once."""
        parameters = (self.queries, *self.self_attn.parameters(), *self.norm_q.parameters())
        if (
            self.training
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled(self.queries.device.type)
            or torch.compiler.is_compiling()
            or any(one.is_inference() for one in parameters)  # changes of such tensors cannot be noticed
        ):
            return self._refine()
        versions = tuple(number for one in parameters for number in (one.data_ptr(), one._version))
        kept = self._kept
        if kept is None or kept[0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = versions, self._refine()
        return kept[1]

    def _refine(self) -> Tensor:
        return self.norm_q(self.queries + self.self_attn(self.queries, self.queries))


class BagOfQueries(nn.Module):
    """Features (B, C, h, w) -> unit descriptors (B, dim x rows) float32.  The token is not used.

    Attributes: out_dim.  Keys: proj_c, norm_input, boqs, fc.
    """

    def __init__(
        self, channels: int, *, dim: int = 384, num_queries: int = 64, num_blocks: int = 2, rows: int = 32
    ) -> None:
        super().__init__()
        self.out_dim = dim * rows
        self.proj_c = nn.Conv2d(channels, dim, 3, padding=1)
        self.norm_input = nn.LayerNorm(dim)
        self.boqs = nn.ModuleList([QueryBlock(dim, num_queries) for _ in range(num_blocks)])
        self.fc = nn.Linear(num_blocks * num_queries, rows)

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        """Aggregate features (B, C, h, w)."""
        tokens = self.norm_input(self.proj_c(features).flatten(2).transpose(1, 2))  # (B, n, D)
        found = []
        for block in self.boqs:
            tokens, answers = block(tokens)
            found.append(answers)
        mixed = self.fc(torch.cat(found, dim=1).transpose(1, 2))  # (B, D, rows)
        return F.normalize(at_least_float32(mixed.flatten(1)), dim=1)
