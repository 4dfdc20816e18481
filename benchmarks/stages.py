"""The list of all stages, in the order of the table: from file names to recalls."""

from benchmarks import groups, loading, panoramas, photos, recall, report, retrieval, startup, training
from benchmarks.stage import Stage

STAGES: tuple[Stage, ...] = (
    *groups.STAGES,
    *startup.STAGES,
    *photos.STAGES,
    *panoramas.STAGES,
    *loading.STAGES,
    *training.STAGES,
    *retrieval.STAGES,
    *recall.STAGES,
    *report.STAGES,
)
