"""L2 normalization and GeM: values, gradients, precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cosplace.models.gradients import PowerMean, UnitLength
from cosplace.models.layers import GeM, L2Norm


def test_gem_is_the_power_mean_and_its_power_learns():
    gem = GeM().double()
    images = torch.rand(2, 5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (images**3).mean((2, 3), keepdim=True) ** (1 / 3)
    torch.testing.assert_close(gem(images), expected, rtol=1e-6, atol=1e-6)
    gem(images).sum().backward()
    step = 1e-4
    powers = [(images ** (3 + d)).mean((2, 3)) ** (1 / (3 + d)) for d in (-step, step)]
    slope = (powers[1].sum() - powers[0].sum()) / (2 * step)
    assert gem.p.grad is not None
    assert gem.p.grad.item() == pytest.approx(slope.item(), rel=1e-4)


def test_gem_raises_values_to_eps():
    assert GeM()(torch.tensor([[[[-1.0, -5.0]]]])).item() == pytest.approx(1e-6, rel=1e-3)


def test_l2norm_keeps_zero_vectors():
    vectors = torch.stack([torch.zeros(4), torch.full((4,), -3.0)])
    assert torch.equal(L2Norm()(vectors), torch.stack([torch.zeros(4), torch.full((4,), -0.5)]))


def power_mean(images: Tensor, p: Tensor) -> Tensor:
    means = F.avg_pool2d(images.clamp(min=1e-6).pow(p), (images.size(-2), images.size(-1)))
    return means.pow(1 / p)


def unit_length(images: Tensor, _: Tensor) -> Tensor:
    return images / images.norm(dim=1, keepdim=True).clamp(min=1e-12)


def assert_gradients_follow(
    formula: Callable[[Tensor, Tensor], Tensor], layer: nn.Module, images: Tensor, tolerance: float = 3e-6
) -> None:
    """Compare a layer and its gradients with autograd's through a formula, in double precision."""
    p = getattr(layer, "p", torch.tensor([3.0]).requires_grad_())
    exact, exact_p = (tensor.detach().double().requires_grad_() for tensor in (images, p))
    images = images.detach().requires_grad_()
    found, expected = layer(images), formula(exact, exact_p)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-12)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found.backward(weights.float())
    expected.backward(weights)
    assert images.grad is not None and exact.grad is not None
    largest = exact.grad.abs().max().item()
    torch.testing.assert_close(images.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * largest)
    if exact_p.grad is not None:  # a sum of terms as large as the outputs, of both signs
        atol = tolerance * (weights * expected).abs().sum().item()
        torch.testing.assert_close(p.grad.double(), exact_p.grad, rtol=tolerance, atol=atol)


def activations(*shape: int) -> Tensor:
    """Outputs of a ReLU, with many zeros."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [1.0, 3.0, 4.7])
def test_gem_has_the_gradients_of_the_formula(layout: torch.memory_format, p: float):
    images = F.normalize(activations(3, 40, 9, 7), dim=1).contiguous(memory_format=layout)
    assert_gradients_follow(power_mean, GeM(p), images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_l2norm_has_the_gradients_of_the_formula(layout: torch.memory_format):
    assert_gradients_follow(unit_length, L2Norm(), activations(3, 40, 9, 7).contiguous(memory_format=layout))
    assert_gradients_follow(unit_length, L2Norm(), activations(5, 12))


def test_gem_has_no_gradient_below_eps_but_at_eps():
    eps = np.float32(1e-6)
    values = [-1.0, 0.0, 5e-7, np.nextafter(eps, np.float32(0)), eps, 2e-6]
    images = torch.tensor(np.array(values, np.float32)).view(1, 1, 2, 3).requires_grad_()
    GeM()(images).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).flatten().tolist() == [False, False, False, False, True, True]


def test_gradients_by_formula_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 2, dtype=torch.float64, generator=generator).requires_grad_()
    p = torch.tensor([2.7], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda images, p: PowerMean.apply(images, p, 0.3), (images, p))
    assert torch.autograd.gradcheck(UnitLength.apply, images)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.one_of(st.sampled_from([0.0, -1.0, 1e-42, 1e-7, 2e-6, 1e3]), st.floats(0, 2, width=32)),
        min_size=6,
        max_size=6,
    ),
    p=st.sampled_from([1.0, 2.5, 3.0, 6.0]),
)
def test_gem_and_its_gradients_follow_the_formula_for_extreme_values(values: list[float], p: float):
    images = torch.tensor(values).view(1, 2, 3, 1)
    if (images - 1e-6).abs().min() > 1e-12:  # at eps, single and double precision round to different sides
        assert_gradients_follow(power_mean, GeM(p), images, tolerance=2e-5)


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.sampled_from([0.0, 1e-15, 1e-13, 1e-8, 1.0, 1e15]), min_size=4, max_size=4))
def test_l2norm_and_its_gradients_follow_the_formula_for_vectors_of_any_length(lengths: list[float]):
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(lengths).unsqueeze(1)
    for vector in vectors.split(1):
        assert_gradients_follow(unit_length, L2Norm(), vector)


def test_layers_compute_the_same_with_and_without_gradients():
    images = activations(2, 8, 5, 4)
    for layer in (L2Norm(), GeM()):
        with torch.inference_mode():
            expected = layer(images)
        torch.testing.assert_close(layer(images.clone().requires_grad_()), expected, rtol=1e-6, atol=1e-7)


def test_gradients_reach_half_precision_features():
    features = activations(2, 8, 5, 4).bfloat16().requires_grad_()
    GeM()(L2Norm()(features)).sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    assert features.grad.isfinite().all()
