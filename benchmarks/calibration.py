"""Expected calibration error on photos that an index and its calibration have not seen.

    python benchmarks/calibration.py PHOTOS MODEL [--image_size 224] [--seeds 0 1 2 3]

For each seed, three tenths of the photos are held out; the others become a calibrated index, and the held-out photos
are located.  Prints the error over all seeds, and the mean error of perfect confidences for the same number of photos.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cosplace.engines.encoder import Encoder, load_model
from cosplace.index.building import build_index
from cosplace.index.photo_index import open_index
from cosplace.localization.calibration import calibrate
from cosplace.localization.confidence import calibration_error, reliability_bins
from cosplace.localization.localizer import Localizer, distance_to_m
from cosplace.photos.metadata import read_metadata
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.recall import RADIUS_M

SHARE_HELD_OUT, NUM_REPEATS = 0.3, 300


def locate_held_out(paths: list[Path], encoder: Encoder, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences (n,) of the held-out photos, and whether each answer is correct (n,)."""
    is_held_out = np.random.default_rng(seed).random(len(paths)) < SHARE_HELD_OUT
    with tempfile.TemporaryDirectory() as name:
        folder, index = Path(name) / "photos", Path(name) / "index"
        folder.mkdir()
        for path in (path for path, held_out in zip(paths, is_held_out, strict=True) if not held_out):
            (folder / path.name).symlink_to(path.absolute())
        build_index(folder, encoder, index, batch_size=32)
        with open_index(index, write=True) as opened:
            calibrate(opened, encoder=encoder)
        queries = [path for path, held_out in zip(paths, is_held_out, strict=True) if held_out]
        locations = Localizer(index, min_confidence=0.0, encoder=encoder).locate_many(queries)
    truth = [read_metadata(path, path.read_bytes()) for path in queries]
    errors_m = [
        distance_to_m(location, position.latitude, position.longitude)
        for location, position in zip(locations, truth, strict=True)
    ]
    return np.array([location.confidence for location in locations]), np.array(errors_m, float) <= RADIUS_M


def main() -> None:
    """Run and print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos with '@' names")
    parser.add_argument("model", help="a name from `cosplace zoo list`, or a weights file")
    parser.add_argument("--image_size", type=int, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    images, encoder = scan_images(arguments.photos), load_model(arguments.model, image_size=arguments.image_size)
    paths = [images.path(number) for number in range(len(images))]
    runs = [locate_held_out(paths, encoder, seed) for seed in arguments.seeds]
    confidences, correct = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    rng = np.random.default_rng(0)
    perfect = [
        calibration_error(reliability_bins(confidences, rng.random(len(confidences)) < confidences))
        for _ in range(NUM_REPEATS)
    ]
    error = calibration_error(reliability_bins(confidences, correct))
    print(
        f"{len(correct)} photos: calibration error {error:.3f} (perfect confidences: {np.mean(perfect):.3f}), mean "
        f"confidence {confidences.mean():.3f}, correct {correct.mean():.3f}"
    )


if __name__ == "__main__":
    main()
