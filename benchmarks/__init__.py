"""The benchmark: each stage done the plain way and ours, results compared first, then ratios of time and memory.

Plain is how this field writes the stage, in code of our own that is no slower than it need be within that recipe.
Both sides get the same inputs and take turns, each turn in a process of its own; a ratio is the median over turns of
plain's figure divided by ours.  The map of the folder, each file importing only files above it:

    records     what a benchmark is made of: sides, stages, measurements, rows
    measuring   one side, measured once, in a child process
    judging     measurements -> ratios, targets, growth, the table (pure)
    running     the run: which stages, how often, compared before they are told of
    recipe      the field's network and loss in plain PyTorch
    names       names -> classes -> groups
    opening     cached groups, the scan of a folder, --help
    photos      opening photos, augmenting them
    loading     batches by processes and threads beside a training loop
    learning    the training step, GeM, CosFace
    retrieval   extraction, exact search
    recalls     positives of queries, and the recalls
    catalog     all stages in the order of the table
    gpu         training on a GPU: loader, augmentation, step, whole loop

Nothing here prints.  Needs a system that forks; measured memory needs Linux.
"""

from benchmarks.catalog import STAGES
from benchmarks.judging import table
from benchmarks.records import BenchmarkError, Options, Report
from benchmarks.running import as_json, choose_stages, run_stages

__all__ = ["STAGES", "BenchmarkError", "Options", "Report", "as_json", "choose_stages", "run_stages", "table"]
