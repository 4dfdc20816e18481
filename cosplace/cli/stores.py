"""cosplace eval with two stores of descriptors."""

import dataclasses
import logging
import os
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
from cosplace.config.values import to_values
from cosplace.errors import ConfigError
from cosplace.progress import format_count, no_progress
from cosplace.ranks import ALONE, local_device, ranks_from_environment

if TYPE_CHECKING:
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation
    from cosplace.retrieval.store_evaluation import Stores

USED = (  # settings that have an effect on stored descriptors
    "database_store", "queries_store", "memory", "recall_values", "positive_dist_threshold", "num_preds_to_save",
    "save_only_wrong_preds", "report_matches", "no_report", "compare", "audit", "verdicts", "device", "seed",
    "save_dir",
)  # fmt: skip

log = logging.getLogger("cosplace")


def evaluate_stored(config: EvalConfig, given: Mapping[str, Any]) -> "tuple[Path, Evaluation, RetrievalDataset] | None":
    """Evaluate two stores, write the results and print them; returns the folder of the run and what was evaluated.

    Returns None in ranks of `torchrun` other than the first.
    Raises ConfigError for flags that have no effect on stored descriptors.
    """
    if unused := [name for name in given if name not in USED]:
        raise ConfigError(
            f"--{unused[0]} has no effect on stored descriptors. Omit it, or use it with `cosplace extract`."
        )

    import torch

    from cosplace.assessment.provenance import RunInfo
    from cosplace.device import choose_device
    from cosplace.retrieval.evaluation import evaluation_settings, with_scored_predictions
    from cosplace.retrieval.rank_group import rank_group
    from cosplace.retrieval.store_evaluation import evaluate_stores, open_stores

    assert config.stores.database_store is not None and config.stores.queries_store is not None
    ranks = ranks_from_environment() if "MASTER_ADDR" in os.environ else ALONE
    device = choose_device(local_device(config.running.device, torch.cuda.device_count()))
    run = RunInfo(command=command_line(), seed=config.running.seed, device=device)
    bars = Bars()
    memory = config.stores.memory
    with on_interrupt("Nothing was written. Run the same command again."), rank_group(ranks) as group:
        stores = open_stores(config.stores.database_store, config.stores.queries_store)
        found = evaluate_stores(
            stores,
            with_scored_predictions(evaluation_settings(config, device)),
            group=group,
            memory_bytes=None if memory is None else round(memory * 2**30),
            progress=bars if ranks.is_first else no_progress,
        )
    bars.close()
    if found is None:
        return None
    evaluation, dataset = found
    return _write(config, evaluation, dataset, stores, run), evaluation, dataset


def _write(
    config: EvalConfig, evaluation: "Evaluation", dataset: "RetrievalDataset", stores: "Stores", run: Any
) -> Path:
    """Write and print the results; returns the folder of the run."""
    from cosplace.assessment.audit import find_verdicts, judged_line, judged_recalls
    from cosplace.assessment.protocols import protocol_record
    from cosplace.assessment.provenance import deviations, provenance
    from cosplace.assessment.records import summary_lines
    from cosplace.report.results import write_evaluation_results
    from cosplace.retrieval.evaluation import log_misses
    from cosplace.storage import new_run_folder

    about, radius_m = stores.database.meta.about, evaluation.positive_dist_threshold
    name = about.get("model", "a model that the store does not name")
    config = dataclasses.replace(config, weights=dataclasses.replace(config.weights, resume_model=name))
    verdicts = find_verdicts(dataset, None if config.truth.verdicts is None else Path(config.truth.verdicts))
    folder = new_run_folder(LOGS, config.running.save_dir, timestamp())
    with log_to_folder(folder):
        log.info("results: %s", folder)
        log_misses(evaluation)
        write_json(folder / "config.json", to_values(config))
        origin = provenance(
            evaluation,
            dataset,
            protocol=protocol_record(None, radius_m, deviations=deviations(evaluation, dataset)),
            model=about.get("model_record") or _unknown_model(name, stores),
            run=run,
        )
        measures = write_evaluation_results(
            folder,
            evaluation,
            dataset,
            config,
            origin=origin,
            verdicts=verdicts,
            stores=stores.record(),
            progress=Bars(),
        )
    extraction = stores.database.meta.extraction
    print_result(
        f"{stores.database.address}: {format_count(extraction.count, 'photo')}, {extraction.dtype}, "
        f"{stores.database.meta.row_bytes:,} bytes per photo"
    )
    for line in (evaluation.recalls_text(), *summary_lines(measures, radius_m)):
        print_result(line)
    if verdicts is not None:
        print_result(judged_line(judged_recalls(evaluation, dataset, verdicts, measures.clusters)))
    print_main_file(folder, no_report=config.reporting.no_report)
    return folder


def _unknown_model(name: str, stores: "Stores") -> dict[str, Any]:
    """The record of a model that meta.json does not describe, such as one that Python code extracted with."""
    from cosplace.assessment.published import terms_of

    return {
        "name": name,
        "file": None,
        "sha256": None,
        "backbone": "unknown",
        "descriptor_dim": stores.database.meta.dimension,
        "reduced_to": None,
        "card": {},
        "licenses": terms_of("").licenses,
    }
