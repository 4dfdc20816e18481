"""Resume a run: its settings and its folder, from its checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values, to_values
from cosplace.errors import ConfigError
from cosplace.training.checkpoint import checkpoint_file, is_original, read_checkpoint
from cosplace.training.original_checkpoint import original_values

# Settings that may differ when a run resumes: they change where and how fast it runs, not what it learns.
FREE_ON_RESUME = frozenset(
    {
        "dataset_folder", "extra_datasets", "train_set_folder", "val_set_folder", "test_set_folder", "device",
        "num_workers", "save_dir", "checkpoint_minutes", "resume_train", "resume_model", "num_preds_to_save",
        "save_only_wrong_preds", "infer_batch_size", "loader", "compile", "cuda_graphs", "dry_run", "follow_outside",
        "logger", "report_matches", "process_timeout_minutes", "split_classifiers_above",
    }
)  # fmt: skip

BEFORE: Mapping[str, Any] = {"held_out_photos": 0}  # what earlier versions, which have no such setting, did


def resumed_config(path: str, given: Mapping[str, Any]) -> TrainConfig:
    """Settings of the run whose checkpoint this is, with those of `given` that may differ.

    A checkpoint of the original code holds no settings: they all come from `given`, except backbone and dimension,
    which are read from its weights.  Raises ConfigError for a setting in `given` that would change what is learned.
    """
    file = checkpoint_file(path)
    content = read_checkpoint(file, mapped=True)
    if is_original(content):
        return from_values(TrainConfig, {**BEFORE, **original_values(content, given, file), "resume_train": str(file)})
    saved = from_values(TrainConfig, {**BEFORE, **content["config"]})
    values, asked = to_values(saved), to_values(from_values(TrainConfig, given))
    for name in given:
        if name not in FREE_ON_RESUME and values[name] != asked[name]:
            raise ConfigError(
                f"--{name} {given[name]} contradicts {file}, which was trained with "
                f"{'the default' if values[name] is None else values[name]}. Omit the flag, or start a new run."
            )
    return from_values(TrainConfig, {**values, **given, "resume_train": str(file)})


def resumed_folder(path: str) -> Path | None:
    """Folder in which the run continues; None for a run of the original code, whose files are not changed."""
    file = checkpoint_file(path)
    return None if is_original(read_checkpoint(file, mapped=True)) else file.parent
