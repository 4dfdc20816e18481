"""Expected calibration error on photos that an index and its calibration never saw.

    python benchmarks/calibration.py PHOTOS MODEL [--image_size 224] [--seeds 0 1 2 3]

For each seed three tenths of the photos are kept aside, the others become an index that calibrates itself; then those
kept aside are located.  Told of all seeds together, beside what perfect confidences would show with so few photos.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cosplace.index.building import build_index
from cosplace.index.photo_index import open_index
from cosplace.localization.calibration import calibrate
from cosplace.localization.localizer import Localizer
from cosplace.localization.plane import ground_distances_m
from cosplace.models.encoder import Encoder, load_model
from cosplace.photos.metadata import read_metadata
from cosplace.photos.scanning import scan_images

SHARE, RIGHT_M, BINS, REPEATS = 0.3, 25.0, 10, 300


def located(paths: list[Path], encoder: Encoder, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences (n,) and whether each answer is right (n,), of the photos kept aside."""
    aside = np.random.default_rng(seed).random(len(paths)) < SHARE
    with tempfile.TemporaryDirectory() as name:
        folder, index = Path(name) / "photos", Path(name) / "index"
        folder.mkdir()
        for path in (path for path, kept in zip(paths, aside, strict=True) if not kept):
            (folder / path.name).symlink_to(path.absolute())
        build_index(folder, encoder, index, batch_size=32)
        with open_index(index, write=True) as opened:
            calibrate(opened, encoder=encoder)
        asked = [path for path, kept in zip(paths, aside, strict=True) if kept]
        answers = Localizer(index, min_confidence=0.0, encoder=encoder).locate_many(asked)
    facts = [read_metadata(path, path.read_bytes()) for path in asked]
    errors_m = [
        ground_distances_m(answer.latitude, answer.longitude, fact.latitude, fact.longitude)
        for answer, fact in zip(answers, facts, strict=True)
    ]
    return np.array([answer.confidence for answer in answers]), np.array(errors_m, float) <= RIGHT_M


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Mean distance between confidence and share of right answers, over ten bins of equal width."""
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    inside = [bins == number for number in range(BINS) if (bins == number).any()]
    return float(sum(some.mean() * abs(confidences[some].mean() - right[some].mean()) for some in inside))


def main() -> None:
    """Run and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos with '@' names")
    parser.add_argument("model", help="a name of the zoo or a file of weights")
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    images, encoder = scan_images(arguments.photos), load_model(arguments.model, image_size=arguments.image_size)
    paths = [images.path(number) for number in range(len(images))]
    runs = [located(paths, encoder, seed) for seed in arguments.seeds]
    confidences, right = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    rng = np.random.default_rng(0)
    perfect = [calibration_error(confidences, rng.random(len(confidences)) < confidences) for _ in range(REPEATS)]
    print(
        f"{len(right)} photos: calibration error {calibration_error(confidences, right):.3f} (perfect: "
        f"{np.mean(perfect):.3f}), told {confidences.mean():.3f}, right {right.mean():.3f}"
    )


if __name__ == "__main__":
    main()
