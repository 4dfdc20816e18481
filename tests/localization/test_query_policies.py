"""An index with any query policy finds what an evaluation with this policy finds, in each place that locates photos."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.cli import main
from cosplace.engines.encoder import Encoder, load_model
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization.calibration import calibrate
from cosplace.localization.leave_one_out import find_matches
from cosplace.localization.localizer import NUM_FUSED, Localizer, open_index_encoder
from cosplace.localization.queries import Queries
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.views import PhotoViews
from cosplace.photos.crops import MAJORITY, POLICIES, WITH_SIZE
from cosplace.progress import no_progress
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate
from tests.models.test_views import Thirds
from tests.server.server_samples import client_of
from tests.synthetic_dataset import write_dataset

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all

SIZE, K = 44, 10
DATABASE_SHAPE = (54, 72)  # height, width
QUERY_SHAPES = ((60, 90), (90, 60), (54, 72), (64, 64), (50, 100))
SEVERAL = ("nearest_crop", "maj_voting")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `city` and the weights `model.pth`: database photos of one size, queries of others."""
    folder = tmp_path_factory.mktemp("policies")
    write_dataset(folder / "city", num_places=2, images_per_place=1, side=96)
    test = folder / "city" / "test"
    for part, shapes in (("database", (DATABASE_SHAPE,)), ("queries_v1", QUERY_SHAPES)):
        for number, path in enumerate(sorted((test / part).iterdir())):
            height, width = shapes[number % len(shapes)]
            with Image.open(path) as photo:
                resized = photo.resize((width, height))
            path.unlink()
            resized.save(path.with_suffix(".png"))
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), folder / "model.pth")
    return folder


def build(city: Path, policy: str, *words: str) -> Path:
    """The index of a policy, built when it is first needed."""
    index = city / "-".join([policy, *words])
    if not index.exists():
        size = ["--query_size", str(SIZE)] if policy in WITH_SIZE else []
        photos = str(city / "city" / "test" / "database")
        command = ["index", "build", photos, "--model", str(city / "model.pth"), "--to", str(index), "--device", "cpu"]
        assert main([*command, "--query_policy", policy, *size, *words]) == 0
    return index


def evaluation_of(city: Path, policy: str) -> tuple[Evaluation, list[list[str]]]:
    """The evaluation, and the paths of its predictions."""
    dataset = open_retrieval_dataset(city / "city" / "test")
    model = load_model(city / "model.pth", device="cpu")
    size = SIZE if policy in WITH_SIZE else None
    found = evaluate(model.network, dataset, recall_values=(1, K), query_policy=policy, query_size=size)
    return found, [[str(dataset.database.path(row)) for row in line] for line in found.predictions.tolist()]


def query_paths(city: Path) -> list[Path]:
    return sorted((city / "city" / "test" / "queries_v1").iterdir())


@pytest.mark.parametrize("policy", POLICIES)
def test_an_index_finds_what_an_evaluation_finds(city: Path, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation, expected = evaluation_of(city, policy)
    index, photos = build(city, policy), query_paths(city)
    answers = Localizer(index, k=K, device="cpu").locate_many(photos)
    assert [[match.path for match in answer.neighbours] for answer in answers] == expected
    similarities = [[match.similarity for match in answer.neighbours] for answer in answers]
    np.testing.assert_allclose(similarities, 1 - evaluation.squared_distances / 2, atol=1e-5)
    capsys.readouterr()
    words = ["--index", str(index), "--json", "--neighbours", str(K), "--device", "cpu"]
    assert main(["locate", *map(str, photos), *words]) == 0
    assert [[one["path"] for one in row["neighbours"]] for row in json.loads(capsys.readouterr().out)] == expected


def test_the_policies_have_different_results(city: Path) -> None:
    policies = [policy for policy in POLICIES if policy != "single_query"]  # which is short_side
    different = {evaluation_of(city, policy)[0].squared_distances.tobytes() for policy in policies}
    assert len(different) == len(policies)


@pytest.mark.parametrize("policy", SEVERAL)
def test_a_large_index_and_filters(city: Path, policy: str) -> None:
    _, expected = evaluation_of(city, policy)
    large = build(city, policy, "--exact_rows", "5")
    exact = Localizer(large, k=K, exact=True, device="cpu").locate_many(query_paths(city))
    assert [[match.path for match in answer.neighbours] for answer in exact] == expected
    approximate = Localizer(large, k=K, device="cpu").locate_many(query_paths(city))
    found = [{match.path for match in answer.neighbours} for answer in approximate]
    assert all(len(answer.neighbours) == K for answer in approximate)
    assert np.mean([len(one.intersection(row)) / K for one, row in zip(found, expected, strict=True)]) > 0.8
    where = SearchFilter(ids=(3, 7, 8))
    for index in (large, build(city, policy)):
        for answer in Localizer(index, k=K, device="cpu").locate_many(query_paths(city), where=where):
            assert sorted(match.id for match in answer.neighbours) == [3, 7, 8]


@pytest.mark.parametrize("policy", ["central_crop", *SEVERAL])
def test_the_server_answers_as_the_localizer(city: Path, policy: str) -> None:
    localizer = Localizer(build(city, policy), k=K, device="cpu")
    photos = query_paths(city)
    with client_of(localizer) as client:
        files = [("files", (path.name, path.read_bytes())) for path in photos]
        results = client.post("/locate", files=files).json()["results"]
    expected = localizer.locate_many(photos)
    assert [[one["id"] for one in row["neighbours"]] for row in results] == [
        [match.id for match in answer.neighbours] for answer in expected
    ]


@pytest.mark.parametrize("policy", ["central_crop", *SEVERAL])
def test_the_policy_is_kept_when_photos_are_added(city: Path, tmp_path: Path, policy: str) -> None:
    address = build(city, policy, "--source", "added")
    with open_index(address) as index:
        views, count = index.spec.views, len(index)
    shape = DATABASE_SHAPE if policy == "central_crop" else None
    assert views == PhotoViews(query_policy=policy, query_size=None if shape else SIZE, query_shape=shape)
    first = sorted((city / "city" / "test" / "database").iterdir())[0]
    with Image.open(first) as photo:
        mirrored = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (tmp_path / "more").mkdir()
    mirrored.save(tmp_path / "more" / first.name)
    assert main(["index", "add", str(address), str(tmp_path / "more"), "--device", "cpu"]) == 0
    localizer = Localizer(address, k=1, device="cpu")
    assert localizer.encoder.views == views and len(localizer.index) == count + 1
    if policy == "central_crop":  # a photo of this size is its own crop
        assert localizer.locate(tmp_path / "more" / first.name).neighbours[0].similarity == pytest.approx(1, abs=1e-5)


def test_central_crop_needs_photos_of_one_size(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed, model = city / "city" / "test" / "queries_v1", str(city / "model.pth")
    command = ["index", "build", str(mixed), "--part", "all", "--model", model, "--to", str(tmp_path / "index")]
    assert main([*command, "--query_policy", "central_crop"]) == 2
    error = capsys.readouterr().err
    assert (
        "these have different sizes, such as 90 x 60 and 60 x 90 (" in error and "Use another --query_policy" in error
    )
    assert not (tmp_path / "index").exists()
    address = build(city, "central_crop")
    assert main(["index", "add", str(address), str(mixed), "--part", "all", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "such as 72 x 54 and 90 x 60 (" in error and "Use photos of that size, or build an index" in error
    localizer, photo = Localizer(address, device="cpu"), query_paths(city)[0]
    with client_of(localizer, token="long-secret") as client:
        fields, headers = {"latitude": "37.7", "longitude": "-122.4"}, {"Authorization": "Bearer long-secret"}
        files = {"files": (photo.name, photo.read_bytes())}
        response = client.post("/photos", files=files, data=fields, headers=headers)
    assert response.status_code == 422
    assert "has 90 x 60 pixels, but all photos of this index must have 72 x 54" in response.json()["detail"]


@pytest.mark.parametrize("policy", SEVERAL)
def test_votes_and_crops_count_in_calibration_as_in_answers(city: Path, policy: str) -> None:
    with open_index(build(city, policy)) as index:
        encoder = open_index_encoder(index, "cpu")
        descriptors, unknown = encoder.encode(query_paths(city)), np.full(len(query_paths(city)), np.nan)
        rows = np.full(len(descriptors), -1)
        queries = Queries(descriptors=descriptors, rows=rows, latitudes=unknown, longitudes=unknown, times=unknown)
        with patch("cosplace.localization.leave_one_out.BLOCK_ROWS", 7):
            found, _ = find_matches(index, index.columns(), queries, no_progress, 0, None)
        expected = index.search(descriptors, NUM_FUSED)
        count = len(index)
        assert (expected.voted is not None) == (policy == MAJORITY)
        np.testing.assert_allclose(found.similarities, expected.scores[:, :count], atol=1e-5)
        np.testing.assert_array_equal(found.latitudes, expected.latitudes[:, :count])
        assert (expected.voted is None) == np.array_equal(expected.scores, expected.similarities)


@pytest.mark.parametrize("policy", SEVERAL)
def test_calibration_encodes_photos_of_the_index_as_queries(city: Path, tmp_path: Path, policy: str) -> None:
    views, described = PhotoViews(query_policy=policy, query_size=SIZE), []
    model = Encoder(Thirds(), name="thirds", device="cpu", views=views)
    encode = model.encode
    paths = sorted((city / "city" / "test" / "database").iterdir())
    spec = ModelSpec(model=model.name, checksum=model.checksum, dimension=model.dimension, views=views)
    places = [float(path.name.split("@")[1]) - 550_000 for path in paths]
    photos = [
        NewPhoto(path=str(path), key=path.name, latitude=37.7, longitude=-122.4 + east / 88_000, time=1e9 + number)
        for number, (path, east) in enumerate(zip(paths, places, strict=True))
    ]

    def encode_and_note(*words: Any, **more: Any) -> np.ndarray:
        described.append(encode(*words, **more))
        return described[-1]

    with (
        create_index(tmp_path / "index", spec) as index,
        patch("cosplace.localization.calibration.MIN_PHOTOS", 10),
        patch.object(model, "encode", encode_and_note),
    ):
        index.add(photos, encode(paths, database=True))
        calibration = calibrate(index, encoder=model, num_altered=8)
    about = calibration.about
    assert (about["num_queries"], about["num_described_anew"]) == (len(paths), 8)
    assert sum(map(len, described)) == len(paths) + 8 + about["num_non_places"]
    assert {one.shape[1:] for one in described} == {(5, model.dimension)}
    location = Localizer(tmp_path / "index", encoder=model).locate(paths[0])
    assert location.calibrated and 0 <= location.confidence <= 1
