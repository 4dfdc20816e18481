"""cosplace train, eval, groups."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, log_to_folder, on_interrupt, print_result, timestamp, write_json
from cosplace.config.sections import EvalConfig, GroupsConfig, TrainConfig
from cosplace.config.values import set_folder, to_values

if TYPE_CHECKING:
    from torch import nn

LOGS = Path("logs")

log = logging.getLogger("cosplace")


def run_train(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Train a model.  given: the settings of the command line, which may differ from those of a run that is resumed."""
    resumed = config.training.resume_train
    if not resumed:
        for split in ("train", "val", "test"):
            set_folder(config.folders, split)  # raises before torch is imported

    from cosplace.report.results import write_training_results
    from cosplace.storage import run_folder
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.loop import train
    from cosplace.training.plan import describe_plan
    from cosplace.training.resume import resumed_config, resumed_folder
    from cosplace.training.setup import prepare

    config = resumed_config(resumed, given) if resumed else config
    folder = resumed_folder(resumed) if resumed else None
    folder = folder or run_folder(LOGS, config.running.save_dir, timestamp())
    prepared = prepare(config, given)
    if config.running.dry_run:
        from cosplace.training.dry_run import estimate_training

        for line in (*describe_plan(prepared), *estimate_training(prepared, folder, Bars()).lines):
            print_result(line)
        return
    with log_to_folder(folder):
        log.info("results: %s", folder)
        with on_interrupt(f"Resume from {LAST_CHECKPOINT}: `cosplace train --resume_train {folder}`"):
            result = train(prepared, folder, Bars())
            write_training_results(result, prepared.config)
    print_result(result.test.recalls_text())
    print_result(f"report: {folder / 'report.html'}")


def run_eval(config: EvalConfig, given: Mapping[str, Any]) -> None:
    """Evaluate a model.  given: the settings of the command line, which the model must agree with."""
    test_folder = set_folder(config.folders, "test")

    from cosplace.device import choose_device
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.dataset import open_retrieval_dataset
    from cosplace.retrieval.evaluation import evaluate, evaluation_settings
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation
    from cosplace.storage import run_folder

    settings = evaluation_settings(config, choose_device(config.running.device))
    dataset = open_retrieval_dataset(test_folder, config.folders.queries_folder)
    model = _network_to_evaluate(config, given)
    if config.running.dry_run:
        from cosplace.retrieval.dry_run import estimate_evaluation

        model = reduce_for_evaluation(model, config, dry_run=True)
        for line in estimate_evaluation(model, dataset, settings, Bars()).lines:
            print_result(line)
        return
    folder = run_folder(LOGS, config.running.save_dir, timestamp())
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
    """Form classes and groups, and print how many there are."""
    from cosplace.photos.scanning import scan_images
    from cosplace.training.group_cache import cached_partition
    from cosplace.training.groups import advice, partition

    grouping = config.grouping
    images = scan_images(config.folder)
    groups = partition(images, grouping) if config.no_cache else cached_partition(images, grouping)
    counts, hint = groups.counts(), advice(groups, grouping)
    if config.json:
        rows = [{"num_classes": num_classes, "num_images": num_images} for num_classes, num_images in counts]
        parameters = dataclasses.asdict(grouping)
        content = {"groups": rows, "num_scanned": groups.num_scanned, "parameters": parameters, "advice": hint}
        print_result(json.dumps(content))  # on one line
        return
    num_kept = sum(num_images for _, num_images in counts)
    print_result(
        f"{groups.num_scanned} images, {num_kept} in classes with at least {grouping.min_images_per_class} images"
    )
    print_result("group   classes    images")
    for number, (num_classes, num_images) in enumerate(counts):
        unused = "" if number < grouping.groups_num else "   not used (--groups_num)"
        print_result(f"{number:5d}  {num_classes:8d}  {num_images:8d}{unused}")
    if hint:
        print_result(hint)
