"""CosPlace on a synthetic city: render it, train, evaluate, build an index and locate photos; minutes on a CPU.

The table compares the trained network with chance, tiny images and an untrained network, because a recall alone says
little.  A model trained on the synthetic city says nothing about real photos.
"""

import dataclasses
from pathlib import Path

import numpy as np

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.engines.encoder import load_model
from cosplace.index.building import build_index
from cosplace.index.photo_index import open_index
from cosplace.localization.answers import Location, plain_text
from cosplace.localization.calibration import calibrate
from cosplace.localization.localizer import Localizer, distance_to_m
from cosplace.models.network import new_network
from cosplace.photos.image_list import image_list
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import format_image_name
from cosplace.progress import Progress, format_count, part_of
from cosplace.report.calibration_page import write_calibration_page
from cosplace.report.data import RecallRow
from cosplace.report.training_results import write_training_results
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate
from cosplace.retrieval.recall import RADIUS_M
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.groups import partition
from cosplace.training.loop import train
from cosplace.training.setup import prepare
from synthcity.capture import build_city
from synthcity.settings import CitySettings

INDEX = "index"  # folder of the index, in the folder of the run

CITY = CitySettings(images=23_000, database_images=3_000, image_size=80, query_sideways=0.2)
RECIPE = {
    "backbone": "ResNet18_Small", "fc_output_dim": 128, "image_size": 80,
    "M": 20, "alpha": 30, "N": 2, "L": 2, "groups_num": 2, "min_images_per_class": 2,
    "batch_size": 32, "epochs_num": 4, "iterations_per_epoch": 400, "lr": 4e-3, "classifiers_lr": 0.01,
    "margin": 0.3, "whitened_start": True, "margin_ramp": 0.3, "lr_schedule": "cosine", "warmup_iterations": 50,
    "brightness": 0.3, "contrast": 0.3, "saturation": 0.0, "hue": 0.0, "random_resized_crop": 0.3,
    "use_amp16": True, "device": "cpu", "num_workers": 1, "infer_batch_size": 64, "num_preds_to_save": 0,
    "save_dir": "demo", "held_out_photos": 0,
}  # fmt: skip
"""A small network, small images and few groups, to train in minutes on 2 cores.  Chosen on validation sets."""


def city_folder(parent: Path, seed: int) -> Path:
    """Return the folder of the city with a seed."""
    return parent / f"city-{seed}"


def train_on_city(city: Path, folder: Path, seed: int, progress: Progress) -> str:
    """Render a city unless it exists, train and evaluate in `folder`; returns the table of recalls."""
    config = from_values(TrainConfig, {**RECIPE, "seed": seed, "dataset_folder": str(city)})
    build_city(
        city,
        dataclasses.replace(CITY, seed=seed),
        progress=part_of(progress, "rendering the city"),
        keep=lambda east, north, heading: is_in_used_group(east, north, heading, config.grouping),
    )
    test = open_retrieval_dataset(city / "test")
    tiny_image = evaluate(TinyImage(), test)
    untrained = _evaluate_untrained(test, config, progress)
    baselines = [
        RecallRow(name="tiny image", recalls=tiny_image.recalls, note="16 × 16 pixels as the descriptor"),
        RecallRow(name="untrained network", recalls=untrained.recalls, note="random weights"),
    ]
    result = train(prepare(config), folder, progress)
    write_training_results(result, config, baselines=baselines, title="CosPlace on a synthetic city")
    trained = RecallRow(name="trained network", recalls=result.test.recalls)
    chance = RecallRow(name="chance", recalls=result.test.chance)
    return recall_table([chance, *baselines, trained])


def is_in_used_group(east: np.ndarray, north: np.ndarray, heading: np.ndarray, grouping: Grouping) -> np.ndarray:
    """Which images, (I,) bool, are in a group that is trained on; others need not be rendered."""
    names = [
        format_image_name(
            utm_east=e, utm_north=n, zone=0, letter="", latitude=0, longitude=0, pano_id=str(image), heading=int(h)
        )
        for image, (e, n, h) in enumerate(zip(east, north, heading, strict=True))
    ]
    images = {name: image for image, name in enumerate(names)}
    groups = partition(image_list(Path(), names), grouping)
    used = np.zeros(len(names), bool)
    for number in range(min(grouping.groups_num, len(groups))):
        group = groups[number]
        used[[images[group.image_name(row)] for row in range(group.num_images)]] = True
    return used


def _evaluate_untrained(test: RetrievalDataset, config: TrainConfig, progress: Progress) -> Evaluation:
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
        progress=part_of(progress, "untrained network"),
    )


def recall_table(rows: list[RecallRow]) -> str:
    """Format rows of recalls as aligned text."""
    recall_values = list(rows[0].recalls)
    width = max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"{f'R@{k}':>8}" for k in recall_values)]
    lines += [f"{row.name:<{width}}" + "".join(f"{row.recalls[k]:8.1f}" for k in recall_values) for row in rows]
    return "\n".join(lines)


def index_and_locate(city: Path, folder: Path, progress: Progress) -> str:
    """Build an index of the test database with the best model of a run, and locate the test queries.

    Returns a summary as text.
    """
    encoder, index = load_model(folder / BEST_MODEL, device="cpu"), folder / INDEX
    batch_size = int(RECIPE["infer_batch_size"])
    build_index(city / "test", encoder, index, batch_size=batch_size, progress=progress)
    with open_index(index, write=True) as opened:
        calibration = calibrate(opened, encoder=encoder, progress=progress)
        write_calibration_page(calibration, opened.address)
    queries = open_retrieval_dataset(city / "test").queries
    paths = [queries.path(number) for number in range(len(queries))]
    locations = Localizer(index, device="cpu").locate_many(paths)
    true_positions = [metadata_from_name(path.name) for path in paths]
    errors_m = [
        distance_to_m(location, position.latitude, position.longitude)
        for location, position in zip(locations, true_positions, strict=True)
    ]
    return summary_text(locations, errors_m)


def summary_text(locations: list[Location], errors_m: list[float | None]) -> str:
    """Format how many photos were located and how far off, with the first answer.  errors_m: None for unknown."""
    known_m = [error_m for error_m in errors_m if error_m is not None]
    text = f"{format_count(len(locations), 'photo')}: {len(locations) - len(known_m)} unknown"
    if not known_m:
        return text
    num_correct = sum(error_m <= RADIUS_M for error_m in known_m)
    first = next(number for number, error_m in enumerate(errors_m) if error_m is not None)
    return "\n".join(
        [
            f"{text}, {len(known_m)} located, {num_correct} of them within {RADIUS_M:g} m (median error "
            f"{np.median(known_m):.1f} m).  The first:",
            plain_text(locations[first]),
            f"  true position {errors_m[first]:.1f} m away",
        ]
    )
