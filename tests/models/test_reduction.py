"""Reductions of descriptors: values, order of dimensions, and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.inference import optimize_for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import (
    METHODS,
    WHITENING_FLOOR,
    Moments,
    ReducedNetwork,
    Reduction,
    first_dimensions,
    fit,
    principal_components,
    truncation,
    unreduced,
    whitening,
)

VARIANCES = np.array([9.0, 4.0, 1.0, 0.25, 1e-8])


def rows(count: int = 4000, seed: int = 0) -> np.ndarray:
    """(count, 5) float32 with VARIANCES along known, rotated directions, far from the origin."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 5)) * np.sqrt(VARIANCES) @ rotation().T + 20).astype(np.float32)


def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(9).standard_normal((5, 5)))[0]


def before_scaling(reduction: Reduction, descriptors: np.ndarray) -> np.ndarray:
    return descriptors.astype(np.float64) @ reduction.weight.double().numpy().T + reduction.bias.double().numpy()


# --- fitting ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 2**32 - 1)
)
def test_moments_of_pieces_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    whole = np.random.default_rng(seed).standard_normal((sum(sizes), 4)) * [1, 10, 0.1, 3] + [0, 100, -5, 1e4]
    moments = Moments()
    for piece in np.split(whole, np.cumsum(sizes)[:-1]):
        moments.add(piece)
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments.covariance, np.cov(whole.T), rtol=1e-6, atol=1e-8)


def test_pca_finds_the_directions_in_order_of_variance() -> None:
    reduction = fit([rows()], 4, "pca")
    cosines = np.abs((reduction.weight.numpy() * rotation()[:, :4].T).sum(1))
    assert (cosines > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(reduction.weight.numpy(), axis=1), 1, rtol=1e-5)
    projected = before_scaling(reduction, rows())
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(projected.var(0), VARIANCES[:4], rtol=0.1)


def test_whitening_gives_all_directions_the_same_variance_except_noise() -> None:
    projected = before_scaling(fit([rows()], 5, "pca_whitening"), rows())
    expected = VARIANCES / (VARIANCES + WHITENING_FLOOR * VARIANCES[0])
    np.testing.assert_allclose(projected.var(0)[:4], expected[:4], rtol=0.05)
    assert projected.var(0)[4] < 1e-3  # it would be 1 without the floor
    off_diagonal = np.corrcoef(projected[:, :4].T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_pieces_and_repetition_do_not_change_the_fit(method: str) -> None:
    whole = fit([rows()], 3, method)
    pieces = fit(np.array_split(rows(), 7), 3, method)
    torch.testing.assert_close(pieces.weight, whole.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces.bias, whole.bias, rtol=1e-4, atol=1e-4)
    again = fit([rows()], 3, method)
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.bias, whole.bias)


def test_components_and_whitening_of_a_known_covariance() -> None:
    covariance = torch.from_numpy(rotation() @ np.diag(VARIANCES) @ rotation().T)
    variances, directions = principal_components(covariance, 3)
    torch.testing.assert_close(variances, torch.from_numpy(VARIANCES[:3]))
    torch.testing.assert_close(directions.abs(), torch.from_numpy(np.abs(rotation()[:, :3].T)))
    scales = whitening(covariance, 3, 0.1).norm(dim=1)
    torch.testing.assert_close(scales, torch.from_numpy(1 / np.sqrt(VARIANCES[:3] + 0.9)))


def test_signs_are_deterministic() -> None:
    weight = fit([rows()], 4, "pca").weight.numpy()
    assert (weight[np.arange(4), np.abs(weight).argmax(1)] > 0).all()
    turned = fit([-rows()], 4, "pca").weight.numpy()
    np.testing.assert_allclose(turned, weight, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_dimensions_are_the_smaller_reduction(method: str) -> None:
    large, small = fit([rows()], 4, method), fit([rows()], 2, method)
    torch.testing.assert_close(large.first(2).weight, small.weight)
    torch.testing.assert_close(large.first(2).bias, small.bias)
    with pytest.raises(ConfigError, match="from 1 to 4, got 5"):
        large.first(5)


def test_descriptors_are_unit_vectors_again() -> None:
    descriptors = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))
    found = truncation(5, 2)(descriptors)
    expected = descriptors[:, :2] / descriptors[:, :2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(fit([rows()], 3)(descriptors).norm(dim=1), torch.ones(6))


def test_pca_keeps_more_than_truncation() -> None:
    """Nearest neighbors by the strongest directions are correct more often than by the first dimensions."""
    data = rows(400)
    data = data - data.mean(0)
    true = np.argsort(((data[:, None] - data) ** 2).sum(-1), axis=1)[:, 1]

    def right(reduced: np.ndarray) -> float:
        found = np.argsort(((reduced[:, None] - reduced) ** 2).sum(-1), axis=1)[:, 1]
        return float((found == true).mean())

    assert right(before_scaling(fit([data], 3, "pca"), data)) > 1.5 * right(data[:, :3])


@pytest.mark.parametrize(
    ("pieces", "dims", "method", "message"),
    [
        ([rows(3)], 4, "pca", "3 photos are too few to fit 4 dimensions. Use at least 5"),
        ([rows(4)], 4, "pca_whitening", "4 photos are too few"),
        ([], 4, "pca", "0 photos are too few"),
        ([rows()], 6, "pca", "from 1 to 5, got 6"),
        ([rows()], 0, "pca", "from 1 to 5, got 0"),
        ([rows()], 6, "truncation", "from 1 to 5, got 6"),
        ([np.ones((9, 5))], 2, "pca", "same descriptor"),
        ([rows()], 2, "ica", "Unknown reduction 'ica'. Use pca_whitening, pca, pca_uncentered, truncation"),
    ],
)
def test_impossible_fits_are_refused(pieces: list, dims: int, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(pieces, dims, method)


# --- after a network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    network = GeoLocalizationNet("ResNet18_Small", 5, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # statistics that folding must consider
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.1, 0.1)
    return network


def descriptors_of(network: torch.nn.Module) -> torch.Tensor:
    photos = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return network(photos)


def test_a_reduced_network_is_optimized_too(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3)).eval()
    fast = optimize_for_inference(reduced)
    assert fast is not reduced
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(descriptors_of(fast), descriptors_of(reduced), atol=1e-5, rtol=0)
    torch.testing.assert_close(descriptors_of(reduced), reduced.reduction(descriptors_of(network)))
    assert reduced.fc_output_dim == 3
    assert unreduced(reduced) is network
    assert unreduced(network) is network


def test_first_dimensions(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3)).eval()
    assert first_dimensions(reduced, 3) is reduced
    assert descriptors_of(first_dimensions(reduced, 2)).shape == (3, 2)
    assert first_dimensions(network, 5) is network
    with pytest.raises(ConfigError, match="no reduction, so 2 dimensions must be fitted"):
        first_dimensions(network, 2)
    with pytest.raises(CheckpointError, match="takes 4 dimensions but the network has 5"):
        ReducedNetwork(network, truncation(4, 2))
