"""Smaller descriptors: what is kept, in which order, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.inference import for_inference
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import (
    METHODS,
    WHITENING_FLOOR,
    Moments,
    ReducedNetwork,
    Reduction,
    first_dimensions,
    fit,
    network_from_weights,
    tensors_to_keep,
    truncation,
    unreduced,
)
from cosplace.models.weight_files import tensors_sha256

VARIANCES = np.array([9.0, 4.0, 1.0, 0.25, 1e-8])


def rows(count: int = 4000, seed: int = 0) -> np.ndarray:
    """(count, 5) float32 with VARIANCES along known, rotated directions, far from the origin."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 5)) * np.sqrt(VARIANCES) @ rotation().T + 20).astype(np.float32)


def rotation() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(9).standard_normal((5, 5)))[0]


def before_scaling(reduction: Reduction, descriptors: np.ndarray) -> np.ndarray:
    return descriptors.astype(np.float64) @ reduction.weight.double().numpy().T + reduction.bias.double().numpy()


def no_base(name: str) -> torch.nn.Module:
    raise AssertionError(f"{name} was asked for")


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


def test_pca_finds_the_directions_in_order() -> None:
    reduction = fit([rows()], 4, "pca")
    cosines = np.abs((reduction.weight.numpy() * rotation()[:, :4].T).sum(1))
    assert (cosines > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(reduction.weight.numpy(), axis=1), 1, rtol=1e-5)
    projected = before_scaling(reduction, rows())
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(projected.var(0), VARIANCES[:4], rtol=0.1)


def test_whitening_makes_all_directions_alike_but_those_of_noise() -> None:
    projected = before_scaling(fit([rows()], 5, "pca_whitening"), rows())
    wanted = VARIANCES / (VARIANCES + WHITENING_FLOOR * VARIANCES[0])
    np.testing.assert_allclose(projected.var(0)[:4], wanted[:4], rtol=0.05)
    assert projected.var(0)[4] < 1e-3  # it would be 1 without the floor
    off_diagonal = np.corrcoef(projected[:, :4].T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_pieces_and_repetition_change_nothing(method: str) -> None:
    whole = fit([rows()], 3, method)
    pieces = fit(np.array_split(rows(), 7), 3, method)
    torch.testing.assert_close(pieces.weight, whole.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces.bias, whole.bias, rtol=1e-4, atol=1e-4)
    again = fit([rows()], 3, method)
    assert torch.equal(again.weight, whole.weight)
    assert torch.equal(again.bias, whole.bias)


def test_signs_are_settled() -> None:
    weight = fit([rows()], 4, "pca").weight.numpy()
    assert (weight[np.arange(4), np.abs(weight).argmax(1)] > 0).all()
    turned = fit([-rows()], 4, "pca").weight.numpy()
    np.testing.assert_allclose(turned, weight, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_dimensions_are_the_smaller_reduction(method: str) -> None:
    large, small = fit([rows()], 4, method), fit([rows()], 2, method)
    torch.testing.assert_close(large.first(2).weight, small.weight)
    torch.testing.assert_close(large.first(2).bias, small.bias)
    with pytest.raises(ConfigError, match="5 dimensions cannot be made of 4: choose from 1 to 4"):
        large.first(5)


def test_descriptors_are_unit_vectors_again() -> None:
    descriptors = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))
    found = truncation(5, 2)(descriptors)
    wanted = descriptors[:, :2] / descriptors[:, :2].norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(fit([rows()], 3)(descriptors).norm(dim=1), torch.ones(6))


def test_pca_keeps_more_than_truncation() -> None:
    """Matches by the two strongest directions are more often true neighbours than by the first two numbers."""
    data = rows(400)
    data = data - data.mean(0)
    true = np.argsort(((data[:, None] - data) ** 2).sum(-1), axis=1)[:, 1]

    def right(reduced: np.ndarray) -> float:
        found = np.argsort(((reduced[:, None] - reduced) ** 2).sum(-1), axis=1)[:, 1]
        return float((found == true).mean())

    assert right(before_scaling(fit([data], 3, "pca"), data)) > 1.5 * right(data[:, :3])


@pytest.mark.parametrize(
    ("pieces", "dims", "method", "said"),
    [
        ([rows(3)], 4, "pca", "3 photos are too few to fit 4 dimensions: give at least 5"),
        ([rows(4)], 4, "pca_whitening", "4 photos are too few"),
        ([], 4, "pca", "0 photos are too few"),
        ([rows()], 6, "pca", "6 dimensions cannot be made of 5"),
        ([rows()], 0, "pca", "0 dimensions cannot be made of 5"),
        ([rows()], 6, "truncation", "6 dimensions cannot be made of 5"),
        ([np.ones((9, 5))], 2, "pca", "same descriptor"),
        ([rows()], 2, "ica", "Unknown reduction 'ica': use pca_whitening, pca, truncation"),
    ],
)
def test_what_cannot_be_fitted(pieces: list, dims: int, method: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit(pieces, dims, method)


# --- behind a network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> GeoLocalizationNet:
    network = GeoLocalizationNet("ResNet18_Small", 5, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():  # statistics that folding has to get right
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.1, 0.1)
    return network


def described(network: torch.nn.Module) -> torch.Tensor:
    photos = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return network(photos)


def test_a_reduced_network_folds_for_inference_too(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3)).eval()
    fast = for_inference(reduced)
    assert fast is not reduced
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(described(fast), described(reduced), atol=1e-5, rtol=0)
    torch.testing.assert_close(described(reduced), reduced.reduction(described(network)))
    assert reduced.fc_output_dim == 3
    assert unreduced(reduced) is network
    assert unreduced(network) is network


def test_cutting(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3)).eval()
    assert first_dimensions(reduced, 3) is reduced
    assert described(first_dimensions(reduced, 2)).shape == (3, 2)
    assert first_dimensions(network, 5) is network
    with pytest.raises(ConfigError, match="no reduction, so 2 dimensions have to be fitted"):
        first_dimensions(network, 2)
    with pytest.raises(CheckpointError, match="takes 4 dimensions but the network gives 5"):
        ReducedNetwork(network, truncation(4, 2))


def card_of(tensors: dict, **changes: str) -> dict[str, str]:
    card = {"backbone": "ResNet18_Small", "fc_output_dim": "3", "features_dim": "5", "reduction": "pca"}
    return {**card, "tensors_sha256": tensors_sha256(tensors), **changes}


def test_tensors_and_card_give_the_network_back(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3, "pca")).eval()
    tensors = tensors_to_keep(reduced)
    again = network_from_weights(tensors, card_of(tensors), no_base)
    assert isinstance(again, ReducedNetwork)
    assert not again.training
    assert tensors_to_keep(again).keys() == tensors.keys()
    assert all(torch.equal(value, tensors[key]) for key, value in tensors_to_keep(again).items())
    torch.testing.assert_close(described(again), described(reduced))
    assert set(tensors_to_keep(network)) == set(network.state_dict())
    plain = network_from_weights(network.state_dict(), {}, no_base)
    torch.testing.assert_close(described(plain), described(network))


def test_a_reduction_alone_asks_for_its_network(network: GeoLocalizationNet) -> None:
    reduced = ReducedNetwork(network, fit([rows()], 3, "pca")).eval()
    tensors = tensors_to_keep(reduced, with_base=False)
    assert sorted(tensors) == ["reduction.bias", "reduction.weight"]
    card = {"reduction": "pca", "base_model": "hub:owner/repo:entry", "fc_output_dim": "3"}
    asked = []

    def open_base(name: str) -> torch.nn.Module:
        asked.append(name)
        return network

    torch.testing.assert_close(described(network_from_weights(tensors, card, open_base)), described(reduced))
    assert asked == ["hub:owner/repo:entry"]
    with pytest.raises(CheckpointError, match="a reduction without its network"):
        network_from_weights(tensors, {"reduction": "pca"}, no_base)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "ResNet50"}, "card says backbone ResNet50 but the tensors ResNet18_Small"),
        ({"fc_output_dim": "512"}, "card says fc_output_dim 512 but the tensors 3"),
        ({"features_dim": "6"}, "card says features_dim 6 but the tensors 5"),
        ({"reduction": "magic"}, "The reduction is damaged"),
        ({"tensors_sha256": "0" * 64}, "not those that the card was written for"),
    ],
)
def test_a_card_that_contradicts_its_tensors_is_refused(network: GeoLocalizationNet, changes: dict, said: str) -> None:
    tensors = tensors_to_keep(ReducedNetwork(network, fit([rows()], 3, "pca")))
    with pytest.raises(CheckpointError, match=said):
        network_from_weights(tensors, card_of(tensors, **changes), no_base)


def test_damaged_reductions_are_refused(network: GeoLocalizationNet) -> None:
    tensors = tensors_to_keep(ReducedNetwork(network, fit([rows()], 3, "pca")))
    without = {key: value for key, value in tensors.items() if key != "reduction.bias"}
    with pytest.raises(CheckpointError, match="The reduction is damaged"):
        network_from_weights(without, {"reduction": "pca"}, no_base)
    with pytest.raises(CheckpointError, match=r"its weight is \[3, 5\] and its bias \[2\]"):
        network_from_weights({**tensors, "reduction.bias": torch.zeros(2)}, {"reduction": "pca"}, no_base)
    with pytest.raises(CheckpointError, match="card tells of a reduction but there is none"):
        network_from_weights(network.state_dict(), {"reduction": "pca"}, no_base)
    with pytest.raises(CheckpointError, match="not the weights of a CosPlace model"):
        network_from_weights({"weight": torch.zeros(3)}, {}, no_base)
