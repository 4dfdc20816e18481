"""Reductions without a mean, multiplied into the last linear layer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cosplace.cli import main
from cosplace.errors import ConfigError
from cosplace.models.layouts import network_from_release
from cosplace.models.model_files import model_card, model_tensors
from cosplace.models.native import NativeNetwork
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.reduction import (
    ReducedNetwork,
    can_fold,
    first_dimensions,
    fit,
    fold_reduction,
    num_parameters,
    truncation,
)
from cosplace.models.weight_files import read_card, write_weights
from tests.models.networks import assert_refused
from tests.models.released_layouts import random_weights, released


def megaloc() -> NativeNetwork:
    network = network_from_release(random_weights(released("megaloc", dim=64, depth=2, grid=9, small=True)))
    assert network is not None
    return network


def cosplace() -> GeoLocalizationNet:
    return GeoLocalizationNet("ResNet18_Small", 24, generator=torch.Generator().manual_seed(0)).eval()


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 3, 126, 140, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", [megaloc, cosplace])
@pytest.mark.parametrize("method", ["pca_uncentered", "truncation"])
def test_descriptors_are_those_of_a_reduction_afterwards(build, method: str) -> None:
    network = build()
    before, dimension = num_parameters(network), network.fc_output_dim
    sample = np.random.default_rng(0).standard_normal((80, dimension)) @ np.diag(np.linspace(3, 0.1, dimension)) + 1
    reduction = fit([sample], 10, method)
    with torch.inference_mode():
        expected = ReducedNetwork(network, reduction)(images())
        assert can_fold(network, reduction)
        folded = fold_reduction(network, reduction)
        found = folded(images())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        inputs = 256 + 64 * 8 if build is megaloc else 128
        assert before - num_parameters(folded) == (dimension - 10) * (inputs + 1)  # rows and biases
        assert folded.fc_output_dim == 10
        first = functional.normalize(found[:, :4], dim=1)
        torch.testing.assert_close(first_dimensions(folded, 4)(images()), first, atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"from 1 to 4, got 5"):
        first_dimensions(folded, 5)


def test_what_cannot_be_folded() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 24))
    for method in ("pca", "pca_whitening"):  # they subtract a mean, whose weight depends on the length of the input
        assert not can_fold(cosplace(), fit([rows], 4, method))
    salad = network_from_release(random_weights(released("salad", dim=64, depth=1, grid=9, small=True)))
    assert salad is not None
    assert not can_fold(salad, truncation(salad.fc_output_dim, 4))
    assert not can_fold(GeoLocalizationNet("ResNet18_Small", 24, aggregation="conv_ap"), truncation(24, 4))


def test_uncentered_directions_have_the_largest_mean_squares() -> None:
    generator = np.random.default_rng(3)
    sample = generator.standard_normal((500, 6)) * [1, 2, 3, 0.5, 0.2, 0.1] + [9, 0, 0, 0, 0, 0]
    reduction = fit([sample[:200], sample[200:]], 3, "pca_uncentered")
    values, directions = np.linalg.eigh(sample.T @ sample / len(sample))
    for row, direction in zip(reduction.weight.numpy(), directions.T[::-1], strict=False):
        assert abs(row @ direction) == pytest.approx(1, abs=1e-5)
    assert not reduction.bias.any()
    assert values[-1] > 80  # the mean


def write_megaloc(folder: Path) -> Path:
    path = folder / "megaloc.safetensors"
    network = megaloc()
    tensors = model_tensors(network)
    write_weights(path, tensors, model_card(network, tensors))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((140, 126)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_reduce_folds_by_itself_and_says_so(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture) -> None:
    model, small = write_megaloc(tmp_path), tmp_path / "small.safetensors"
    assert main(["reduce", str(model), "--on", str(photos), "--to", str(small), "--dims", "8"]) == 0
    said = capsys.readouterr().out
    assert "folded_reduction   pca_uncentered, 96 to 8 dimensions, in the last linear layer: 0." in said
    opened = open_model(small)
    assert isinstance(opened, NativeNetwork) and opened.fc_output_dim == 8
    assert "reduction" not in read_card(small)
    assert small.stat().st_size < model.stat().st_size
    with torch.inference_mode():
        whole = open_model(small)(images())
        first = open_model(small, reduce_to=3)(images())
    torch.testing.assert_close(first, functional.normalize(whole[:, :3], dim=1), atol=1e-6, rtol=0)
    assert_refused(ConfigError, "from 1 to 8, got 9", small, reduce_to=9)
    again = tmp_path / "again.safetensors"
    assert main(["reduce", str(small), "--on", str(photos), "--to", str(again), "--dims", "4", "--method", "pca"]) == 0
    assert isinstance(open_model(again), ReducedNetwork) and "folded_reduction" not in read_card(again)


def test_reduce_keeps_its_default_for_cosplace(tmp_path: Path, photos: Path) -> None:
    path, small = tmp_path / "model.pth", tmp_path / "small.safetensors"
    torch.save(cosplace().state_dict(), path)
    assert main(["reduce", str(path), "--on", str(photos), "--to", str(small), "--dims", "8"]) == 0
    assert read_card(small)["reduction"] == "pca_whitening"
    command = ["reduce", str(path), "--on", str(photos), "--to", str(small), "--dims", "8", "--force"]
    assert main([*command, "--method", "pca_uncentered"]) == 0
    opened = open_model(small)
    assert isinstance(opened, GeoLocalizationNet) and opened.fc_output_dim == 8
    assert math.isclose(num_parameters(cosplace()) - num_parameters(opened), 16 * 129)
