"""End to end: render a city, form groups, train, and find the position of a query."""

import json
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.geo import utm_to_latlon
from cosplace.models.network import network_from_state_dict
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.extraction import extract
from cosplace.retrieval.search import nearest

pytest.importorskip("numba", reason="rendering the city needs numba")


@pytest.mark.slow
def test_from_a_synthetic_city_to_the_position_of_a_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["city", "town", "--images=500", "--num_queries=20", "--image_size=64", "--seed=3"]) == 0
    assert (
        main(
            ["groups", "town/train", "--M=20", "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=2", "--json"]
        )
        == 0
    )
    groups = json.loads(capsys.readouterr().out.splitlines()[-1])["groups"]
    assert groups[0]["num_classes"] > 20

    flags = [
        "--dataset_folder=town",
        "--backbone=resnet18small",
        "--fc_output_dim=32",
        "--device=cpu",
        "--num_workers=0",
    ]
    flags += ["--image_size=64", "--infer_batch_size=64"]
    grouping = ["--M=20", "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=2"]
    recipe = ["--epochs_num=1", "--iterations_per_epoch=10", "--batch_size=16", "--lr=1e-3", "--whitened_start"]
    assert main(["train", *flags, *grouping, *recipe]) == 0
    run = next(Path("logs/default").iterdir())
    page = (run / "report.html").read_text()
    assert "R@1" in page
    assert "<img" in page

    # The position of a query is that of its nearest image of the database.
    model = network_from_state_dict(torch.load(run / "best_model.pth", weights_only=True))
    test = open_retrieval_dataset("town/test")
    database, queries = (extract(model, photos, batch_size=64).descriptors for photos in (test.database, test.queries))
    predictions, _ = nearest(queries, database, 1)
    positions = test.database_positions[predictions[:, 0]]
    name = test.database.name(int(predictions[0, 0])).split("@")
    latitude, longitude = utm_to_latlon(positions[:1, 0], positions[:1, 1], int(name[3]), name[4])
    assert latitude[0] == pytest.approx(float(name[5]), abs=1e-5)
    assert longitude[0] == pytest.approx(float(name[6]), abs=1e-5)
