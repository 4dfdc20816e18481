"""What a search by compressed descriptors loses: its recalls beside those of exact search on the same descriptors.

Both are recalls of the same queries, so the interval of the difference is that of pairs, see `comparison`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cosplace.assessment.comparison import RecallDifference, recall_difference

if TYPE_CHECKING:  # these import torch, which reading a run does not need
    from cosplace.retrieval.compression import Compression
    from cosplace.retrieval.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionLoss:
    """Exact search, A, and the search by compressed descriptors, B."""

    compression: "Compression"
    bytes_per_photo: int  # of the codes
    bytes_per_photo_exact: int  # of descriptors in float32
    num_database: int
    rows: Sequence[RecallDifference]  # by n, ascending


def measure_loss(exact: "Evaluation", compressed: "Evaluation", clusters: np.ndarray) -> CompressionLoss:
    """Compare two evaluations of the same descriptors.  clusters: (Q,) queries that are drawn together."""
    from cosplace.retrieval.compression import bytes_per_code

    compression = compressed.compression
    assert compression is not None
    hits_exact, hits_compressed = exact.hits, compressed.hits
    return CompressionLoss(
        compression=compression,
        bytes_per_photo=bytes_per_code(compression.method, compressed.dimension),
        bytes_per_photo_exact=4 * compressed.dimension,
        num_database=compressed.num_database,
        rows=[
            recall_difference(n, np.any(hits_exact[:, :n], axis=1), np.any(hits_compressed[:, :n], axis=1), clusters)
            for n in sorted(compressed.recalls)
        ],
    )


def compression_text(method: str, shortlist: int) -> str:
    """How the database was searched, in words."""
    codes = "binary codes" if method == "binary" else f"{method} codes"
    return f"{codes}, the best {shortlist:,} compared exactly" if shortlist else f"{codes} alone"


def loss_lines(loss: CompressionLoss) -> list[str]:
    """What was compressed, and the recalls of exact search with the differences from them."""
    recalls = ", ".join(f"R@{row.n}: {row.recall_a:.1f}" for row in loss.rows)
    differences = ", ".join(
        f"R@{row.n} {_signed(row.difference.value)} [{_signed(row.difference.low)}, {_signed(row.difference.high)}]"
        f"{row.difference.mark}"
        for row in loss.rows
    )
    ratio = loss.bytes_per_photo_exact / loss.bytes_per_photo
    whole = "The shortlist holds the whole database, so this says nothing about larger ones. Use a smaller --shortlist."
    notes = [whole] if loss.compression.shortlist >= loss.num_database else []
    return [
        f"compressed: {compression_text(loss.compression.method, loss.compression.shortlist)}; "
        f"{loss.bytes_per_photo:,} bytes per photo instead of {loss.bytes_per_photo_exact:,} ({ratio:.1f} times less)",
        f"exact search: {recalls}",
        f"difference of the compressed from the exact search: {differences}",
        *notes,
    ]


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def loss_record(loss: CompressionLoss) -> dict[str, Any]:
    """The entry of results.json."""
    return {
        "method": loss.compression.method,
        "shortlist": loss.compression.shortlist,
        "bytes_per_photo": loss.bytes_per_photo,
        "bytes_per_photo_exact": loss.bytes_per_photo_exact,
        "exact_recalls": {str(row.n): row.recall_a for row in loss.rows},
        "differences": {
            str(row.n): {
                "value": round(row.difference.value, 4),
                "low": round(row.difference.low, 4),
                "high": round(row.difference.high, 4),
                "approximate": row.difference.is_approximate,
            }
            for row in loss.rows
        },
    }
