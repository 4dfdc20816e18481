"""The whole journey in minutes, without data or GPU: make a city, learn it, judge, report, index it, locate photos.

The table sets the trained network beside chance, a tiny-image descriptor and the untrained network, because a recall
alone says little.  A model trained on the made city says nothing about real photos.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.index.building import build_index
from cosplace.index.photo_index import open_index
from cosplace.localization.answers import Location, plain_text
from cosplace.localization.calibration import calibrate
from cosplace.localization.localizer import Localizer, away_from_m
from cosplace.models.encoder import load_model
from cosplace.photos.image_list import image_list
from cosplace.photos.metadata import read_metadata
from cosplace.report.calibration_page import write_calibration_page
from cosplace.report.contents import RecallRow
from cosplace.report.results import keep_training
from cosplace.retrieval.baselines import tiny_image_descriptors
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate, evaluate_descriptors
from cosplace.retrieval.recall import RADIUS_M
from cosplace.training.checkpoint import BEST_MODEL
from cosplace.training.groups import partition
from cosplace.training.loop import train
from cosplace.training.setup import new_network, prepare
from synthcity.capture import build_city
from synthcity.settings import CitySettings

Progress = Callable[[str, int, int, str], None]

INDEX = "index"  # in the run's folder

CITY = CitySettings(images=23_000, database_images=3_000, image_size=80, query_sideways=0.2)
RECIPE = {
    "backbone": "ResNet18_Small", "fc_output_dim": 128, "image_size": 80,
    "M": 20, "alpha": 30, "N": 2, "L": 2, "groups_num": 2, "min_images_per_class": 2,
    "batch_size": 32, "epochs_num": 4, "iterations_per_epoch": 400, "lr": 4e-3, "classifiers_lr": 0.01,
    "margin": 0.3, "whitened_start": True, "margin_ramp": 0.3, "lr_schedule": "cosine", "warmup_iterations": 50,
    "brightness": 0.3, "contrast": 0.3, "saturation": 0.0, "hue": 0.0, "random_resized_crop": 0.3,
    "use_amp16": True, "device": "cpu", "num_workers": 1, "infer_batch_size": 64, "num_preds_to_save": 0,
    "save_dir": "demo",
}  # fmt: skip
"""A small network, small images and few groups: what 2 cores learn in minutes.  Chosen on validation sets."""


def city_folder(cities: Path, seed: int) -> Path:
    """Where the city of a seed is kept."""
    return cities / f"city-{seed}"


def run_demo(cities: Path, folder: Path, seed: int, progress: Progress) -> str:
    """Make the city among `cities`, train in `folder`, write report.html there; returns the table of recalls."""
    city = city_folder(cities, seed)
    config = from_values(TrainConfig, {**RECIPE, "seed": seed, "dataset_folder": str(city)})
    build_city(
        city,
        dataclasses.replace(CITY, seed=seed),
        progress=lambda done, total: progress("making the city", done, total, ""),
        keep=lambda east, north, heading: in_used_groups(east, north, heading, config.grouping),
    )
    test = open_retrieval_dataset(city / "test")
    baselines = [
        RecallRow(name="tiny image", recalls=_tiny_image(test).recalls, note="16 × 16 pixels as the descriptor"),
        RecallRow(name="untrained network", recalls=_untrained(test, config, progress).recalls, note="random weights"),
    ]
    result = train(prepare(config), folder, progress)
    keep_training(result, config, baselines=baselines, title="CosPlace learns a made city")
    trained = RecallRow(name="trained network", recalls=result.test.recalls)
    chance = RecallRow(name="chance", recalls=result.test.chance)
    return recall_table([chance, *baselines, trained])


def index_and_locate(city: Path, folder: Path, progress: Progress) -> str:
    """Make `folder`/index of the test split with the run's best model, and tell where the queries were taken."""
    encoder, index = load_model(folder / BEST_MODEL, device="cpu"), folder / INDEX
    batch_size = int(RECIPE["infer_batch_size"])
    build_index(city / "test", encoder, index, batch_size=batch_size, progress=_named(progress, "index"))
    with open_index(index, write=True) as opened:
        calibration = calibrate(opened, encoder=encoder, progress=_named(progress, "calibrating"))
        write_calibration_page(calibration, opened.address)
    queries = open_retrieval_dataset(city / "test").queries
    paths = [queries.path(number) for number in range(len(queries))]
    localizer = Localizer(index, device="cpu")
    located = localizer.locate_many(paths)
    facts = [read_metadata(path, path.read_bytes()) for path in paths]
    errors_m = [
        away_from_m(location, fact.latitude, fact.longitude) for location, fact in zip(located, facts, strict=True)
    ]
    return located_text(located, errors_m)


def located_text(located: list[Location], errors_m: list[float | None]) -> str:
    """How many photos were located, how far off, and the first that was, as text."""
    answered = [error_m for error_m in errors_m if error_m is not None]
    lines = [f"{len(located)} photos located: {len(located) - len(answered)} unknown"]
    if answered:
        near = sum(error_m <= RADIUS_M for error_m in answered)
        lines[0] += (
            f", {near} of the other {len(answered)} within {RADIUS_M:g} m (median {np.median(answered):.1f} m).  "
            f"The first:"
        )
        first = next(number for number, error_m in enumerate(errors_m) if error_m is not None)
        lines += [plain_text(located[first]), f"  it was taken {errors_m[first]:.1f} m from there"]
    return "\n".join(lines)


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total, "")


def in_used_groups(east: np.ndarray, north: np.ndarray, heading: np.ndarray, grouping: Grouping) -> np.ndarray:
    """(I,) bool: the images that fall into the groups that are trained on; no others need to be made."""
    names = [
        f"@{e:.2f}@{n:.2f}@@@@@{i}@@{h}@@@@@@.jpg" for i, (e, n, h) in enumerate(zip(east, north, heading, strict=True))
    ]
    groups = partition(image_list(Path(), names), grouping)
    used = np.zeros(len(names), bool)
    for number in range(min(grouping.groups_num, len(groups))):
        group = groups[number]
        used[[int(group.image_name(image).split("@")[7]) for image in range(group.num_images)]] = True
    return used


def recall_table(rows: list[RecallRow]) -> str:
    """Rows of recalls as aligned text."""
    ks = list(rows[0].recalls)
    width = max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"{f'R@{k}':>8}" for k in ks)]
    lines += [f"{row.name:<{width}}" + "".join(f"{row.recalls[k]:8.1f}" for k in ks) for row in rows]
    return "\n".join(lines)


def _tiny_image(test: RetrievalDataset) -> Evaluation:
    return evaluate_descriptors(tiny_image_descriptors(test.database), tiny_image_descriptors(test.queries), test)


def _untrained(test: RetrievalDataset, config: TrainConfig, progress: Progress) -> Evaluation:
    network = new_network(
        backbone=config.model.backbone,
        fc_output_dim=config.model.fc_output_dim,
        train_all_layers=False,
        imagenet_weights=None,
        seed=config.running.seed,
    )
    return evaluate(
        network,
        test,
        batch_size=config.testing.infer_batch_size,
        progress=lambda done, total: progress("untrained network", done, total, ""),
    )
