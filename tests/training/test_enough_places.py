"""One rule says whether there are enough places to train on: `validate`, `split`, `train` and `finetune` agree."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.training.enough_places import FEWEST_PLACES, count_places, too_few_places, unusable_headings
from cosplace.training.finetuning_data import open_finetuning_photos
from cosplace.training.places import Viewpoints, form_places
from tests.synthetic_dataset import write_dataset
from tests.table_samples import write_table_of_places

NUM_TRAINED = re.compile(r"([0-9]+) places? with at least two photos")


@pytest.mark.parametrize("num_places", [120, 400])  # enough before the split only; enough after it, too
def test_commands_agree_before_and_after_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_places: int
) -> None:
    city = write_table_of_places(tmp_path / "city", num_places)

    def run(*words: str):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    before = run("validate", str(city), "--quick", "--device", "cpu")["recommendation"]
    planned = run("split", str(city), "--dry_run")
    split = run("split", str(city))
    after = run("validate", str(city), "--quick", "--device", "cpu")["recommendation"]
    photos = open_finetuning_photos(city)
    finetuned = len(form_places(Viewpoints(points=photos.points, headings=photos.headings)))
    counts = [before["num_places"], planned["num_training_places"], split["num_training_places"], after["num_places"]]
    assert counts == [finetuned] * 4 and finetuned < num_places
    is_enough = finetuned >= FEWEST_PLACES
    assert is_enough is (num_places == 400)
    assert before["trains"] is after["trains"] is is_enough
    assert (split["advice"] is None) is is_enough
    assert main(["split", str(city)]) == 0
    found = NUM_TRAINED.search(capsys.readouterr().out)
    assert found and int(found[1]) == finetuned


def test_validate_tells_what_a_split_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = write_table_of_places(tmp_path / "city", 120)
    assert main(["validate", str(city), "--quick", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "After a split, about" in out and "of 480 photos are left for training" in out
    assert f"cosplace index build {city} " in out and "cosplace split" not in out.partition("recommendation:")[2]


def test_photos_that_cannot_be_split_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = write_table_of_places(tmp_path / "city", 1)
    assert main(["validate", str(city), "--quick", "--device", "cpu"]) == 0
    assert "they cannot be split" in capsys.readouterr().out


def test_training_on_few_places_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "city", num_places=24, images_per_place=4, side=32)
    monkeypatch.chdir(tmp_path)
    words = ["train", "--dataset_folder", "city", "--imagenet_weights", "none", "--backbone", "ResNet18_Small", "--M",
             "20", "--alpha", "180", "--N", "1", "--L", "2", "--groups_num", "1", "--min_images_per_class", "2",
             "--batch_size", "4", "--image_size", "32", "--iterations_per_epoch", "2", "--epochs_num", "1",
             "--device", "cpu", "--num_workers", "0", "--fc_output_dim", "16", "--dry_run"]  # fmt: skip
    assert main(words) == 0
    err = capsys.readouterr().err
    assert f"are too few: training needs {FEWEST_PLACES} or more" in err and "not better than a released one" in err
    places = ["groups", "city/train", "--min_images_per_class", "3"]
    assert main([*places, "--M", "20", "--alpha", "180", "--N", "1", "--L", "2", "--groups_num", "1"]) == 0
    assert "places with at least two photos are too few" in capsys.readouterr().err
    assert main([*places, "--method", "multi_similarity"]) == 0
    assert "places with at least 3 photos are too few" in capsys.readouterr().err


def test_the_sentence() -> None:
    assert too_few_places(FEWEST_PLACES) == ""
    assert too_few_places(1).startswith("1 place with at least two photos is too few")
    assert too_few_places(99).startswith("99 places with at least two photos are too few")


def test_headings_separate_places_only_if_they_are_known() -> None:
    points = np.repeat(np.arange(5.0)[:, None] * [[100.0, 0.0]], 4, axis=0)
    headings = np.tile([0.0, 5.0, 180.0, 185.0], 5)
    assert count_places(points, headings) == 10
    assert count_places(points, None) == count_places(points, np.zeros(20)) == 5
    headings[:3] = np.nan  # 15% unknown
    assert count_places(points, headings) == 5 and "unknown for 3 of 20 photos" in unusable_headings(headings)
    assert count_places(np.zeros((0, 2)), None) == 0
