"""cosplace train, eval, groups."""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command, add_knobs
from cosplace.cli.console import Bars, log_files, now, say, write_json
from cosplace.config.sections import EvalConfig, GroupsConfig, TrainConfig
from cosplace.config.values import from_values, set_folder, to_values

LOGS = Path("logs")

log = logging.getLogger("cosplace")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_knobs(parser, TrainConfig)
    parser.set_defaults(run=_train)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add_knobs(parser, EvalConfig)
    parser.set_defaults(run=_eval)


def _add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="training photos with '@' names, in any subfolders")
    parser.add_argument("--json", action="store_true", help="print the groups as JSON")
    add_knobs(parser, GroupsConfig)
    parser.set_defaults(run=_groups)


def _train(values: dict[str, Any]) -> None:
    resumed = values.get("resume_train")
    for split in ("train", "val", "test") if not resumed else ():
        set_folder(from_values(TrainConfig, values).folders, split)  # says at once when one is not given

    from cosplace.report.results import keep_training
    from cosplace.storage import run_folder
    from cosplace.training.loop import resumed_config, resumed_folder, train
    from cosplace.training.setup import describe_plan, prepare

    config = resumed_config(resumed, values) if resumed else from_values(TrainConfig, values)
    folder = resumed_folder(resumed) if resumed else None
    folder = folder or run_folder(LOGS, config.running.save_dir, now())
    prepared = prepare(config, values)
    if config.running.dry_run:
        from cosplace.training.dry_run import forecast_training

        for line in (*describe_plan(prepared), *forecast_training(prepared, folder, Bars()).lines):
            say(line)
        return
    with log_files(folder):
        log.info("results go to %s", folder)
        result = train(prepared, folder, Bars())
        keep_training(result, prepared.config)
    say(result.test.recalls_text())
    say(f"report: {folder / 'report.html'}")


def _eval(values: dict[str, Any]) -> None:
    config = from_values(EvalConfig, values)
    folder = set_folder(config.folders, "test")

    from cosplace.device import choose_device
    from cosplace.report.results import evaluate_from_config, keep_evaluation
    from cosplace.retrieval.dataset import open_retrieval_dataset
    from cosplace.storage import run_folder
    from cosplace.training.judging import network_to_evaluate, reduce_to_evaluate

    choose_device(config.running.device)  # before a folder of results is made
    dataset = open_retrieval_dataset(folder, config.folders.queries_folder)
    model = network_to_evaluate(config, backbone=values.get("backbone"), fc_output_dim=values.get("fc_output_dim"))
    if config.running.dry_run:
        from cosplace.training.dry_run import forecast_evaluation

        model = reduce_to_evaluate(model, config)
        for line in forecast_evaluation(model, dataset, config, Bars()).lines:
            say(line)
        return
    run = run_folder(LOGS, config.running.save_dir, now())
    with log_files(run):
        log.info("results go to %s", run)
        write_json(run / "config.json", to_values(config))
        bars = Bars()
        model = reduce_to_evaluate(model, config, lambda done, total: bars("fitting the reduction", done, total))
        evaluation = evaluate_from_config(model, dataset, config, bars)
        log.info("%s: %s", dataset.name, evaluation.recalls_text())
        keep_evaluation(run, evaluation, dataset, config)
    say(evaluation.recalls_text())
    say(f"report: {run / 'report.html'}")


def _groups(values: dict[str, Any]) -> None:
    from cosplace.photos.scanning import scan_images
    from cosplace.training.group_cache import cached_partition
    from cosplace.training.groups import advice, partition

    folder, as_json = values.pop("folder"), values.pop("json")
    config = from_values(GroupsConfig, values)
    form = partition if config.caching.no_cache else cached_partition
    groups = form(scan_images(folder), config.grouping)
    counts, hint = groups.counts(), advice(groups, config.grouping)
    if as_json:
        rows = [{"num_classes": num_classes, "num_images": num_images} for num_classes, num_images in counts]
        parameters = dataclasses.asdict(config.grouping)
        say(json.dumps({"groups": rows, "num_scanned": groups.num_scanned, "parameters": parameters, "advice": hint}))
        return
    kept = sum(num_images for _, num_images in counts)
    say(f"{groups.num_scanned} images, {kept} in classes of {config.grouping.min_images_per_class} or more")
    say("group   classes    images")
    for number, (num_classes, num_images) in enumerate(counts):
        unused = "" if number < config.grouping.groups_num else "   not used (--groups_num)"
        say(f"{number:5d}  {num_classes:8d}  {num_images:8d}{unused}")
    if hint:
        say(hint)


COMMANDS = (
    Command(
        name="train",
        text="Train CosPlace: form classes and groups, learn, validate each epoch, test the best model.",
        add=_add_train,
    ),
    Command(
        name="eval",
        text="Evaluate a model: describe database and queries, search, Recall@N and a report.",
        add=_add_eval,
    ),
    Command(
        name="groups",
        text="Form CosPlace classes and groups, and say whether they are fit for training.",
        add=_add_groups,
    ),
)
