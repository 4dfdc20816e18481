"""The confidence of answers to many new photos, in an index of the photos that its model was trained on.

With 1,440 photos, the share of right answers is known to 1.3 % (one standard deviation), and calibration adds its own
error; confidences that ignore what the model was trained on are 26 % too high.  The network is that of
`test_confidence`.
"""

from pathlib import Path

import numpy as np
import pytest
from pyproj import Geod

from cosplace import GeoLocalizationNet, Localizer, open_index
from cosplace.localization.calibration import calibrate
from tests.unusual_input import test_confidence as small
from tests.unusual_input.samples import run

NUM_PLACES = 240
VARIANTS = range(small.NEW, small.NEW + 6)


@pytest.mark.slow
def test_confidence_is_near_the_share_of_right_answers_to_many_photos(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyproj: the share of new photos whose answer is within 25 m."""
    monkeypatch.chdir(tmp_path)  # logs/ is created there
    monkeypatch.setattr(small, "NUM_PLACES", NUM_PLACES)
    monkeypatch.setattr(GeoLocalizationNet, "forward", small.knowing_forward())
    data, index = tmp_path / "data", tmp_path / "index"
    for variant in range(3):
        small.write_town(data / "train", small.TRAINING, variant)
        small.write_town(data / "val" / "database", small.VALIDATION, variant)
    for variant in VARIANTS:
        small.write_town(data / "val" / "queries" / str(variant), small.VALIDATION, variant)
    small.write_town(data / "test" / "database", small.TEST, 0)
    small.write_town(data / "test" / "queries_v1", small.TEST, 1)
    assert run(capsys, "train", *small.FLAGS, "--dataset_folder", data)[0] == 0
    (model,) = tmp_path.glob("logs/*/*/best_model.safetensors")
    words = "--model", model, "--to", index, "--num_workers", 0, "--device", "cpu", "--no_calibrate"
    assert run(capsys, "index", "build", data / "train", *words)[0] == 0
    with open_index(index, write=True) as opened:
        calibrate(opened, num_altered=0, device="cpu")

    new = []
    for variant in VARIANTS:
        new += small.write_town(tmp_path / "new" / str(variant), small.TRAINING, variant)
    answers = Localizer(index, min_confidence=0, device="cpu").locate_many(new)
    expected = np.array([[float(field) for field in path.name.split("@")[5:7]] for path in new])
    found = np.array([[answer.latitude, answer.longitude] for answer in answers], np.float64)
    *_, distances_m = Geod(ellps="WGS84").inv(expected[:, 1], expected[:, 0], found[:, 1], found[:, 0])
    promised = np.array([answer.confidence for answer in answers])
    assert promised.mean() == pytest.approx((distances_m <= 25).mean(), abs=0.1)
