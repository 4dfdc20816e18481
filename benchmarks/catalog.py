"""All stages, in the order of the table: the journey of a photo."""

from benchmarks import learning, loading, names, opening, photos, recalls, retrieval
from benchmarks.records import Stage

STAGES: tuple[Stage, ...] = (
    *names.STAGES,
    *opening.STAGES,
    *photos.STAGES,
    *loading.STAGES,
    *learning.STAGES,
    *retrieval.STAGES,
    *recalls.STAGES,
)
