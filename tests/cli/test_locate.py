"""cosplace locate on a made dataset: the answers of evaluation, every form of output, every mistake in one line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.cli import main
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization.calibration import calibrate
from cosplace.localization.localizer import Localizer, is_outgrown
from cosplace.localization.photo_changes import changed, non_places
from cosplace.models.encoder import load_model
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate
from tests.streets import place_picture, write_streets

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all

SIDE = 48


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `city`, the weights `model.pth` and the calibrated index `index`."""
    folder = tmp_path_factory.mktemp("locate")
    write_streets(folder / "city", num_places=2)
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), folder / "model.pth")
    model = load_model(folder / "model.pth", image_size=SIDE, device="cpu")
    images = scan_images(folder / "city" / "test" / "database")
    spec = ModelSpec(model=model.name, checksum=model.checksum, dimension=model.dimension, image_size=SIDE)
    paths = [images.path(row) for row in range(len(images))]
    east = [float(path.name.split("@")[1]) for path in paths]
    photos = [
        NewPhoto(path=str(path), key=path.name, latitude=37.7, longitude=-122.4 + (x - 550_000) / 88_000, time=1e9 + n)
        for n, (path, x) in enumerate(zip(paths, east, strict=True))
    ]
    with create_index(folder / "index", spec) as index:
        index.add(photos, model.encode(paths))
        calibrate(index, encoder=model, num_changed=8)
    with create_index(folder / "bare", spec) as index:
        index.add(photos, model.encode(paths))
    return folder


def queries(city: Path) -> list[Path]:
    images = scan_images(city / "city" / "test" / "queries_v1")
    return [images.path(row) for row in range(len(images))]


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["locate", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_first_neighbour_is_the_first_prediction_of_evaluation(city: Path) -> None:
    model = load_model(city / "model.pth", device="cpu")
    dataset = open_retrieval_dataset(city / "city" / "test")
    evaluation = evaluate(model.network, dataset, image_size=SIDE, recall_values=(1, 2))
    answers = Localizer(city / "index", exact=True, device="cpu").locate_many(
        [dataset.queries.path(row) for row in range(len(dataset.queries))]
    )
    first = [answer.neighbours[0].path for answer in answers]
    assert first == [str(dataset.database.path(int(row))) for row in evaluation.predictions[:, 0]]
    assert len(set(first)) > 3


def test_one_photo_as_text_and_as_an_object(city: Path, capsys) -> None:
    photo = queries(city)[0]
    code, out, _ = run(capsys, photo, "--index", city / "index", "--min_confidence", "0", "--device", "cpu")
    assert code == 0 and re.search(r"37\.7\d+, -12[12]\.\d+ ± \d+ m, confidence \d+%", out)
    assert "https://www.openstreetmap.org/?mlat=37.7" in out and "m away" in out
    code, out, _ = run(
        capsys, photo, "--index", city / "index", "--min_confidence", "0", "--json", "--neighbours", "2", "--exact"
    )
    found = json.loads(out)
    assert code == 0 and found["photo"] == str(photo) and len(found["neighbours"]) == 2
    assert found["neighbours"][0]["similarity"] >= found["neighbours"][1]["similarity"]


def test_a_folder_and_an_unreadable_photo_in_its_place(city: Path, capsys, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no more")
    photos = queries(city)[:9]
    code, out, _ = run(
        capsys, photos[0], broken, *photos[1:], tmp_path / "gone.jpg", "--index", city / "index", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert [entry["photo"] for entry in found] == [
        str(p) for p in (photos[0], broken, *photos[1:], tmp_path / "gone.jpg")
    ]
    assert ["error" in entry for entry in found] == [False, True, *[False] * 8, True]
    code, out, _ = run(capsys, city / "city" / "test" / "queries_v1", "--index", city / "index", "--csv")
    assert code == 0 and len(out.splitlines()) == 1 + len(queries(city))
    code, out, _ = run(capsys, photos[0], "--index", city / "index", "--geojson")
    assert json.loads(out)["type"] == "FeatureCollection"


def test_nothing_readable_ends_with_2_and_still_tells_each(city: Path, capsys, tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path / "a.jpg", tmp_path / "b.jpg", "--index", city / "index", "--json")
    assert code == 2 and [sorted(entry) for entry in json.loads(out)] == [["error", "photo"]] * 2
    assert err.count("\n") == 1 and "None of 2 photos could be read" in err


def test_exif_agrees_or_not(city: Path, capsys, tmp_path: Path) -> None:
    found = Localizer(city / "index", device="cpu", min_confidence=0).locate(queries(city)[0])
    for away, agrees in ((0.0, True), (0.01, False)):
        exif = Image.Exif()
        degrees = found.latitude + away
        exif[0x8825] = {1: "N", 2: (degrees, 0.0, 0.0), 3: "W", 4: (-found.longitude, 0.0, 0.0)}
        path = tmp_path / f"{agrees}.png"
        with Image.open(queries(city)[0]) as picture:
            picture.save(path, exif=exif)
        _, out, _ = run(capsys, path, "--index", city / "index", "--min_confidence", "0", "--json", "--device", "cpu")
        check = json.loads(out)["exif"]
        assert check["agrees"] is agrees and check["distance_m"] == pytest.approx(1.11e5 * away, abs=25)
        _, out, _ = run(capsys, path, "--index", city / "index", "--min_confidence", "0", "--device", "cpu")
        assert (": agrees, " if agrees else ": DISAGREES, ") in out


def test_priors(city: Path, capsys) -> None:
    photo, index = queries(city)[0], city / "index"
    for flags, nothing in (
        (("--near", "37.7,-122.4,100000"), False), (("--near", "-33.8,151.2,500"), True),
        (("--bbox", "-123,37,-121,38"), False), (("--bbox", "170,-10,-170,10"), True),
        (("--after", "2001-09-09", "--before", "2001-09-10"), False), (("--after", "2015"), True),
        (("--before", "2001-09-09T01:46:40"), True),
    ):  # fmt: skip
        code, out, err = run(capsys, photo, "--index", index, "--json", *flags)
        assert (code, err) == (0, ""), flags
        assert (json.loads(out)["reason"] == "no photo of the index passes the filter") is nothing, flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--near", "37.7"], "--near '37.7': give LAT,LON,RADIUS"),
        (["--near", "a,b,c"], "give LAT,LON,RADIUS"),
        (["--near", "99,0,5"], "latitude"),
        (["--bbox", "1,2,3"], "give W,S,E,N"),
        (["--bbox", "1,5,3,2"], "south below north"),
        (["--after", "yesterday"], "--after 'yesterday': give a date"),
        (["--after", "2020", "--before", "2019"], "later than"),
        (["--precision", "0.9999"], "more than this index can promise"),
        (["--precision", "0.9", "--min_confidence", "0.9"], "contradict"),
        (["--neighbours", "0"], "--neighbours 0"),
        (["--fps", "3"], "belongs to --sequence"),
        (["--rerank", "--sequence"], "do not go together"),
        (["--json", "--csv"], "not allowed with"),
    ],
)
def test_mistakes_are_one_line(city: Path, capsys, flags: list[str], message: str) -> None:
    code, out, err = run(capsys, queries(city)[0], "--index", city / "index", *flags)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_mistakes_about_the_index_and_the_photos(city: Path, capsys, tmp_path: Path) -> None:
    photo = queries(city)[0]
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([photo, "--index", city / "bare"], "cosplace index calibrate"),
        ([photo, "--index", tmp_path / "none"], "none"),
        ([tmp_path / "empty", "--index", city / "index"], "empty"),
        ([tmp_path / "a.mp4", "--index", city / "index"], "is a video"),
        ([tmp_path / "none", "--index", city / "index", "--sequence"], "There is no"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and err.count("\n") == 1 and message in err, err
    code, out, _ = run(capsys, photo, "--index", city / "bare", "--uncalibrated", "--json")
    assert code == 0 and json.loads(out)["reason"].startswith(("uncalibrated", "not sure enough"))


def test_another_model_is_refused(city: Path) -> None:
    from cosplace.errors import PhotoIndexError

    torch.manual_seed(1)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), city / "other.pth")
    with pytest.raises(PhotoIndexError, match=r"other\.pth"):
        Localizer(city / "index", encoder=load_model(city / "other.pth", image_size=SIDE, device="cpu"))


def test_a_sequence_of_frames_writes_a_track(city: Path, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, photo in enumerate(queries(city)):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
    (folder / "3.jpg").write_bytes(b"")
    code, out, _ = run(
        capsys, folder, "--index", city / "index", "--sequence", "--fps", "0.2", "--max_speed", "10", "--json",
        "--min_confidence", "0", "--gpx", tmp_path / "way.gpx",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and len(found) == 12 and "error" in found[3]
    assert (tmp_path / "way.gpx").read_text().count("<trkpt") == sum(
        "latitude" in e and e["latitude"] is not None for e in found
    )


def test_photos_in_memory_and_unreadable_ones(city: Path) -> None:
    localizer = Localizer(city / "index", device="cpu", min_confidence=0)
    path = queries(city)[0]
    with Image.open(path) as picture:
        array = np.array(picture.convert("RGB"))
    a, b = localizer.locate(path), localizer.locate(array, name="mine")
    assert b.photo == "mine" and a.neighbours[0].id == b.neighbours[0].id
    answers = list(localizer.answers([array, np.zeros((3,), np.uint8), path]))
    assert [hasattr(answer, "error") for answer in answers] == [False, True, False]


def test_calibration_uses_thumbnails_where_files_are_gone(city: Path, tmp_path: Path) -> None:
    import io

    from cosplace.index.photo_pixels import photo_pixels

    buffer = io.BytesIO()
    Image.fromarray(place_picture(1, 1)).save(buffer, "JPEG")
    with open_index(city / "index") as index:
        spec = index.spec
    with create_index(tmp_path / "index", spec) as index:
        rows = np.eye(2, spec.dimension, dtype=np.float32)
        index.add([NewPhoto(path="/gone/1.jpg", key="1", thumbnail=buffer.getvalue()),
                   NewPhoto(path="/gone/2.jpg", key="2")], rows)  # fmt: skip
        ids = index.columns().ids
        assert photo_pixels(index, int(ids[0]), "/gone/1.jpg").shape == (3, 64, 64)
        assert photo_pixels(index, int(ids[1]), "/gone/2.jpg") is None


def test_changed_photos_keep_their_shape_and_non_places_differ() -> None:
    rng = np.random.default_rng(0)
    photo = torch.from_numpy(place_picture(0, 0)).permute(2, 0, 1)[:, :40]
    other = changed(photo, rng)
    assert other.shape == photo.shape and other.dtype == torch.uint8 and not torch.equal(other, photo)
    assert changed(photo[:, :1, :1], rng).shape == (3, 1, 1)
    frames = non_places(10, rng, side=32)
    assert all(frame.shape == (3, 32, 32) and frame.dtype == torch.uint8 for frame in frames)
    assert frames[0].float().mean() < 20 and not torch.equal(frames[3], frames[8])


# --- a second look ---------------------------------------------------------------------------------------------------


def _textured(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((480, 480), Image.Resampling.BICUBIC)


def test_a_second_look_confirms_what_shares_points_and_leaves_the_rest(city: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from cosplace.localization.answers import Location, Match
    from cosplace.localization.reranking import CONFIRMED, look_closer
    from cosplace.photos.opening import open_image

    paths = []
    for number in range(3):
        _textured(number).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    _textured(1).crop((30, 20, 430, 440)).resize((420, 400)).save(tmp_path / "query.png")
    evidence = tuple(
        Match(id=0, path=path, latitude=45.0 + n, longitude=7.0, heading=None, similarity=0.5, distance_m=1.0)
        for n, path in enumerate(paths)
    )
    doubtful = Location(photo="q", latitude=None, longitude=None, radius_m=None, confidence=0.2, unknown=True,
                        reason="", neighbours=evidence)  # fmt: skip
    with open_index(city / "index") as index:
        found = look_closer(index, doubtful, open_image(tmp_path / "query.png"), min_confidence=0.5)
        assert (found.unknown, found.confidence, found.latitude) == (False, CONFIRMED, pytest.approx(46.0))
        assert "1.png" in found.reason and found.neighbours[1].distance_m == pytest.approx(0, abs=1e-3)
        _textured(8).save(tmp_path / "else.png")
        assert look_closer(index, doubtful, open_image(tmp_path / "else.png"), min_confidence=0.5) == doubtful
        black = torch.zeros(3, 64, 64, dtype=torch.uint8)
        assert look_closer(index, doubtful, black, min_confidence=0.5) == doubtful
        assert look_closer(index, doubtful, open_image(tmp_path / "query.png"), min_confidence=0.99) == doubtful


def test_rerank_without_opencv_says_what_to_install(city: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    code, _, err = run(capsys, queries(city)[0], "--index", city / "index", "--rerank")
    assert code == 2 and "pip install 'cosplace[rerank]'" in err and err.count("\n") == 1


def test_a_calibration_is_outgrown(city: Path, tmp_path: Path) -> None:
    shutil.copytree(city / "index", tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        assert not is_outgrown(index)
        index.remove(index.columns().ids[: len(index) // 2])
        assert is_outgrown(index)
    with open_index(city / "bare") as index:
        assert not is_outgrown(index)
