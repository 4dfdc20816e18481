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
    command_line,
    log_to_folder,
    on_interrupt,
    print_result,
    program,
    stop_on_signals,
    timestamp,
    write_json,
)
from cosplace.cli.seeds import SAME_AGAIN, train_seeds
from cosplace.config.sections import DATASET_VARIABLE, EvalConfig, Grouping, GroupsConfig, TrainConfig
from cosplace.config.values import set_folder, to_values
from cosplace.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from cosplace.assessment.protocols import Protocols
    from cosplace.assessment.provenance import RunInfo
    from cosplace.cli.answering import UnlabeledPhotos
    from cosplace.progress import Progress
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings
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

    if config.training.logger:
        from cosplace.training.loggers import require_logger

        require_logger(config.training.logger)
    if config.training.seeds:
        train_seeds(config, given, lambda one, folder: _train_seed(one, given, folder), LOGS)
        return
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


def _train_seed(config: TrainConfig, given: Mapping[str, Any], folder: Path) -> None:
    """Train with one of --seeds, or continue the run of this seed that was stopped."""
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.resume import resumed_config
    from cosplace.training.run import lock_run
    from cosplace.training.setup import prepare

    with lock_run(folder):
        if (folder / LAST_CHECKPOINT).exists():
            config = resumed_config(str(folder), {name: value for name, value in given.items() if name != "seeds"})
        _train(prepare(config, given, Bars()), folder, SAME_AGAIN)


def _train(prepared: "Preparation", folder: Path | None, advice: str = "") -> None:
    """Train in a folder, or in a new one.  advice: how to continue; "" for the command that resumes this run."""
    from cosplace.report.results import write_training_results
    from cosplace.storage import new_run_folder
    from cosplace.training.checkpoint import LAST_CHECKPOINT
    from cosplace.training.loop import train
    from cosplace.training.run import lock_run

    folder = folder or new_run_folder(LOGS, prepared.config.running.save_dir, timestamp())
    advice = advice or f"Resume from {LAST_CHECKPOINT}: `{resume_command(folder, prepared.config)}`"
    with lock_run(folder), log_to_folder(folder), on_interrupt(advice), stop_on_signals(Bars(), advice) as progress:
        log.info("results: %s", folder)
        run = _training_run(prepared.config)
        result = train(prepared, folder, progress)
        write_training_results(
            result, prepared.config, run=run
        )  # signals take effect after this: the run is complete then
    print_result(result.test.recalls_text())
    print_result(f"report: {folder / 'report.html'}")


def _training_run(config: TrainConfig) -> "RunInfo":
    from cosplace.assessment.provenance import RunInfo
    from cosplace.device import amp_type, choose_device

    device = choose_device(config.running.device)
    autocast = amp_type(config.running.use_amp16, config.running.amp_dtype, device)
    return RunInfo(command=command_line(), seed=config.running.seed, device=device, autocast=autocast)


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
    found, reference = evaluate_run(config, given), config.comparing.compare
    if found is not None and reference is not None:
        from cosplace.cli.comparing import compare_with

        compare_with(Path(reference), found[0], follow_outside=config.folders.follow_outside)


def evaluate_run(
    config: EvalConfig,
    given: Mapping[str, Any],
    protocols: "Protocols | None" = None,
    *,
    remedy: str = "omit --protocol to evaluate it as custom",
) -> "tuple[Path, Evaluation, RetrievalDataset] | None":
    """Evaluate a model, write the results and print them; returns the folder of the run and what was evaluated.

    Returns None for a dry run, and where nothing can be measured.

    protocols: those that --protocol can name; None for all.  remedy: what to do about a dataset that does not match.
    """
    if not config.folders.database_folder:
        set_folder(config.folders, "test")  # raises before torch is imported

    from cosplace.assessment.protocols import (
        find_protocol,
        matching_protocol,
        protocol_record,
        with_protocol,
        with_radius,
    )
    from cosplace.assessment.provenance import RunInfo, describe_model, deviations, provenance
    from cosplace.assessment.records import summary_lines
    from cosplace.cli.answering import UnlabeledPhotos, check_flags, has_usual_views, open_test_photos
    from cosplace.device import choose_device
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.evaluation import evaluation_settings
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation
    from cosplace.storage import new_run_folder

    check_flags(config, given)
    device, name = choose_device(config.running.device), config.protocol.protocol
    protocol = None if name is None else find_protocol(name, protocols)
    config = config if protocol is None else with_protocol(config, given, protocol)
    settings = evaluation_settings(config, device)
    run = RunInfo(
        command=command_line(), seed=config.running.seed, device=device, autocast=settings.extraction.autocast
    )
    bars = Bars()
    dataset = open_test_photos(config, bars)
    bars.close()
    if isinstance(dataset, UnlabeledPhotos):
        _answer(config, given, dataset, settings)
        return None
    if protocol is not None:
        config = with_radius(config, given, protocol, dataset, remedy)
        settings = dataclasses.replace(settings, positive_dist_threshold=config.testing.positive_dist_threshold)
    _check_test_set(config, dataset, settings.positive_dist_threshold)
    model = _network_to_evaluate(config, given)
    if config.running.dry_run:
        _print_evaluation_estimate(model, dataset, settings, config)
        return None
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    again = "Run the same command again to continue." if config.weights.descriptors_folder else ""
    with log_to_folder(folder), on_interrupt(again):
        log.info("results: %s", folder)
        write_json(folder / "config.json", to_values(config))
        bars = Bars()
        network = reduce_for_evaluation(model, config, progress=bars)
        source, radius_m = config.weights.resume_model, settings.positive_dist_threshold
        model_record = describe_model(source, network, reduced_to=config.weights.reduce_to)
        evaluation, scores = _evaluate_with_scores(network, dataset, settings, bars)
        log.info("%s: %s", dataset.name, evaluation.recalls_text())
        is_custom = protocol is None and has_usual_views(config)
        similar = matching_protocol(dataset, radius_m, source, evaluation.image_size, protocols) if is_custom else None
        if similar is not None:
            log.info("recorded as custom; --protocol %s evaluates the same", similar.id)
        origin = provenance(
            evaluation,
            dataset,
            protocol=protocol_record(protocol, radius_m, similar=similar, deviations=deviations(evaluation)),
            model=model_record,
            run=run,
        )
        measures = write_evaluation_results(folder, evaluation, dataset, config, origin=origin, scores=scores)
    for line in (evaluation.recalls_text(), *summary_lines(measures, radius_m, dataset.note)):
        print_result(line)
    print_result(f"report: {folder / 'report.html'}")
    return folder, evaluation, dataset


def _check_test_set(config: EvalConfig, dataset: "RetrievalDataset", radius_m: float) -> None:
    """Raise DatasetError for queries that are in the database too, and for photos other than those of --compare."""
    from cosplace.retrieval.two_folders import check_copies

    bars = Bars()
    check_copies(dataset.database, dataset.queries, refuse=config.protocol.protocol is None, progress=bars)
    bars.close()
    if config.comparing.compare is not None:
        from cosplace.cli.comparing import check_reference

        check_reference(Path(config.comparing.compare), dataset, radius_m)


def _print_evaluation_estimate(
    model: "nn.Module", dataset: "RetrievalDataset", settings: "EvaluationSettings", config: EvalConfig
) -> None:
    from cosplace.retrieval.dry_run import estimate_evaluation
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation

    model = reduce_for_evaluation(model, config, dry_run=True)
    for line in estimate_evaluation(model, dataset, settings, Bars()).lines:
        print_result(line)


def _answer(
    config: EvalConfig, given: Mapping[str, Any], photos: "UnlabeledPhotos", settings: "EvaluationSettings"
) -> None:
    """Search queries without positions, in a new run."""
    from cosplace.assessment.provenance import describe_model
    from cosplace.cli.answering import NUM_PREDICTIONS, answer_run, check_unlabeled
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation
    from cosplace.storage import new_run_folder

    check_unlabeled(config, photos)
    model = _network_to_evaluate(config, given)
    num_predictions = config.testing.num_preds_to_save if "num_preds_to_save" in given else NUM_PREDICTIONS
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    with log_to_folder(folder), on_interrupt(""):
        log.info("results: %s", folder)
        write_json(folder / "config.json", to_values(config))
        bars = Bars()
        network = reduce_for_evaluation(model, config, progress=bars)
        record = describe_model(config.weights.resume_model, network, reduced_to=config.weights.reduce_to)
        answer_run(
            folder, network, photos, settings, num_predictions=num_predictions, model_record=record, progress=bars
        )


def _evaluate_with_scores(
    network: "nn.Module", dataset: "RetrievalDataset", settings: "EvaluationSettings", progress: "Progress"
) -> "tuple[Evaluation, dict[str, np.ndarray]]":
    """Evaluate, with the confidence of each answer where the database is enough to calibrate it."""
    from cosplace.assessment.confidence_scores import CONFIDENCE
    from cosplace.localization.database_confidence import database_confidence
    from cosplace.retrieval.evaluation import evaluate_descriptors, extract_dataset

    database, queries = extract_dataset(network, dataset, settings, progress=progress)
    evaluation = evaluate_descriptors(database, queries, dataset, settings)
    confidence = database_confidence(database, evaluation, dataset)
    return evaluation, {} if confidence is None else {CONFIDENCE: confidence}


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
