"""What to do with a set of photos: a command line that trains on them, or the advice to use a released model.

Whether to train follows from the number of places (`cosplace.training.enough_places`); before a split, from those that
it leaves for training.  Classes and groups come from the search of `cosplace.training.advice`.  The other settings
follow from the number of classes, the size of the photos and the device.  A few training steps on random pixels measure
the time.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.splitting import SplitConfig
from cosplace.config.values import from_values, loading_workers
from cosplace.errors import DatasetError, ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.names import earth_positions, lack_hemisphere, optional_fields, utm_fields, without_rows
from cosplace.photos.tables import TABLE_NAME
from cosplace.progress import format_bytes, format_count, format_duration
from cosplace.retrieval.folder_report import Part
from cosplace.retrieval.splitting import plan_splits
from cosplace.retrieval.validation import DatasetReport, are_headings_known
from cosplace.training.advice import ALPHAS, CELLS_M, advice, classes_of, read_coordinates
from cosplace.training.enough_places import FEWEST_PLACES, count_places_of, split_places, too_few_places
from cosplace.training.groups import partition

RELEASED_MODEL = "cosplace_resnet50_512"
FINE_TUNED_PHOTOS = 100_000  # at most; more are worth a training from ImageNet weights
TIMES_SEEN = 60  # each class, in the whole run: about as often as in the paper on SF-XL
NUM_EPOCHS = 8  # at least; each ends with a validation
MAX_ITERATIONS = 10_000  # per epoch, as in the paper
SHORT_RUN = 20_000  # iterations; shorter runs need larger steps: 1e-4 was measured on 200 classes
GPU_PIXELS, CPU_PIXELS = 512, 224  # sides of training images; on a CPU, 512 pixels take five times as long
SIDE_STEP = 32  # pixels: the stride of the backbones
BATCH_SIZES = (32, 16, 8)
MEMORY_SHARE = 0.7  # of the device, that training may use
MEASURED_IMAGES, MEASURED_STEPS, MEASURED_PHOTOS = 4, 2, 8
TABLE_MIN_IMAGES = (2, 5, 10)
MOST = 0.9  # share of photos with a heading; with fewer, classes are formed without headings


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """The classes that one size of cells and one range of headings would give."""

    M: int  # meters
    alpha: int  # degrees
    num_classes: int
    median_images: float  # per class
    num_at_least: dict[int, int]  # minimum of images -> number of classes with at least as many
    sizes: np.ndarray  # (C,) images of each class


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to do with a dataset."""

    trains: bool  # whether training on the photos is worth trying
    commands: tuple[str, ...]  # to run one after the other
    reasons: tuple[str, ...]  # sentences
    settings: dict[str, Any]  # of `cosplace train`; empty if it is not recommended
    num_classes: int = 0  # in the groups that are trained on
    num_images: int = 0
    num_places: int | None = None  # of the training photos; None if they were not counted
    seconds: float | None = None  # of training and validations; None if it was not measured
    memory_bytes: int | None = None


def class_table(images: ImageList, *, with_headings: bool) -> list[ClassCounts]:
    """The classes that several settings give; with ranges of headings only if these are known.

    Raises DatasetError for a photo without position.
    """
    coordinates = read_coordinates(images, Grouping() if with_headings else Grouping(alpha=360))
    table = []
    for M in CELLS_M:
        for alpha in (*ALPHAS, 360) if with_headings else (360,):
            sizes = classes_of(coordinates, Grouping(M=M, alpha=alpha))
            kept = sizes.sizes[sizes.of_at_least(1)]
            table.append(
                ClassCounts(
                    M=M, alpha=alpha, num_classes=len(kept), sizes=kept,
                    median_images=float(np.median(kept)) if len(kept) else 0.0,
                    num_at_least={least: int((kept >= least).sum()) for least in TABLE_MIN_IMAGES},
                )
            )  # fmt: skip
    return table


def recommend(
    dataset: Path,
    images: ImageList,
    *,
    with_headings: bool,
    sizes: np.ndarray,
    num_evaluated: int,
    device: str = "auto",
    split_first: bool = False,
    measure: bool = True,
) -> Recommendation:
    """Recommend how to train on photos, or not to.

    with_headings: whether classes can be formed by heading.  sizes: (n, 2) width and height of photos; may be empty.
    num_evaluated: photos of the validation set, for the time of validations.
    split_first: whether `cosplace split` comes before the training, which leaves only a part of the photos for it.
    measure: take a few training steps to estimate time and memory.
    Raises DatasetError for a photo without position, or with headings for one without heading.
    """
    num_before, scope = len(images), "training photos"
    if split_first:
        try:
            images = _left_for_training(dataset, images)
        except DatasetError as error:
            return _use_released_model(dataset, images, f"Do not train on these photos: they cannot be split. {error}")
        scope = "photos that a split leaves for training"
    num_places = count_places_of(images, with_headings=with_headings)
    if num_places is not None and (problem := too_few_places(num_places)):
        after = f"After a split, about {len(images):,} of {num_before:,} photos are left for training. " * split_first
        reason = (
            f"Do not train on these photos. {after}{problem}. Use a released model; `cosplace zoo list` lists them."
        )
        return _use_released_model(dataset, images, reason, num_places)
    current = Grouping() if with_headings else Grouping(alpha=360, L=1)
    groups = partition(images, current)
    hint = advice(groups, current, images)
    grouping = hint.settings if hint and hint.settings else current
    counts = partition(images, grouping).counts()[: grouping.groups_num]
    num_classes, num_images = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if hint and hint.refused and hint.settings is None:
        return _use_released_model(dataset, images, hint.text, num_places)
    if num_classes < FEWEST_PLACES:
        return _finetune(dataset, grouping, num_classes, num_places)
    settings, sides = _settings(grouping, counts, sizes, device)
    reasons = [
        f"{num_images:,} of {len(images):,} {scope} are in the {num_classes:,} classes of {grouping.groups_num} "
        f"group{'s' if grouping.groups_num > 1 else ''} (M {grouping.M} m, alpha {grouping.alpha} degrees, at least "
        f"{grouping.min_images_per_class} photos per class).",
        *["Headings are missing: each class has all directions (--alpha 360)."] * (not with_headings),
    ]
    if sides > settings["image_size"]:
        reasons.append(
            f"The shorter side of the photos is {sides:,} pixels; training images have {settings['image_size']}."
        )
    seconds, memory_bytes = None, None
    if measure:
        seconds, memory_bytes, where = _forecast(settings, counts, images, num_evaluated, device)
        reasons.append(
            f"Expect about {format_duration(seconds)} and {format_bytes(memory_bytes)} {where}; --dry_run measures it."
        )
    if len(images) <= FINE_TUNED_PHOTOS:
        reasons.append(_about_fine_tuning(dataset))
    command = shlex.join(["cosplace", "train", "--dataset_folder", str(dataset), *_flags(settings)])
    return Recommendation(
        trains=True,
        commands=(command,),
        reasons=tuple(reasons),
        settings=settings,
        num_classes=num_classes,
        num_images=num_images,
        num_places=num_places,
        seconds=seconds,
        memory_bytes=memory_bytes,
    )


def _about_fine_tuning(dataset: Path) -> str:
    command = _finetune_command(dataset)
    return f"Or `{command}`: it chooses settings itself, and keeps the released model if training is not better."


def _finetune_command(dataset: Path) -> str:
    return shlex.join(["cosplace", "finetune", str(dataset), "--model", RELEASED_MODEL])


def _finetune(dataset: Path, grouping: Grouping, num_classes: int, num_places: int | None) -> Recommendation:
    """Fine-tuning, for photos of enough places in too few classes of a grid."""
    places = "" if num_places is None else f" The photos have {num_places:,} places without a grid."
    reason = (
        f"The best settings of `cosplace train` (M {grouping.M} m, alpha {grouping.alpha} degrees) give only "
        f"{format_count(num_classes, 'class', 'classes')} of at least {FEWEST_PLACES}.{places} `cosplace finetune` "
        f"chooses settings itself, and keeps the released model if training is not better."
    )
    return Recommendation(
        trains=True, commands=(_finetune_command(dataset),), reasons=(reason,), settings={}, num_classes=num_classes,
        num_places=num_places,
    )  # fmt: skip


def _left_for_training(dataset: Path, images: ImageList) -> ImageList:
    """The photos that `cosplace split` would leave for training.  Raises DatasetError if it would refuse them."""
    utm = utm_fields(images)
    if not utm.known.all():
        images = without_rows(images, np.flatnonzero(~utm.known))
        utm = utm_fields(images)
    try:
        points = earth_positions(images, utm)
    except DatasetError:  # names without a zone
        points = utm.east_north
    splits = plan_splits(split_places(images, points, dataset), SplitConfig(dataset=str(dataset))).splits
    return images.subset(np.flatnonzero(splits == "train").tolist())


def recommend_for(report: DatasetReport, *, device: str = "auto", measure: bool = True) -> Recommendation:
    """Recommend what to do with a dataset that was checked.

    Raises DatasetError if its training photos cannot form classes, for example because no position is known.
    """
    dataset, train = report.folder, report.train
    follow_outside = ["--follow_outside"] * report.follow_outside
    if train is None:
        words = ["cosplace", "eval", "--test_set_folder", str(dataset), "--model", RELEASED_MODEL, *follow_outside]
        reason = "There are no photos to train on, only a database and queries."
        return Recommendation(trains=False, commands=(shlex.join(words),), reasons=(reason,), settings={})
    images, with_headings, reasons = training_photos(train)
    sets = {database.name.rpartition("/")[0] for database, _ in report.query_sets()}
    missing = [split for split in ("val", "test") if split not in sets]
    found = recommend(
        dataset,
        images,
        with_headings=with_headings,
        sizes=train.contents.sizes[train.contents.opened] if train.contents is not None else np.zeros((0, 2), np.int64),
        num_evaluated=sum(len(part.images) for part in report.parts if part.name.startswith("val/")),
        device=device,
        split_first=bool(missing),
        measure=measure,
    )
    found = replace(found, commands=tuple(" ".join([command, *follow_outside]) for command in found.commands))
    if found.trains and missing:
        reasons.append(f"There is no {' and no '.join(missing)} set: split the dataset first.")
        commands = _split_commands(dataset, found.commands[0])
    else:
        commands = found.commands
    return replace(found, commands=commands, reasons=(*found.reasons, *reasons))


def training_photos(train: Part) -> tuple[ImageList, bool, list[str]]:
    """The photos of a part that can be trained on; whether their headings form classes; and what was decided.

    If most photos have a heading, those without one are left out; else no heading is used.
    Raises DatasetError if no position is known.
    """
    images = train.labeled
    unknown = np.isnan(optional_fields(images, ("utm_east", "utm_north"))).any(axis=0)
    if unknown.all() or not train.is_located.any():
        raise DatasetError(
            f"No position is known in {images.folder}. Combine photos and positions with `cosplace import`."
        )
    headings = optional_fields(images, ("heading",))[0]
    known = ~np.isnan(headings) & ~unknown
    with_headings = known.sum() >= MOST * max(1, (~unknown).sum()) and are_headings_known(headings[known])
    left_out = ~known if with_headings else unknown
    reasons = []
    if with_headings and (num_without := int((left_out & ~unknown).sum())):
        reasons.append(f"{format_count(num_without, 'photo has', 'photos have')} no heading: left out of this count.")
    if left_out.any():
        images = without_rows(images, np.flatnonzero(left_out))
    return images, bool(with_headings), reasons


def _split_commands(dataset: Path, train: str) -> tuple[str, ...]:
    """Commands that split a dataset and then train on it; photos without a table are imported first."""
    folder = dataset.parent if dataset.suffix == ".parquet" else dataset
    if (folder / TABLE_NAME).is_file():
        return shlex.join(["cosplace", "split", str(folder)]), train
    table = f"{dataset}-split"
    return (
        shlex.join(["cosplace", "import", str(dataset), "--to", table]),
        shlex.join(["cosplace", "split", table]),
        train.replace(shlex.quote(str(dataset)), shlex.quote(table), 1),
    )


def _use_released_model(dataset: Path, images: ImageList, reason: str, num_places: int | None = None) -> Recommendation:
    if images.labels is None and lack_hemisphere(images).all():  # an index would refuse them
        reasons = (reason, "An index needs positions on Earth: add them to the names (fields 3 to 6).")
        return Recommendation(trains=False, commands=(), reasons=reasons, settings={}, num_places=num_places)
    command = shlex.join(["cosplace", "index", "build", str(dataset), "--model", RELEASED_MODEL, "--to", "INDEX"])
    return Recommendation(trains=False, commands=(command,), reasons=(reason,), settings={}, num_places=num_places)


def _flags(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line writes them."""
    words: list[str] = []
    for name, value in settings.items():
        words += (
            [f"--{name}"] if value is True else [f"--{name}", f"{value:g}" if isinstance(value, float) else f"{value}"]
        )
    return words


def _settings(
    grouping: Grouping, counts: Sequence[tuple[int, int]], sizes: np.ndarray, device: str
) -> tuple[dict[str, Any], int]:
    """Settings of `cosplace train` that suit groups with these classes; and the median shorter side of the photos."""
    from cosplace.device import choose_device

    target = CPU_PIXELS if choose_device(device).type == "cpu" else GPU_PIXELS
    shorter = np.sort(sizes.min(axis=1)) if len(sizes) else np.zeros(0, np.int64)
    median = int(shorter[len(shorter) // 2]) if len(shorter) else 0
    image_size = max(SIDE_STEP, min(target, median // SIDE_STEP * SIDE_STEP)) if median else target
    settings: dict[str, Any] = asdict(grouping) | {"image_size": image_size}
    if not median or len(np.unique(sizes, axis=0)) > 1 or median != image_size:
        settings["resize_test_imgs"] = True
    settings["batch_size"] = next(
        (size for size in BATCH_SIZES if _fits(settings | {"batch_size": size}, counts, device)), BATCH_SIZES[-1]
    )
    num_iterations = -(-TIMES_SEEN * sum(classes for classes, _ in counts) // settings["batch_size"])
    rounds = max(-(-NUM_EPOCHS // grouping.groups_num), -(-num_iterations // (MAX_ITERATIONS * grouping.groups_num)))
    settings["epochs_num"] = rounds * grouping.groups_num
    settings["iterations_per_epoch"] = -(-num_iterations // settings["epochs_num"])
    settings["lr"] = 1e-4 if num_iterations < SHORT_RUN else 1e-5
    return settings, median


# --- time and memory -------------------------------------------------------------------------------------------------


def _new_state(settings: dict[str, Any], counts: Sequence[tuple[int, int]], device: str) -> tuple:
    """(config, state, device) at the start of a run; with random weights, as speed does not depend on them."""
    from cosplace.device import choose_device
    from cosplace.models.network import GeoLocalizationNet
    from cosplace.training.setup import new_state

    config = from_values(TrainConfig, settings)
    place = choose_device(device)
    model = GeoLocalizationNet(config.model.backbone, config.model.fc_output_dim, train_all_layers=False)
    return config, new_state(config, counts, model, place, None), place


def _fits(settings: dict[str, Any], counts: Sequence[tuple[int, int]], device: str) -> bool:
    """Whether training with these settings needs at most MEMORY_SHARE of the memory of the device."""
    from cosplace.training.plan import expected_bytes

    config, state, place = _new_state(settings, counts, device)
    return expected_bytes(config, state, None)[0] <= MEMORY_SHARE * _memory_bytes(place)


def _memory_bytes(device: Any) -> float:
    """Memory of a device, free or total; infinite where it is unknown."""
    import os

    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on this system
        return float("inf")


def _forecast(
    settings: dict[str, Any], counts: Sequence[tuple[int, int]], images: ImageList, num_evaluated: int, device: str
) -> tuple[float, int, str]:
    """Seconds of a run, memory in bytes, and where that memory is; from a few steps on few random images."""
    import torch

    from cosplace.retrieval.dry_run import memory_name, peak_memory_bytes, synchronize
    from cosplace.training.plan import expected_bytes
    from cosplace.training.step import TrainingStep

    config, state, place = _new_state(settings | {"batch_size": MEASURED_IMAGES}, counts, device)
    side = config.augmenting.image_size
    pixels = torch.rand(MEASURED_IMAGES, 3, side, side).to(place).to(memory_format=torch.channels_last)
    labels = torch.zeros(MEASURED_IMAGES, dtype=torch.int64, device=place)
    state.move_classifier(0, place)
    train_step = TrainingStep.for_group(state, 0, forward=state.model, device=place, dtype=None)
    state.model.train()

    def seconds_per_image(run: Any) -> float:
        run()  # warm-up
        synchronize(place)
        started = time.perf_counter()
        for _ in range(MEASURED_STEPS):
            run()
        synchronize(place)
        return (time.perf_counter() - started) / (MEASURED_STEPS * MEASURED_IMAGES)

    step = seconds_per_image(lambda: train_step(pixels, labels))
    state.model.eval()
    with torch.inference_mode():
        forward = seconds_per_image(lambda: state.model(pixels))
    load = _loading_seconds(images, side)
    trained = settings["epochs_num"] * settings["iterations_per_epoch"] * settings["batch_size"]
    evaluated = (settings["epochs_num"] + 1) * num_evaluated
    # On a CPU, loading and training share the cores; on a GPU, they overlap.
    combine = (lambda a, b: a + b) if place.type == "cpu" else max
    seconds = trained * combine(step, load) + evaluated * combine(forward, load)
    config, state, _ = _new_state(settings, counts, device)
    memory_bytes = expected_bytes(config, state, None)[0]
    if place.type == "cpu":  # the process itself
        memory_bytes += peak_memory_bytes(place)
    return seconds, memory_bytes, memory_name(place)


def _loading_seconds(images: ImageList, side: int) -> float:
    """Seconds to decode and resize one photo, divided by the number of workers; 0 if none can be opened."""
    from cosplace.photos.opening import open_image
    from cosplace.photos.resizing import resize_shorter_side

    count, started = 0, time.perf_counter()
    for row in evenly_spaced(images, MEASURED_PHOTOS):
        try:
            resize_shorter_side(open_image(images.path(row)), side)
            count += 1
        except (ImageError, DatasetError):  # reported by the check of the photos
            continue
    return (time.perf_counter() - started) / max(1, count) / max(1, loading_workers(None)) if count else 0.0
