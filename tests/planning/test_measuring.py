"""`cosplace plan --measure`: what is measured, and that the plan uses it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli import main
from cosplace.config.index import IndexSettings
from cosplace.config.planning import PlanConfig
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec
from cosplace.planning import measuring
from cosplace.planning.plan import make_plan


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MIN_SECONDS", 0.01), ("WRITTEN_BYTES", 1000), ("INDEX_ROWS", 400), ("ASSIGNED_ROWS", 64),
                        ("CENTERS", 64), ("GENERATED_PHOTOS", 2), ("NUM_QUERIES", 4), ("WARM_QUERIES", 1)):  # fmt: skip
        monkeypatch.setattr(measuring, name, value)


@pytest.mark.slow
def test_the_plan_uses_what_was_measured(quick, tmp_path: Path, capsys) -> None:
    for number in range(3):
        Image.new("RGB", (64, 48), (number, 2, 3)).save(tmp_path / f"{number}.jpg")
    words = ["--photos", "1e6", "--dim", "16", "--backbone", "ResNet18_Small", "--image_size", "32", "--gpus", "0"]
    assert main(["plan", *words, "--measure", "--measured_photos", str(tmp_path), "--json"]) == 0
    figures = {one["name"]: one for one in json.loads(capsys.readouterr().out)["figures"]}
    for name in ("decoded_mb_per_s", "cpu_photos_per_s", "write_mb_per_s", "assigned_gflop_per_s", "indexed_mb_per_s",
                 "search_ms", "photo_kb"):  # fmt: skip
        figure = figures[name]
        assert figure["origin"] == "measured" and figure["value"] > 0, name
        assert ("this machine" in figure["detail"]) or name == "scan_gb_per_s", name
    mean = np.mean([path.stat().st_size for path in tmp_path.glob("*.jpg")]) / 1000
    assert figures["photo_kb"]["value"] == pytest.approx(mean)
    assert "3 photos" in figures["decoded_mb_per_s"]["detail"]
    assert "ResNet18_Small, 32 pixels" in figures["cpu_photos_per_s"]["detail"]
    # A speed that was not measured keeps its recorded value.
    assert "this machine" not in figures["probed_share"]["detail"]


def test_a_folder_without_photos(quick, tmp_path: Path, capsys) -> None:
    assert main(["plan", "--photos", "1e6", "--measure", "--measured_photos", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path) in line


def test_synthetic_descriptors_of_a_place_are_similar() -> None:
    rows = measuring.synthetic_descriptors(range(40), 64)
    assert rows.shape == (40, 64) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    similar = rows @ rows.T
    same = np.kron(np.eye(4), np.ones((10, 10))).astype(bool) & ~np.eye(40, dtype=bool)
    assert similar[same].mean() > 0.6 > 0.2 > abs(similar[~same & ~np.eye(40, dtype=bool)].mean())


def test_generated_photos_resemble_street_photos(tmp_path: Path) -> None:
    (path, *_) = measuring._generated_photos(tmp_path)
    assert 20_000 < path.stat().st_size < 120_000


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "dtype"), [(64, "float32"), pytest.param(60, "float16", marks=pytest.mark.long)])
def test_size_of_the_search_index_of_a_real_index(dimension: int, dtype: str, tmp_path: Path) -> None:
    rows = 12_000
    spec = ModelSpec(model="m", checksum="c", dimension=dimension)
    settings = IndexSettings(thumbnail_size=0, exact_rows=1000, stored_dtype=dtype)
    with create_index(tmp_path / "index", spec, settings) as index:
        index.add([measuring._photo(number) for number in range(rows)],
                  measuring.synthetic_descriptors(range(rows), dimension))  # fmt: skip
        index.update_search()
    folder = tmp_path / "index" / "photos.lance" / "_indices"
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / rows
    config = PlanConfig(photos=1e6, dim=dimension, stored_dtype=dtype)
    assert make_plan(config).sheet.figures["code_bytes"].value == pytest.approx(found, rel=0.2)
