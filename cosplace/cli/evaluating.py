"""cosplace eval."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import (
    LOGS,
    Bars,
    command_line,
    log_to_folder,
    on_interrupt,
    print_main_file,
    print_result,
    timestamp,
    write_json,
)
from cosplace.config.evaluation import EvalConfig
from cosplace.config.values import set_folder, to_values
from cosplace.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from cosplace.assessment.audit import VerdictFile
    from cosplace.assessment.protocols import Protocol, Protocols
    from cosplace.assessment.provenance import RunInfo
    from cosplace.cli.answering import UnlabeledPhotos
    from cosplace.engines.engine import Engine
    from cosplace.photos.image_list import ImageList
    from cosplace.progress import Progress
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation, EvaluationSettings

MAX_INT8_LOSS = 0.3  # percentage points of any recall, compared with PyTorch

log = logging.getLogger("cosplace")


def run_eval(config: EvalConfig, given: Mapping[str, Any]) -> None:
    """Evaluate a model.  given: the settings of the command line, which the model must agree with."""
    if config.stores.database_store is not None:
        from cosplace.cli.stores import evaluate_stored

        found = evaluate_stored(config, given)
    else:
        found = evaluate_run(config, given)
    reference = config.comparing.compare
    if found is not None and config.truth.audit:
        from cosplace.assessment.run_files import read_query_results
        from cosplace.cli.auditing import write_audit
        from cosplace.config.auditing import AuditConfig

        verdicts = None if config.truth.verdicts is None else Path(config.truth.verdicts)
        audit = AuditConfig(run=found[0], verdicts=verdicts, follow_outside=config.folders.follow_outside)
        write_audit(audit, read_query_results(found[0]))
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

    from cosplace.assessment.audit import judged_line, judged_recalls
    from cosplace.assessment.compression_loss import loss_lines, measure_loss
    from cosplace.assessment.protocols import matching_protocol, protocol_record
    from cosplace.assessment.provenance import deviations, provenance
    from cosplace.assessment.records import summary_lines
    from cosplace.cli.answering import has_usual_views
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.evaluation import log_misses
    from cosplace.storage import new_run_folder

    prepared = _prepare_evaluation(config, given, protocols, remedy)
    if prepared is None:
        return None
    config, protocol, settings, dataset = prepared.config, prepared.protocol, prepared.settings, prepared.dataset
    run, verdicts = prepared.run, prepared.verdicts
    model = _network_to_evaluate(config, given)
    if config.running.dry_run:
        _print_evaluation_estimate(model, dataset, settings, config)
        return None
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    with log_to_folder(folder), on_interrupt(_how_to_continue(config)):
        log.info("results: %s", folder)
        write_json(folder / "config.json", to_values(config))
        bars = Bars()
        source, radius_m = config.weights.resume_model, settings.positive_dist_threshold
        opened = _open_engine(model, config, settings, dataset.database, bars)
        del model
        run = dataclasses.replace(run, engine=opened.engine.kind.name)
        evaluation, scores, exact = _evaluate_with_scores(opened.engine, dataset, settings, bars)
        if opened.network is not None:
            _check_recall(opened.network, dataset, settings, evaluation, engine=run.engine, progress=bars)
        model_record = opened.record
        del opened  # its memory is free for the report
        log.info("%s: %s", dataset.name, evaluation.recalls_text())
        log_misses(evaluation)
        is_custom = protocol is None and has_usual_views(config)
        similar = matching_protocol(dataset, radius_m, source, evaluation.image_size, protocols) if is_custom else None
        if similar is not None:
            log.info("recorded as custom; --protocol %s evaluates the same", similar.id)
        origin = provenance(
            evaluation,
            dataset,
            protocol=protocol_record(
                protocol,
                radius_m,
                similar=similar,
                deviations=deviations(evaluation, dataset),
            ),
            model=model_record,
            run=run,
        )
        measures = write_evaluation_results(
            folder,
            evaluation,
            dataset,
            config,
            origin=origin,
            scores=scores,
            verdicts=verdicts,
            exact=exact,
            progress=bars,
        )
    for line in (evaluation.recalls_text(), *summary_lines(measures, radius_m)):
        print_result(line)
    if protocol is not None:
        print_result(f"protocol: {origin.protocol_text()}")
    if exact is not None:
        for line in loss_lines(measure_loss(exact, evaluation, measures.clusters)):
            print_result(line)
    if verdicts is not None:
        print_result(judged_line(judged_recalls(evaluation, dataset, verdicts, measures.clusters)))
    print_main_file(folder, no_report=config.reporting.no_report)
    return folder, evaluation, dataset


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _PreparedEvaluation:
    """What an evaluation needs before its model is opened."""

    config: EvalConfig  # with the settings of the protocol
    protocol: "Protocol | None"
    settings: "EvaluationSettings"
    run: "RunInfo"
    dataset: "RetrievalDataset"
    verdicts: "VerdictFile | None"


def _prepare_evaluation(
    config: EvalConfig, given: Mapping[str, Any], protocols: "Protocols | None", remedy: str
) -> _PreparedEvaluation | None:
    """Check the flags, open the photos and check them; None if the queries were answered without measuring."""
    from cosplace.assessment.audit import find_verdicts
    from cosplace.assessment.protocols import find_protocol, with_protocol, with_radius
    from cosplace.assessment.provenance import RunInfo
    from cosplace.cli.answering import UnlabeledPhotos, check_flags, open_test_photos
    from cosplace.device import choose_device
    from cosplace.retrieval.evaluation import evaluation_settings, with_scored_predictions
    from cosplace.retrieval.two_folders import with_copies

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
    settings = with_scored_predictions(settings)
    dataset = with_copies(dataset, refuse=protocol is None, progress=bars)
    bars.close()
    if protocol is not None:
        config = with_radius(config, given, protocol, dataset, remedy)
        settings = dataclasses.replace(settings, positive_dist_threshold=config.testing.positive_dist_threshold)
    if config.comparing.compare is not None:
        from cosplace.cli.comparing import check_reference

        check_reference(Path(config.comparing.compare), dataset, settings.positive_dist_threshold)
    verdicts = find_verdicts(dataset, None if config.truth.verdicts is None else Path(config.truth.verdicts))
    if verdicts is not None:
        log.info("verdicts on pairs of photos: %s", verdicts.path)
    return _PreparedEvaluation(
        config=config, protocol=protocol, settings=settings, run=run, dataset=dataset, verdicts=verdicts
    )


def _print_evaluation_estimate(
    model: "nn.Module", dataset: "RetrievalDataset", settings: "EvaluationSettings", config: EvalConfig
) -> None:
    from cosplace.retrieval.dry_run import estimate_evaluation
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation

    model = reduce_for_evaluation(model, config, dry_run=True)
    for line in estimate_evaluation(model, dataset, settings, Bars()).lines:
        print_result(line)


def _how_to_continue(config: EvalConfig) -> str:
    """Advice after Ctrl+C."""
    if config.weights.descriptors_folder:
        return "Run the same command again to continue."
    return "Run the same command again to start again. With --descriptors_folder FOLDER, it can be continued."


def _answer(
    config: EvalConfig, given: Mapping[str, Any], photos: "UnlabeledPhotos", settings: "EvaluationSettings"
) -> None:
    """Search queries without positions, in a new run."""
    from cosplace.cli.answering import NUM_PREDICTIONS, answer_run, check_unlabeled
    from cosplace.storage import new_run_folder

    check_unlabeled(config, photos)
    model = _network_to_evaluate(config, given)
    num_predictions = config.testing.num_preds_to_save if "num_preds_to_save" in given else NUM_PREDICTIONS
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    with log_to_folder(folder), on_interrupt(_how_to_continue(config)):
        log.info("results: %s", folder)
        write_json(folder / "config.json", to_values(config))
        bars = Bars()
        opened = _open_engine(model, config, settings, photos.lists.database, bars)
        del model
        answer_run(
            folder,
            opened.engine,
            photos,
            settings,
            num_predictions=num_predictions,
            model_record=opened.record,
            progress=bars,
        )


def _evaluate_with_scores(
    engine: "Engine", dataset: "RetrievalDataset", settings: "EvaluationSettings", progress: "Progress"
) -> "tuple[Evaluation, dict[str, np.ndarray], Evaluation | None]":
    """Evaluate, with the confidence of each answer where the database is enough to calibrate it.

    With compressed descriptors, also evaluate with exact search.
    """
    from cosplace.assessment.confidence_scores import CONFIDENCE
    from cosplace.localization.database_confidence import database_confidence
    from cosplace.retrieval.evaluation import evaluate_descriptors, extract_dataset

    database, queries = extract_dataset(engine, dataset, settings, progress=progress)
    evaluation, exact = evaluate_descriptors(database, queries, dataset, settings), None
    if settings.compression is not None:
        exact = evaluate_descriptors(database, queries, dataset, dataclasses.replace(settings, compression=None))
        if not settings.compression.shortlist:  # distances of codes are not those that a confidence is calibrated for
            return evaluation, {}, exact
    confidence = database_confidence(database, evaluation, dataset)
    return evaluation, {} if confidence is None else {CONFIDENCE: confidence}, exact


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _OpenedModel:
    """A model that is ready to describe photos."""

    record: dict[str, Any]  # see `describe_model`
    engine: "Engine"
    network: "nn.Module | None"  # to compare the recalls of an int8 engine with; others do without it, to save memory


def _open_engine(
    model: "nn.Module", config: EvalConfig, settings: "EvaluationSettings", photos: "ImageList", progress: "Progress"
) -> _OpenedModel:
    """Reduce a model as --reduce_to says, and open --engine.  The engine keeps no network: the caller frees `model`."""
    from cosplace.assessment.provenance import describe_model
    from cosplace.engines.torch_engine import TorchEngine
    from cosplace.retrieval.reduction_fitting import reduce_for_evaluation

    weights, extraction = config.weights, settings.extraction
    network = reduce_for_evaluation(model, config, progress=progress)
    record = describe_model(weights.resume_model, network, reduced_to=weights.reduce_to)
    if weights.engine == "torch":
        engine: Engine = TorchEngine(
            network,
            device=extraction.device,
            scales=extraction.scales,
            flip=extraction.flip,
            autocast=extraction.autocast,
        )
    elif config.running.use_amp16:
        raise ConfigError(f"--use_amp16 needs --engine torch, not {weights.engine}. Omit one of them.")
    else:
        from cosplace.engines.opening import open_engine

        engine = open_engine(
            weights.engine,
            network,
            image_size=extraction.image_size,
            device=config.running.device,
            scales=extraction.scales,
            flip=extraction.flip,
            photos=photos,
            batch_size=extraction.batch_size,
            progress=progress,
        )
    if isinstance(engine, TorchEngine):
        engine.release_original()
    return _OpenedModel(record=record, engine=engine, network=network if engine.kind.is_int8 else None)


def _check_recall(
    network: "nn.Module",
    dataset: "RetrievalDataset",
    settings: "EvaluationSettings",
    found: "Evaluation",
    *,
    engine: str,
    progress: "Progress",
) -> None:
    """Evaluate with PyTorch too, and report what an int8 engine loses.  Raises ConfigError if that is too much."""
    from cosplace.retrieval.evaluation import evaluate

    # The folder of descriptors has those of the engine.
    exact = evaluate(network, dataset, dataclasses.replace(settings, descriptors_folder=None), progress=progress)
    loss = max(exact.recalls[k] - found.recalls[k] for k in exact.recalls)
    log.info("PyTorch: %s; the engine %s loses %.1f points at most", exact.recalls_text(), engine, max(loss, 0))
    allowed = max(MAX_INT8_LOSS, 100 / len(dataset.queries) + 1e-9)  # one query is always allowed
    if not loss <= allowed:
        raise ConfigError(
            f"--engine {engine} loses {loss:.1f} points of recall on {dataset.name}, more than {allowed:.1f}. Use "
            f"another engine, such as --engine auto."
        )


def _network_to_evaluate(config: EvalConfig, given: Mapping[str, Any]) -> "nn.Module":
    """Open --model, which must agree with the flags that are given; without it, create a network."""
    from cosplace.models.network import new_network
    from cosplace.models.opening import open_model

    if config.weights.resume_model:
        return open_model(
            config.weights.resume_model,
            backbone=given.get("backbone"),
            fc_output_dim=given.get("fc_output_dim"),
            aggregation=given.get("aggregation"),
            features_stage=given.get("features_stage"),
            trust_remote_code=config.weights.trust_remote_code,
            accept_license=config.weights.accept_license,
        )
    log.warning("No --model: the last layer is random, so the recalls are those of an untrained network.")
    return new_network(
        backbone=config.model.backbone,
        fc_output_dim=config.model.fc_output_dim,
        train_all_layers=True,
        imagenet_weights=config.model.imagenet_weights,
        seed=config.running.seed,
        aggregation=config.model.aggregation,
        features_stage=config.model.features_stage,
        image_size=config.test_size.image_size,
    )
