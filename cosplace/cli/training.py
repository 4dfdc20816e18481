"""cosplace train, groups."""

import dataclasses
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import (
    LOGS,
    Bars,
    command_line,
    log_to_folder,
    on_interrupt,
    print_result,
    program,
    stop_on_signals,
    timestamp,
)
from cosplace.cli.seeds import SAME_AGAIN, train_seeds
from cosplace.cli.text_table import text_table
from cosplace.config.defaults import RADIUS_M
from cosplace.config.groups import GroupsConfig
from cosplace.config.methods import EIGENPLACES, MULTI_SIMILARITY
from cosplace.config.sections import DATASET_VARIABLE, Grouping, TrainConfig
from cosplace.config.values import set_folder
from cosplace.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from cosplace.assessment.measures import Measures
    from cosplace.assessment.provenance import RunInfo
    from cosplace.training.loop import TrainResult
    from cosplace.training.setup import Preparation

log = logging.getLogger("cosplace")


def run_train(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Train a model.  given: the settings of the command line, which may differ from those of a run that is resumed."""
    resumed = config.training.resume_train
    if not resumed:
        for split in ("train", "val", "test"):
            set_folder(config.folders, split)  # raises before torch is imported

    from cosplace.training.resume import resumed_config, resumed_folder
    from cosplace.training.run import lock_run
    from cosplace.training.setup import prepare

    if config.training.logger:
        from cosplace.training.loggers import require_logger

        require_logger(config.training.logger)
    if config.training.seeds:
        train_seeds(
            config,
            given,
            lambda one: prepare(one, given, Bars()),
            lambda one, folder, prepared: _train_seed(one, given, folder, prepared),
            LOGS,
        )
        return
    config = resumed_config(resumed, given) if resumed else config
    folder = resumed_folder(resumed) if resumed else None
    if config.running.dry_run:
        _print_estimate(prepare(config, given, Bars()), folder)
        return
    with nullcontext() if folder is None else lock_run(folder):  # before the state is read
        train_and_report(prepare(config, given, Bars()), folder)


def _print_estimate(prepared: "Preparation", folder: Path | None) -> None:
    from cosplace.storage import run_folder
    from cosplace.training.dry_run import estimate_training
    from cosplace.training.plan import describe_plan

    folder = folder or run_folder(LOGS, prepared.config.running.save_dir, timestamp())
    for line in (*describe_plan(prepared), *estimate_training(prepared, folder, Bars()).lines):
        print_result(line)


def _train_seed(config: TrainConfig, given: Mapping[str, Any], folder: Path, prepared: "Preparation | None") -> None:
    """Train with one of --seeds, or continue the run of this seed that was stopped.  prepared: for a new run."""
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.resume import resumed_config
    from cosplace.training.run import lock_run
    from cosplace.training.setup import prepare

    with lock_run(folder):
        if (folder / LAST_CHECKPOINT).exists():
            config = resumed_config(str(folder), {name: value for name, value in given.items() if name != "seeds"})
            prepared = None
        train_and_report(prepared or prepare(config, given, Bars()), folder, SAME_AGAIN)


def train_and_report(prepared: "Preparation", folder: Path | None, advice: str = "") -> None:
    """Train in a folder, or in a new one.  advice: how to continue; "" for the command that resumes this run."""
    from cosplace.report.training_results import write_training_results
    from cosplace.storage import new_run_folder
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.loop import train
    from cosplace.training.run import lock_run

    folder = folder or new_run_folder(LOGS, prepared.config.running.save_dir, timestamp())
    advice = advice or f"Resume from {LAST_CHECKPOINT}: `{resume_command(folder, prepared.config)}`"
    with lock_run(folder), log_to_folder(folder), on_interrupt(advice), stop_on_signals(Bars(), advice) as progress:
        log.info("results: %s", folder)
        run = training_run(prepared.config)
        result = train(prepared, folder, progress)
        # Signals take effect after this: the run is complete then.
        measures = write_training_results(result, prepared.config, run=run, progress=Bars())
    print_training_result(result, measures, prepared.config)


def print_training_result(result: "TrainResult", measures: "Measures", config: TrainConfig) -> None:
    """Print the recalls of the best model on the test set, and where the report is."""
    from cosplace.assessment.records import summary_lines

    radius_m = config.testing.positive_dist_threshold
    for line in (result.test.recalls_text(), *summary_lines(measures, radius_m)):
        print_result(line)
    print_result(f"report: {result.folder / 'report.html'}")


def training_run(config: TrainConfig) -> "RunInfo":
    """How the run was started, for its record."""
    from cosplace.assessment.provenance import RunInfo
    from cosplace.device import amp_type, choose_device

    device = choose_device(config.running.device)
    autocast = amp_type(config.running.use_amp16, config.running.amp_dtype, device)
    return RunInfo(command=command_line(), seed=config.running.seed, device=device, autocast=autocast)


def resume_command(folder: Path, config: TrainConfig, launcher: Sequence[str] = ()) -> str:
    """The command that continues a run, for a shell in the same folder.  The checkpoint has all other settings.

    launcher: the words that start several processes, which replace the interpreter.
    """
    words = program()
    if launcher:
        words = [*launcher, *(words[1:] or ["-m", "cosplace"])]
    words += ["train"] if Path(words[-1]).name != "train.py" else []
    words += ["--resume_train", str(folder)]
    dataset = os.environ.get(DATASET_VARIABLE)
    if dataset and config.folders.dataset_folder is None:
        words += ["--dataset_folder", dataset]
    return shlex.join(words)


def run_groups(config: GroupsConfig) -> None:
    """Form classes and groups, and print how many there are.  Raises DatasetError if training would refuse them."""
    from cosplace.training.advice import advice, data_warnings
    from cosplace.training.enough_places import few_places_warning
    from cosplace.training.group_cache import cached_partition
    from cosplace.training.groups import partition, training_photos

    if config.method.method == EIGENPLACES:
        _run_view_groups(config)
        return
    if config.method.method == MULTI_SIMILARITY:
        _run_places(config)
        return
    grouping, bars = config.grouping, Bars()
    images = training_photos(config.folder, grouping, follow_outside=config.follow_outside, progress=bars)
    bars.close()
    groups = partition(images, grouping) if config.no_cache else cached_partition(images, grouping)
    counts, hint = groups.counts(), advice(groups, grouping, images)
    few = few_places_warning(groups, images, with_headings=grouping.alpha < 360)
    for warning in (*data_warnings(groups, grouping, images), *filter(None, [few])):
        log.warning("%s", warning)
    if config.json:
        rows = [{"num_classes": num_classes, "num_images": num_images} for num_classes, num_images in counts]
        content = {
            "groups": rows,
            "num_scanned": groups.num_scanned,
            "parameters": dataclasses.asdict(grouping),
            "advice": hint.text if hint else None,
            "advised_parameters": dataclasses.asdict(hint.settings) if hint and hint.settings else None,
        }
        print_result(json.dumps(content))  # on one line
    else:
        _print_groups(groups.num_scanned, counts, grouping)
    if config.gsv_csv and len(groups):
        from cosplace.training.place_ids import write_place_ids

        num_places = write_place_ids(groups, Path(config.gsv_csv), bars)
        bars.close()
        if not config.json:
            files = f"{len(groups):,} CSV file{'' if len(groups) == 1 else 's'}"
            print_result(f"{config.gsv_csv}: {num_places:,} places in {files}")
    if hint and hint.refused:
        raise DatasetError(hint.text)
    if hint and not config.json:
        print_result(hint.text)


def _run_view_groups(config: GroupsConfig) -> None:
    """`run_groups` with EigenPlaces: lateral and frontal classes."""
    from cosplace.photos.labels import with_headings
    from cosplace.training.advice import data_warnings
    from cosplace.training.eigenplaces import (
        WITHOUT_HEADINGS,
        check_views,
        partition_views,
        view_errors,
        views_summary,
    )
    from cosplace.training.group_cache import cached_views
    from cosplace.training.groups import training_photos

    if config.gsv_csv:
        raise ConfigError("--gsv_csv writes classes of --method cosplace. Use only one of them.")
    grouping, method, bars = config.grouping, config.method, Bars()
    images = training_photos(config.folder, grouping, follow_outside=config.follow_outside, progress=bars)
    bars.close()
    groups = (
        partition_views(with_headings(images, WITHOUT_HEADINGS), grouping, method)
        if config.no_cache
        else cached_views(images, grouping, method)
    )
    for warning in data_warnings(groups, grouping, images):
        log.warning("%s", warning)
    counts, num_views = groups.counts(), len(groups.views)
    if config.json:
        rows = [
            {"view": groups.views[number % num_views], "num_classes": num_classes, "num_images": num_images}
            for number, (num_classes, num_images) in enumerate(counts)
        ]
        parameters = dataclasses.asdict(method) | dataclasses.asdict(grouping)
        content = {"groups": rows, "num_scanned": groups.num_scanned, "parameters": parameters}
        print_result(json.dumps(content | {"views": view_errors(groups)}))
    else:
        print_result(f"{groups.num_scanned} images")
        for line in views_summary(groups):
            print_result(line)
        print_result("group   lateral classes    images   frontal classes    images")
        for number in range(0, len(counts), num_views):
            columns = "   ".join(
                f"{num_classes:15d}  {num_images:8d}" for num_classes, num_images in counts[number:][:2]
            )
            unused = "" if number < num_views * grouping.groups_num else "   not used (--groups_num)"
            print_result(f"{number // num_views:5d}   {columns}{unused}")
    check_views(groups, grouping, method)


def _run_places(config: GroupsConfig) -> None:
    """`run_groups` with multi-similarity: the places, of which all are one group."""
    from cosplace.training.enough_places import few_places
    from cosplace.training.place_sources import check_grouping, check_places, open_places, wide_places

    if config.gsv_csv:
        raise ConfigError("--gsv_csv writes classes of --method cosplace. Use only one of them.")
    check_grouping(config.grouping)
    bars = Bars()
    places = open_places(config.folder, config.grouping, follow_outside=config.follow_outside, progress=bars)
    bars.close()
    groups = places.groups
    few = few_places(groups.folder, len(groups.cells), config.grouping.min_images_per_class)
    for warning in (wide_places(places, RADIUS_M), few):
        if warning:
            log.warning("%s", warning)
    if config.json:
        content = {
            "num_places": len(groups.cells),
            "num_images": len(groups.image_starts),
            "num_scanned": groups.num_scanned,
            "source": places.source,
            "parameters": dataclasses.asdict(config.method) | dataclasses.asdict(config.grouping),
        }
        print_result(json.dumps(content))
    else:
        print_result(places.source)
    check_places(groups, config.grouping, 2, config.method.photos_per_place)


def _print_groups(num_scanned: int, counts: list[tuple[int, int]], grouping: Grouping) -> None:
    num_kept = sum(num_images for _, num_images in counts)
    print_result(
        f"{num_scanned:,} images, {num_kept:,} in classes with at least {grouping.min_images_per_class} images"
    )
    rows = [("group", "classes", "images", "")]
    for number, (num_classes, num_images) in enumerate(counts):
        unused = "" if number < grouping.groups_num else "not used (--groups_num)"
        rows.append((str(number), f"{num_classes:,}", f"{num_images:,}", unused))
    for line in text_table(rows, numbers=[0, 1, 2]):
        print_result(line)
