"""All stages, in the order of the table: the journey of a photo."""

from cosplace.bench import learning, loading, names, opening, photos, recalls, retrieval
from cosplace.bench.records import Stage

STAGES: tuple[Stage, ...] = (
    *names.STAGES,
    *opening.STAGES,
    *photos.STAGES,
    *loading.STAGES,
    *learning.STAGES,
    *retrieval.STAGES,
    *recalls.STAGES,
)
