"""How many new photos resemble training photos: the share and the mixed examples against plain formulas."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.errors import ConfigError
from cosplace.index.photo_index import open_index
from cosplace.localization import calibration
from cosplace.localization.calibration import calibrate
from cosplace.localization.confidence import Examples
from cosplace.localization.queries import Queries, photos_of_folder
from cosplace.localization.resemblance import mix_examples, share_like_training
from cosplace.localization.signals import SIGNALS
from cosplace.photos.metadata import PhotoMetadata, photo_key
from cosplace.progress import no_progress
from tests.localization.test_seen_photos import DRAWN, photos_of, promised_and_kept, trained_index, validation
from tests.places import make_world

F = len(SIGNALS)


def gaussians(mean: float, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (count, F))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_share_of_a_mixture_is_found(share: float) -> None:
    num_like = round(2000 * share)
    new = np.concatenate([gaussians(0.5, num_like, 3), gaussians(-0.5, 2000 - num_like, 4)])
    found = share_like_training(gaussians(0.5, 3000, 1), gaussians(-0.5, 1000, 2), new)
    assert found == pytest.approx(share, abs=0.04)
    assert share_like_training(gaussians(0.5, 3000, 1), gaussians(-0.5, 1000, 2), new) == found


def test_the_share_has_the_greatest_likelihood() -> None:
    """Scipy maximizes the likelihood of a mixture of two densities, which are known here."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    new = np.concatenate([gaussians(0.4, 300, 5), gaussians(-0.4, 700, 6)])
    first, second = norm.pdf(new, 0.4).prod(axis=1), norm.pdf(new, -0.4).prod(axis=1)
    best = minimize_scalar(lambda p: -np.log(p * first + (1 - p) * second).sum(), bounds=(0, 1), method="bounded").x
    found = share_like_training(gaussians(0.4, 20_000, 7), gaussians(-0.4, 20_000, 8), new)
    assert found == pytest.approx(best, abs=0.01)


def test_constant_and_far_signals_are_harmless() -> None:
    seen, corrected, new = gaussians(1, 200, 1), gaussians(-1, 200, 2), gaussians(1, 200, 3)
    for rows in (seen, corrected, new):
        rows[:, 5] = np.random.default_rng(4).normal(0, 1e-12, 200)  # rounding of photos at one point
    new[0] = 1e12
    assert share_like_training(seen, corrected, new) > 0.95


def examples(count: int, num_outside: int, first_error_m: float) -> Examples:
    """Each example can be recognized by its error."""
    errors_m = first_error_m + np.arange(count, dtype=float)
    return Examples(
        signals=np.repeat(errors_m[:, None], F, axis=1), errors_m=errors_m, correct=errors_m % 2 == 0,
        out_of_index=np.arange(count) >= count - num_outside, folds=np.arange(count) % 5,
        areas=np.arange(count), measured=np.ones(count, bool),
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_examples_are_mixed_with_the_share(share: float) -> None:
    seen, corrected = examples(100, 0, 0), examples(340, 40, 1000)
    mixed = mix_examples(seen, corrected, share, np.random.default_rng(0))
    is_seen = mixed.errors_m < 1000
    assert is_seen.sum() == round(share * 400) and len(mixed.errors_m) == 440
    assert sorted(mixed.errors_m[mixed.out_of_index]) == list(np.arange(1300.0, 1340.0))
    counts = np.unique(mixed.errors_m[~mixed.out_of_index & ~is_seen], return_counts=True)[1]
    assert not len(counts) or counts.max() - counts.min() <= 1  # repeated alike
    assert np.array_equal(mixed.folds, (mixed.errors_m % 1000).astype(int) % 5)  # rows stay together
    assert np.array_equal(mixed.correct, mixed.errors_m % 2 == 0)


def queries_without_positions(rows: np.ndarray) -> Queries:
    unknown = np.full(len(rows), np.nan)
    return Queries(
        descriptors=rows, rows=np.full(len(rows), -1, np.int64), latitudes=unknown, longitudes=unknown, times=unknown
    )


class Described:
    """Stands for the model of the index, whose photos are described already."""

    name, dimension = "none", 0


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [False, True])
def test_new_photos_without_positions_adjust_the_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_new: bool
) -> None:
    """New photos that are as easy as training photos: the correction is undone; as hard as the validation: kept."""
    world = make_world(300)
    index = trained_index(tmp_path, world, matches=validation())
    rows, *_ = photos_of(world, 77, captures=1, is_new=is_new)

    def altered(_index, _encoder, columns, chosen, *_args):
        return calibration.queries_of_index(columns, chosen[:0], rows[:0])

    monkeypatch.setattr(calibration, "altered_queries", altered)
    monkeypatch.setattr(calibration, "photos_of_folder", lambda *_: queries_without_positions(rows))
    with open_index(index, write=True) as opened:
        about = calibrate(opened, encoder=Described(), unlabeled=tmp_path, num_altered=0).about  # type: ignore[arg-type]
    assert about["correction"] == "validation" and about["num_unlabeled"] == 300
    share = about["share_like_training"]
    assert share < 0.1 if is_new else share > 0.9
    monkeypatch.setattr("tests.localization.test_seen_photos.DRAWN", DRAWN if is_new else (0.0, 1e-9))
    promised, kept, _ = promised_and_kept(index, world)
    assert promised == pytest.approx(kept, abs=0.1 if is_new else 0.05)


def test_too_few_photos_without_positions_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    index = trained_index(tmp_path / "made", make_world(300), matches=validation())
    (tmp_path / "new").mkdir()
    for number in range(12):
        (tmp_path / "new" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    with (
        open_index(index, write=True) as opened,
        pytest.raises(ConfigError, match="has 12 photos, but --unlabeled needs"),
    ):
        calibrate(opened, encoder=Described(), unlabeled=tmp_path / "new", num_altered=0)  # type: ignore[arg-type]


def test_photos_without_positions_are_refused_where_they_do_not_help(tmp_path: Path) -> None:
    world = make_world(60)
    index = trained_index(tmp_path / "none", world)
    with open_index(index, write=True) as opened:
        with pytest.raises(ConfigError, match="whose card has 50 validation queries"):
            calibrate(opened, unlabeled=tmp_path, num_altered=0)
        with pytest.raises(ConfigError, match="not both"):
            calibrate(opened, unlabeled=tmp_path, queries=tmp_path)
    index = trained_index(tmp_path / "left", world, num_unseen=250, matches=validation())
    with open_index(index, write=True) as opened, pytest.raises(ConfigError, match="are left out, so"):
        calibrate(opened, unlabeled=tmp_path, num_altered=0)


def test_a_folder_needs_enough_photos_that_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Photos without positions are used; one that is damaged is named and skipped."""

    class OfColor:
        dimension = 3

        def encode(self, photo) -> np.ndarray:
            return np.asarray(photo, np.float32).reshape(-1, 3)[:1]

    indexed: list[str] = []

    class Index:
        def have_content(self, keys: list[str]) -> np.ndarray:
            return np.array([key in indexed for key in keys])

    def read() -> Queries:
        options = 2000, np.random.default_rng(0), no_progress
        return photos_of_folder(Index(), tmp_path, OfColor(), *options)  # type: ignore[arg-type]

    for number in range(100):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "050.png").write_bytes(b"no photo")
    with pytest.raises(ConfigError, match="has 99 readable photos that are new, but --unlabeled needs 100"):
        read()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "200.png")
    found = read()
    assert sorted(found.descriptors[:, 0]) == [*range(50), *range(51, 100), 200]
    # Photos of the index and copies say nothing about new photos.
    shutil.copyfile(tmp_path / "003.png", tmp_path / "copy.png")
    indexed.append(photo_key((tmp_path / "200.png").read_bytes(), PhotoMetadata()))
    with pytest.raises(ConfigError, match="has 99 readable photos that are new"):
        read()
    assert "2 photos are left out: they are in the index, or copies" in caplog.text
    assert "050.png" in caplog.text and not found.shows_place.any() and set(found.rows) == {-1}
