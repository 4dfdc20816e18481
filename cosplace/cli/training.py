"""cosplace train, eval, groups."""

import dataclasses
import json
import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import (
    Bars,
    log_to_folder,
    on_interrupt,
    print_result,
    program,
    stop_on_signals,
    timestamp,
    write_json,
)
from cosplace.config.sections import DATASET_VARIABLE, EvalConfig, Grouping, GroupsConfig, TrainConfig
from cosplace.config.values import set_folder, to_values
from cosplace.errors import DatasetError

if TYPE_CHECKING:
    from torch import nn

    from cosplace.training.setup import Preparation

LOGS = Path("logs")

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

    config = resumed_config(resumed, given) if resumed else config
    folder = resumed_folder(resumed) if resumed else None
    if config.running.dry_run:
        _print_estimate(prepare(config, given, Bars()), folder)
        return
    with nullcontext() if folder is None else lock_run(folder):  # before the state is read
        _train(prepare(config, given, Bars()), folder)


def _print_estimate(prepared: "Preparation", folder: Path | None) -> None:
    from cosplace.storage import run_folder
    from cosplace.training.dry_run import estimate_training
    from cosplace.training.plan import describe_plan

    folder = folder or run_folder(LOGS, prepared.config.running.save_dir, timestamp())
    for line in (*describe_plan(prepared), *estimate_training(prepared, folder, Bars()).lines):
        print_result(line)


def _train(prepared: "Preparation", folder: Path | None) -> None:
    """Train in a folder, or in a new one."""
    from cosplace.report.results import write_training_results
    from cosplace.storage import new_run_folder
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.loop import train
    from cosplace.training.run import lock_run

    folder = folder or new_run_folder(LOGS, prepared.config.running.save_dir, timestamp())
    advice = f"Resume from {LAST_CHECKPOINT}: `{resume_command(folder, prepared.config)}`"
    with lock_run(folder), log_to_folder(folder), on_interrupt(advice), stop_on_signals(Bars(), advice) as progress:
        log.info("results: %s", folder)
        result = train(prepared, folder, progress)
        write_training_results(result, prepared.config)  # signals take effect after this: the run is complete then
    print_result(result.test.recalls_text())
    print_result(f"report: {folder / 'report.html'}")


def resume_command(folder: Path, config: TrainConfig) -> str:
    """The command that continues a run, for a shell in the same folder.  The checkpoint has all other settings."""
    words = program()
    words += ["train"] if Path(words[-1]).name != "train.py" else []
    words += ["--resume_train", str(folder)]
    dataset = os.environ.get(DATASET_VARIABLE)
    if dataset and config.folders.dataset_folder is None:
        words += ["--dataset_folder", dataset]
    return shlex.join(words)


def run_eval(config: EvalConfig, given: Mapping[str, Any]) -> None:
    """Evaluate a model.  given: the settings of the command line, which the model must agree with."""
    test_folder = set_folder(config.folders, "test")

    from cosplace.device import choose_device
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.dataset import open_retrieval_dataset
    from cosplace.retrieval.evaluation import evaluate, evaluation_settings
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation
    from cosplace.storage import new_run_folder

    settings = evaluation_settings(config, choose_device(config.running.device))
    bars = Bars()
    dataset = open_retrieval_dataset(
        test_folder, config.folders.queries_folder, follow_outside=config.folders.follow_outside, progress=bars
    )
    bars.close()
    model = _network_to_evaluate(config, given)
    if config.running.dry_run:
        from cosplace.retrieval.dry_run import estimate_evaluation

        model = reduce_for_evaluation(model, config, dry_run=True)
        for line in estimate_evaluation(model, dataset, settings, Bars()).lines:
            print_result(line)
        return
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    again = "Run the same command again to continue." if config.weights.descriptors_folder else ""
    with log_to_folder(folder), on_interrupt(again):
        log.info("results: %s", folder)
        write_json(folder / "config.json", to_values(config))
        bars = Bars()
        model = reduce_for_evaluation(model, config, progress=bars)
        evaluation = evaluate(model, dataset, settings, progress=bars)
        log.info("%s: %s", dataset.name, evaluation.recalls_text())
        write_evaluation_results(folder, evaluation, dataset, config)
    print_result(evaluation.recalls_text())
    print_result(f"report: {folder / 'report.html'}")


def _network_to_evaluate(config: EvalConfig, given: Mapping[str, Any]) -> "nn.Module":
    """Open --model, which must agree with the flags that are given; without it, create a network."""
    from cosplace.models.network import new_network
    from cosplace.models.opening import open_model

    if config.weights.resume_model:
        return open_model(
            config.weights.resume_model,
            backbone=given.get("backbone"),
            fc_output_dim=given.get("fc_output_dim"),
            trust_remote_code=config.weights.trust_remote_code,
        )
    log.warning("No --model: the last layer is random, so the recalls are those of an untrained network.")
    return new_network(
        backbone=config.model.backbone,
        fc_output_dim=config.model.fc_output_dim,
        train_all_layers=True,
        imagenet_weights=config.model.imagenet_weights,
        seed=config.running.seed,
    )


def run_groups(config: GroupsConfig) -> None:
    """Form classes and groups, and print how many there are.  Raises DatasetError if training would refuse them."""
    from cosplace.training.advice import advice, data_warnings
    from cosplace.training.group_cache import cached_partition
    from cosplace.training.groups import partition, training_photos

    grouping, bars = config.grouping, Bars()
    images = training_photos(config.folder, grouping, follow_outside=config.follow_outside, progress=bars)
    bars.close()
    groups = partition(images, grouping) if config.no_cache else cached_partition(images, grouping)
    counts, hint = groups.counts(), advice(groups, grouping, images)
    for warning in data_warnings(groups, grouping, images):
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
            print_result(f"{config.gsv_csv}: {num_places:,} places in {len(groups):,} CSV files")
    if hint and hint.refused:
        raise DatasetError(hint.text)
    if hint and not config.json:
        print_result(hint.text)


def _print_groups(num_scanned: int, counts: list[tuple[int, int]], grouping: Grouping) -> None:
    num_kept = sum(num_images for _, num_images in counts)
    print_result(f"{num_scanned} images, {num_kept} in classes with at least {grouping.min_images_per_class} images")
    print_result("group   classes    images")
    for number, (num_classes, num_images) in enumerate(counts):
        unused = "" if number < grouping.groups_num else "   not used (--groups_num)"
        print_result(f"{number:5d}  {num_classes:8d}  {num_images:8d}{unused}")
