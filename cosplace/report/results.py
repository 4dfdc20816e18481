"""What a finished run leaves behind: recalls as JSON, pictures of predictions, and the page that shows it all."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cosplace.config.sections import EvalConfig, TrainConfig
from cosplace.config.values import loading_workers, to_values
from cosplace.device import amp_type, choose_device
from cosplace.report.contents import RecallRow, Report
from cosplace.report.page import write_report
from cosplace.report.thumbnails import save_predictions
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation, evaluate
from cosplace.storage import write_text
from cosplace.training.checkpoint import epoch_text
from cosplace.training.loop import TrainResult

RESULTS, REPORT, PREDICTIONS = "results.json", "report.html", "preds"


def evaluate_from_config(
    model: nn.Module,
    dataset: RetrievalDataset,
    config: EvalConfig,
    progress: Callable[[str, int, int, str], None],
) -> Evaluation:
    """Evaluate with the knobs of `cosplace eval`."""
    device = choose_device(config.running.device)
    testing = config.testing
    return evaluate(
        model,
        dataset,
        image_size=config.test_size.image_size if testing.resize_test_imgs else None,
        batch_size=testing.infer_batch_size,
        num_workers=loading_workers(config.running.num_workers),
        loader=config.running.loader,
        device=device,
        autocast=amp_type(config.running.use_amp16, config.running.amp_dtype, device),
        skip_unreadable=testing.skip_unreadable,
        descriptors_folder=config.weights.descriptors_folder,
        recall_values=testing.recall_values,
        positive_dist_threshold=testing.positive_dist_threshold,
        num_predictions=max(testing.num_preds_to_save, *testing.recall_values),
        progress=lambda done, total: progress("evaluation", done, total, ""),
    )


def keep_evaluation(folder: Path, evaluation: Evaluation, dataset: RetrievalDataset, config: EvalConfig) -> None:
    """Write the results of `cosplace eval` into its folder."""
    values = to_values(config)
    what = config.weights.resume_model or f"untrained {config.model.backbone}"
    # Of a path its last part; hub:owner/repo:entry(args) and names of the zoo stay whole.
    name = what if what.startswith("hub:") else Path(what).name
    if config.weights.reduce_to:
        what = f"{what}, reduced to {config.weights.reduce_to} dimensions"
    report = Report(
        title=f"CosPlace on {dataset.name}",
        summary=[f"{what}, judged on {dataset.folder}.", counts_text(evaluation)],
        recall_rows=[_chance(evaluation), RecallRow(name=name, recalls=evaluation.recalls)],
        highlight=name,
        metrics=[],
        groups=None,
        groups_used=0,
        dataset=dataset,
        evaluation=evaluation,
        settings=values,
    )
    _keep(folder, report, values)


def keep_training(
    result: TrainResult, config: TrainConfig, *, baselines: Sequence[RecallRow] = (), title: str = ""
) -> None:
    """Write the results of a training run into its folder."""
    values = to_values(config)
    data, knobs = result.data, config.training
    trained = f"trained {result.model.backbone_name}"
    report = Report(
        title=title or f"CosPlace trained on {data.groups.folder}",
        summary=[
            f"{result.model.backbone_name} with {result.model.fc_output_dim}-dimensional descriptors: "
            f"{knobs.epochs_num} epochs of {knobs.iterations_per_epoch} iterations of {knobs.batch_size} images, "
            f"on {data.num_used} of {len(data.groups)} groups.",
            f"Tested is the model of {epoch_text(result.best_epoch)}, the best on {data.val.name}.",
            counts_text(result.test),
        ],
        recall_rows=[_chance(result.test), *baselines, RecallRow(name=trained, recalls=result.test.recalls)],
        highlight=trained,
        metrics=result.metrics,
        groups=data.groups,
        groups_used=data.num_used,
        dataset=data.test,
        evaluation=result.test,
        settings=values,
    )
    _keep(result.folder, report, values)


def counts_text(evaluation: Evaluation) -> str:
    """How many photos the recalls rest on, and which of them count against the model."""
    size = f"resized to {evaluation.image_size} pixels" if evaluation.image_size else "at their own size"
    text = (
        f"{evaluation.num_queries} queries, {evaluation.num_database} database images, {size}; right is within "
        f"{evaluation.positive_dist_threshold:g} m."
    )
    if evaluation.num_queries_without_positives:
        text += f" {evaluation.num_queries_without_positives} queries have no positive and count as misses."
    if evaluation.num_unreadable:
        text += f" {evaluation.num_unreadable} photos could not be opened."
    return text


def _chance(evaluation: Evaluation) -> RecallRow:
    return RecallRow(name="chance", recalls=evaluation.chance, note="random predictions")


def _keep(folder: Path, report: Report, values: Mapping[str, Any]) -> None:
    evaluation, dataset = report.evaluation, report.dataset
    assert evaluation is not None and dataset is not None
    results = {
        "recalls": {str(k): value for k, value in evaluation.recalls.items()},
        "num_database": evaluation.num_database,
        "num_queries": evaluation.num_queries,
        "num_queries_without_positives": evaluation.num_queries_without_positives,
        "positive_dist_threshold_m": values["positive_dist_threshold"],
        "image_size": evaluation.image_size,
    }
    write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    if values["num_preds_to_save"]:
        save_predictions(
            folder / PREDICTIONS, dataset, evaluation, values["num_preds_to_save"], values["save_only_wrong_preds"]
        )
    write_report(folder / REPORT, report)
