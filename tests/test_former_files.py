"""A run and an index written by an earlier version of this package resume and open.

tests/data/former holds a run that was stopped in the middle of its second epoch, an index, and what that version
computed from them.  The weights were rounded to few values, so that the files are small.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli import main
from cosplace.engines.encoder import load_model
from cosplace.index.building import add_photos, find_photos
from cosplace.index.photo_index import open_index
from cosplace.localization.localizer import Localizer
from cosplace.training.metrics import read_metrics

DATA = Path(__file__).parent / "data" / "former"
PLACES = {"train": range(0, 16), "val": range(100, 110), "test": range(200, 230)}


def write_photo(folder: Path, place: int, variant: int) -> None:
    """A PNG of 64 x 64 pixels: stripes of a place, 20 m apart, with noise of the variant; odd variants face south."""
    stripes = np.random.default_rng([1, place]).integers(30, 226, (8, 3))
    noise = np.random.default_rng([2, place, variant]).normal(0, 30, (64, 64, 3))
    pixels = np.repeat(np.roll(stripes, variant % 3, axis=0), 8, axis=0)[None] + noise
    position, heading = f"@{550_000 + 20 * place}.5@{4_180_000 + variant}.25@10@S@@@", 180 * (variant % 2)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{position}p{place}@@{heading}@@@@202001@@.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored run and index, and the photos that they were made of."""
    folder = tmp_path_factory.mktemp("former")
    for split, places in PLACES.items():
        for place in places:
            for variant in range(10 if split == "train" else 4):
                kind = "" if split == "train" else "queries" if variant == 3 else "database"
                write_photo(folder / "photos" / split / kind, place, variant)
    for name in ("run", "index"):
        with tarfile.open(DATA / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((DATA / "expected.json").read_text())


@pytest.mark.slow
def test_a_former_run_resumes_with_the_same_losses_and_recalls(
    former: Path, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(former / "run", tmp_path / "run")
    monkeypatch.chdir(former)  # its settings name the photos by a relative path
    assert main(["train", "--resume_train", str(run)]) == 0
    rows = read_metrics(run)
    losses = [row["loss"] for row in rows if row["kind"] == "loss"]
    # Vector instructions and numbers of threads change the last bits, and training amplifies them.
    assert losses[:12] == pytest.approx(expected["losses"][:12], rel=1e-3)
    assert losses == pytest.approx(expected["losses"], rel=0.1)
    results = json.loads((run / "results.json").read_text())
    assert results["recalls"] == pytest.approx(expected["test"], abs=200 / 30 + 1e-6)  # two of 30 queries
    assert [sorted(row["recalls"]) for row in rows if row["kind"] == "epoch"] == 3 * [["1", "2"]]
    assert (run / "report.html").is_file() and (run / "best_model.safetensors").is_file()


def test_a_former_index_opens_and_answers_as_before(former: Path, expected: dict) -> None:
    encoder = load_model(former / "run" / "best_model.pth", image_size=32, device="cpu")
    assert encoder.checksum == expected["checksum"]
    with open_index(str(former / "index")) as index:
        assert len(index) == expected["index_count"]
    localizer = Localizer(str(former / "index"), encoder=encoder, min_confidence=0.0)
    for answer in expected["answers"]:
        location = localizer.locate(former / "photos" / "test" / "queries" / answer["query"])
        assert [Path(match.path).name for match in location.neighbours[:5]] == answer["matches"]
        assert (location.latitude, location.longitude) == pytest.approx(
            (answer["latitude"], answer["longitude"]), abs=1e-6
        )
        assert location.confidence == pytest.approx(answer["confidence"], abs=1e-4)
        assert location.radius_m == pytest.approx(answer["radius_m"], abs=1e-3)


def test_a_former_index_grows(former: Path, tmp_path: Path) -> None:
    address = shutil.copytree(former / "index", tmp_path / "index")
    encoder = load_model(former / "run" / "best_model.pth", image_size=32, device="cpu")
    with open_index(str(address), write=True) as index:
        before = len(index)
        add_photos(index, encoder, find_photos(former / "photos" / "test" / "queries"))
        assert len(index) == before + 30
