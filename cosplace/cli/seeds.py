"""train --seeds: one run for each seed, and the mean and standard deviation of their recalls, as papers report them.

logs/<save_dir>/<time>/seed_0 …    the runs
logs/<save_dir>/<time>/seeds.json  settings, and in the end the recalls of all seeds

The same command continues a group of runs that was stopped.
"""

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import json_text, print_result, timestamp, write_json
from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values, to_values
from cosplace.errors import ConfigError

if TYPE_CHECKING:
    from cosplace.training.setup import Preparation

SEEDS = "seeds.json"
# Settings that may differ when one run resumes, but not in a group of runs.
OF_A_GROUP = {
    "dataset_folder", "train_set_folder", "val_set_folder", "test_set_folder", "extra_datasets", "resume_model",
}  # fmt: skip
SAME_AGAIN = "Run the same command again to continue."

log = logging.getLogger("cosplace")


def train_seeds(
    config: TrainConfig,
    given: Mapping[str, Any],
    prepare_one: "Callable[[TrainConfig], Preparation]",
    train_one: "Callable[[TrainConfig, Path, Preparation | None], None]",
    logs: Path,
) -> None:
    """Train once for each of --seeds, and print and write the mean and standard deviation of each recall.

    prepare_one: opens what the run of one seed needs.  train_one: trains with the settings of one seed in a folder,
    or continues the run that was stopped there; it may get the preparation.
    Raises CosPlaceError before anything is written if the first run is refused.
    """
    seeds = config.training.seeds
    _check(config, given)
    folder, prepared = _stopped_group(config, logs), None
    if folder is None:
        prepared = prepare_one(_of_seed(config, seeds[0]))
        folder = _stopped_group(config, logs) or _new_group(config, logs)  # another process may have begun it
    for seed in seeds:
        run = folder / f"seed_{seed}"
        if _recalls(run) is None:
            log.info("seed %d, run %d of %d", seed, seeds.index(seed) + 1, len(seeds))
            run.mkdir(exist_ok=True)
            train_one(_of_seed(config, seed), run, prepared)
        prepared = None  # its memory
    recalls = {seed: _recalls(folder / f"seed_{seed}") or {} for seed in seeds}
    summary = summarize_seeds(recalls)
    write_json(folder / SEEDS, {**_read(folder / SEEDS), **summary})
    for line in summary_lines(summary):
        print_result(line)
    print_result(f"all runs: {folder}")


def _check(config: TrainConfig, given: Mapping[str, Any]) -> None:
    seeds = config.training.seeds
    if config.training.resume_train:
        raise ConfigError("--seeds and --resume_train contradict each other. Run the same command with --seeds again.")
    if config.running.dry_run:
        raise ConfigError("--seeds and --dry_run contradict each other. Use --dry_run with one --seed.")
    if "seed" in given:
        raise ConfigError("--seeds and --seed contradict each other. Use only one of them.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds has a seed twice: {' '.join(map(str, seeds))}. Use different seeds.")
    if len(seeds) < 2:
        raise ConfigError(f"--seeds needs two or more seeds, got {seeds[0]}. Use --seed for one.")


def _of_seed(config: TrainConfig, seed: int) -> TrainConfig:
    return from_values(TrainConfig, to_values(config) | {"seed": seed, "seeds": ()})


def _stopped_group(config: TrainConfig, logs: Path) -> Path | None:
    """The newest group of runs of the same settings that was stopped; None if there is none."""
    settings = _settings(config)
    for path in sorted((logs / config.running.save_dir).glob(f"*/{SEEDS}"), reverse=True):
        content = _read(path)
        if content.get("settings") == settings and "recalls" not in content:
            log.info("continuing %s", path.parent)
            return path.parent
    return None


def _new_group(config: TrainConfig, logs: Path) -> Path:
    from cosplace.storage import new_run_folder

    folder = new_run_folder(logs, config.running.save_dir, timestamp())
    write_json(folder / SEEDS, {"seeds": list(config.training.seeds), "settings": _settings(config)})
    return folder


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that the runs of a group have in common, as in its file."""
    from cosplace.training.resume import FREE_ON_RESUME

    free = FREE_ON_RESUME - OF_A_GROUP
    return json.loads(json_text({name: value for name, value in to_values(config).items() if name not in free}))


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of ours; empty if it is damaged."""
    from cosplace.assessment.run_files import read_json

    with suppress(ConfigError, OSError):
        return read_json(path)
    return {}


def _recalls(folder: Path) -> dict[str, float] | None:
    """Test recalls of a run; None if it is not finished."""
    from cosplace.assessment.run_files import read_results

    with suppress(ConfigError, OSError):
        return read_results(folder)["recalls"]
    return None


def summarize_seeds(recalls: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of the recalls of two or more seeds: N -> percent."""
    found: Sequence[Mapping[str, float]] = list(recalls.values())
    names = [n for n in found[0] if all(n in one for one in found)]
    return {
        "recalls": {str(seed): dict(one) for seed, one in recalls.items()},
        "mean": {n: statistics.fmean(one[n] for one in found) for n in names},
        "standard_deviation": {n: statistics.stdev(one[n] for one in found) for n in names},
    }


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The recalls of each seed, and their mean ± standard deviation."""
    lines = []
    for seed, recalls in summary["recalls"].items():
        lines.append(f"seed {seed}: " + ", ".join(f"R@{n}: {recall:.1f}" for n, recall in recalls.items()))
    spread = summary["standard_deviation"]
    means = ", ".join(f"R@{n}: {mean:.1f} ± {spread[n]:.1f}" for n, mean in summary["mean"].items())
    return [*lines, f"mean ± standard deviation of {len(summary['recalls'])} seeds: {means}"]
