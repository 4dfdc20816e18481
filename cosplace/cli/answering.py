"""cosplace eval with two folders: which photos, which flags go together, and answers where nothing can be measured."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import print_result
from cosplace.config.defaults import RADIUS_M
from cosplace.config.evaluation import EvalConfig
from cosplace.config.values import set_folder
from cosplace.errors import ConfigError, NoPositionsError

if TYPE_CHECKING:
    from torch import nn

    from cosplace.engines.engine import Engine
    from cosplace.importing.dataset_layouts import RetrievalLists
    from cosplace.progress import Progress
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import EvaluationSettings

log = logging.getLogger("cosplace")

PREDICTIONS, NUM_PREDICTIONS = "preds", 3
NOT_MEASURED = "nothing was measured: the queries have no positions"
NO_LABELS = "nothing was measured: --no_labels ignores all positions"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabeledPhotos:
    """Photos whose queries have no known positions."""

    lists: "RetrievalLists"
    has_positions: bool  # of the database


def check_flags(config: EvalConfig, given: Mapping[str, Any]) -> None:
    """Raise ConfigError for flags that make no sense together.  given: the settings of the command line."""
    from cosplace.photos.crops import WITH_SIZE

    folders, views = config.folders, config.views
    if folders.database_folder and folders.test_set_folder:
        raise ConfigError("--database_folder and --test_set_folder contradict each other. Use only one of them.")
    if folders.no_labels:
        _refuse_measuring(config, "--no_labels measures nothing: it does not go with {name}. Omit one of the two.")
    policy = views.query_policy
    if policy and policy not in WITH_SIZE and "image_size" in given and not config.testing.resize_test_imgs:
        raise ConfigError(
            f"--image_size has no effect on the query policy {policy}. Omit it, or add --resize_test_imgs to resize "
            f"the database."
        )
    if not policy and "image_size" in given and not config.testing.resize_test_imgs:
        log.warning("--image_size has no effect: photos keep their size. Add --resize_test_imgs to resize them.")
    if len(set(views.scales)) < len(views.scales):
        raise ConfigError(f"--scales must be different numbers, got {' '.join(f'{one:g}' for one in views.scales)}.")
    changed = [f"--{name}" for name in ("query_policy", "scales", "flip") if _is_changed(config, name)]
    if changed and config.protocol.protocol:
        raise ConfigError(
            f"{' and '.join(changed)} cannot be used with the protocol {config.protocol.protocol}, which does not "
            f"resize or crop photos. Omit the flags, or omit --protocol to evaluate it as custom."
        )
    if config.weights.descriptors_dtype == "float16" and config.protocol.protocol:
        raise ConfigError(
            f"--descriptors_dtype float16 cannot be used with the protocol {config.protocol.protocol}: it may swap "
            f"predictions. Omit it, or omit --protocol to evaluate it as custom."
        )
    _check_compression(config, given)


def _check_compression(config: EvalConfig, given: Mapping[str, Any]) -> None:
    from cosplace.photos.crops import MAJORITY
    from cosplace.retrieval.crop_ranking import VOTE_RANKS

    compress, shortlist = config.compression.compress, config.compression.shortlist
    if compress is None:
        if "shortlist" in given:
            raise ConfigError("--shortlist has no effect without --compress. Omit it, or add --compress binary.")
        return
    if config.protocol.protocol:
        raise ConfigError(
            f"--compress cannot be used with the protocol {config.protocol.protocol}, which compares descriptors "
            f"exactly. Omit --compress, or omit --protocol to evaluate it as custom."
        )
    names = {
        "--recall_values": max(config.testing.recall_values),
        "--num_preds_to_save": config.testing.num_preds_to_save,
    }
    names |= (
        {f"the votes of --query_policy {MAJORITY}": max(VOTE_RANKS)} if config.views.query_policy == MAJORITY else {}
    )
    name = max(names, key=lambda one: names[one])
    if 0 < shortlist < names[name]:
        raise ConfigError(
            f"--shortlist {shortlist} is smaller than the {names[name]} predictions that {name} needs. Use "
            f"--shortlist {names[name]} or more, or 0 for the order of the compressed descriptors."
        )


def _is_changed(config: EvalConfig, name: str) -> bool:
    return getattr(config.views, name) != getattr(type(config.views)(), name)


def has_usual_views(config: EvalConfig) -> bool:
    """Whether photos are described once, queries as the database, and descriptors are compared exactly."""
    is_changed = any(_is_changed(config, name) for name in ("query_policy", "scales", "flip"))
    return config.compression.compress is None and not is_changed


def _refuse_measuring(config: EvalConfig, problem: str) -> None:
    """Raise ConfigError for flags that need positions.  problem: a message with {name} for the flag."""
    used = {
        "protocol": config.protocol.protocol,
        "compress": config.compression.compress,
        "compare": config.comparing.compare,
        "audit": config.truth.audit,
        "verdicts": config.truth.verdicts,
        "save_only_wrong_preds": config.testing.save_only_wrong_preds,
        "positive_dist_threshold": config.testing.positive_dist_threshold != RADIUS_M,
    }
    for name, value in used.items():
        if value:
            raise ConfigError(problem.format(name=f"--{name}"))


def check_unlabeled(config: EvalConfig, photos: UnlabeledPhotos) -> None:
    """Raise ConfigError for flags that need positions of the queries."""
    if photos.has_positions:
        folder = str(photos.lists.queries.folder).replace("{", "{{").replace("}", "}}")
        _refuse_measuring(config, f"The photos of {folder} have no positions, which {{name}} needs. Omit this flag.")
    if config.running.dry_run:
        raise ConfigError("--dry_run estimates evaluations, which need positions. Omit it.")


def open_test_photos(config: EvalConfig, progress: "Progress") -> "RetrievalDataset | UnlabeledPhotos":
    """The test set, or the two folders; unlabeled if --no_labels says so, or if only the database has positions.

    Raises NoPositionsError if the database has no positions, or the queries of a test set.
    """
    from dataclasses import replace

    from cosplace.retrieval.dataset import (
        dataset_lists,
        dataset_of_lists,
        photos_with_positions,
        two_folder_lists,
        with_known_positions,
    )

    folders = config.folders
    if folders.database_folder:
        lists = two_folder_lists(folders.database_folder, folders.queries_folder, follow_outside=folders.follow_outside)
    else:
        test_folder = set_folder(folders, "test")
        lists = dataset_lists(test_folder, folders.queries_folder, follow_outside=folders.follow_outside)
    if folders.no_labels:
        return UnlabeledPhotos(lists=lists, has_positions=False)
    if not folders.database_folder:
        return with_known_positions(lists, progress)
    database = photos_with_positions(lists.database, progress)
    try:
        queries = photos_with_positions(lists.queries, progress)
    except NoPositionsError:
        return UnlabeledPhotos(lists=replace(lists, database=database[0]), has_positions=True)
    return dataset_of_lists(lists, database, queries)


def answer_run(
    folder: Path,
    model: "nn.Module | Engine",
    photos: UnlabeledPhotos,
    settings: "EvaluationSettings",
    *,
    num_predictions: int,
    model_record: Mapping[str, Any],
    progress: "Progress",
) -> None:
    """Search the queries, write the answers to the folder of the run, and print them.

    num_predictions: shown in the images of preds/.  model_record: see `describe_model`.
    """
    from cosplace.report.answer_files import write_answers
    from cosplace.report.prediction_images import save_neighbors
    from cosplace.retrieval.evaluation import views_record
    from cosplace.retrieval.two_folders import find_neighbors

    neighbors = find_neighbors(model, photos.lists, settings, progress)
    about = {"image_size": settings.extraction.image_size, **views_record(settings), "model": model_record}
    save_neighbors(folder / PREDICTIONS, neighbors, num_predictions, progress=progress)
    path, lines = write_answers(folder, neighbors, has_positions=photos.has_positions, about=about)
    for line in lines:
        print_result(line)
    print_result(NOT_MEASURED if photos.has_positions else NO_LABELS)
    print_result(f"{'answers' if photos.has_positions else 'neighbors'}: {path}")
