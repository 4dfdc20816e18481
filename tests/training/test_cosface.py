from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.errors import ConfigError
from cosplace.training.cosface import MarginCosineProduct


def classifier_and_batch(num_classes: int = 11, dim: int = 6, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    classifier = MarginCosineProduct(dim, num_classes, generator=generator)
    inputs = torch.randn(5, dim, generator=generator, dtype=dtype)
    labels = torch.tensor([0, 10, 3, 3, 7])
    return classifier, inputs, labels


def test_logits_loss_and_gradients_are_the_references(reference_folder: Path):
    reference = np.load(reference_folder / "cosface.npz")
    classifier = MarginCosineProduct(64, 50)
    classifier.load_state_dict({"weight": torch.from_numpy(reference["weight"])})
    embeddings = torch.from_numpy(reference["embeddings"]).requires_grad_()
    labels = torch.from_numpy(reference["labels"])
    logits = classifier(embeddings, labels)
    np.testing.assert_allclose(logits.detach(), reference["logits"], rtol=0, atol=1e-4)
    for loss in (F.cross_entropy(logits, labels), classifier.loss(embeddings, labels)):
        assert loss.item() == pytest.approx(reference["loss"].item(), abs=1e-4)
        gradients = torch.autograd.grad(loss, (embeddings, classifier.weight))
        for gradient, name in zip(gradients, ("grad_embeddings", "grad_weight"), strict=True):
            np.testing.assert_allclose(gradient, reference[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("s, m", [(30.0, 0.4), (100.0, 0.0), (1.0, 0.9)])
def test_logits_follow_the_formula(s: float, m: float):
    classifier, inputs, labels = classifier_and_batch()
    classifier.s, classifier.m = s, m
    cosines = F.cosine_similarity(inputs[:, None], classifier.weight[None], dim=2)
    expected = s * (cosines - m * F.one_hot(labels, 11))
    torch.testing.assert_close(classifier(inputs, labels), expected, rtol=0, atol=1e-4)


def test_gradients_are_those_of_finite_differences():
    classifier, inputs, labels = classifier_and_batch()
    classifier.s = 1.0
    inputs.requires_grad_()
    F.cross_entropy(classifier(inputs, labels), labels).backward()
    for tensor in (inputs, classifier.weight):
        assert tensor.grad is not None
        step = 1e-2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(step, alpha=sign)
                losses.append(F.cross_entropy(classifier(inputs, labels), labels).item())
                tensor.sub_(step, alpha=sign)
        slope = (tensor.grad * step).sum().item()
        assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=0.02, abs=1e-5)


def test_lengths_of_descriptors_and_weights_do_not_matter():
    classifier, inputs, labels = classifier_and_batch()
    expected = classifier(inputs, labels).detach()
    with torch.no_grad():
        classifier.weight *= 7
    torch.testing.assert_close(classifier(inputs * 0.01, labels), expected, rtol=0, atol=1e-4)


def test_the_margin_may_change_between_calls():
    classifier, inputs, labels = classifier_and_batch()
    with_margin = classifier(inputs, labels)
    classifier.m = 0.1
    rows = torch.arange(5)
    difference = classifier(inputs, labels) - with_margin
    torch.testing.assert_close(difference[rows, labels], torch.full((5,), 30 * 0.3), rtol=0, atol=1e-4)
    difference[rows, labels] = 0
    assert not difference.any()


def test_zero_vectors_have_finite_logits_and_gradients():
    classifier, inputs, labels = classifier_and_batch()
    inputs = torch.zeros_like(inputs).requires_grad_()
    logits = classifier(inputs, labels)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()


def loss_by_formula(
    classifier: MarginCosineProduct, inputs: torch.Tensor, labels: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of descriptors and weights in double precision, by autograd through the formula."""
    inputs, weight = (tensor.detach().double().requires_grad_() for tensor in (inputs, classifier.weight))
    lengths = [tensor.norm(dim=1).clamp(min=1e-8) for tensor in (inputs, weight)]
    cosines = inputs @ weight.t() / torch.outer(*lengths)
    logits = classifier.s * (cosines - classifier.m * F.one_hot(labels, classifier.out_features))
    loss = F.cross_entropy(logits, labels)
    return loss.detach(), *(g * scale for g in torch.autograd.grad(loss, (inputs, weight)))


def assert_loss_follows_the_formula(
    classifier: MarginCosineProduct, inputs: torch.Tensor, labels: torch.Tensor, scale: float = 1.0
) -> None:
    inputs = inputs.detach().requires_grad_()
    loss = classifier.loss(inputs, labels)
    found = (loss, *torch.autograd.grad(loss * scale, (inputs, classifier.weight)))
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in found[1:]] == [inputs.dtype, torch.float32]
    precision = max(2e-6, torch.finfo(inputs.dtype).eps)
    for ours, theirs in zip(found, loss_by_formula(classifier, inputs, labels, scale), strict=True):
        # Rounded: logits near 0 are differences of terms of size s, so that their error is relative to s.
        atol = precision * max(1.0, classifier.s / 30) * max(theirs.abs().max().item(), 1e-4)
        torch.testing.assert_close(ours.double(), theirs, rtol=precision, atol=10 * atol)


@pytest.mark.parametrize("s, m", [(30.0, 0.4), (100.0, 0.0), (1.0, 0.9)])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_loss_and_its_gradients_follow_the_formula(s: float, m: float, scale: float):
    classifier, inputs, labels = classifier_and_batch()
    classifier.s, classifier.m = s, m
    assert_loss_follows_the_formula(classifier, inputs, labels, scale)


@pytest.mark.parametrize("num_classes", [1, 1023, 1024, 1025, 2500])
def test_loss_takes_any_number_of_classes(num_classes: int):
    classifier = MarginCosineProduct(7, num_classes, generator=torch.Generator().manual_seed(1))
    inputs = torch.randn(4, 7, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, num_classes - 1, num_classes // 2, num_classes - 1])
    assert_loss_follows_the_formula(classifier, inputs, labels)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 1.0, 1e6, 1e15]), min_size=3, max_size=3),
    class_lengths=st.lists(st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, 1.0, 1e6, 1e15]), min_size=4, max_size=4),
    labels=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    low=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_loss_has_the_gradients_of_its_logits_for_vectors_of_any_length(
    lengths: list[float], class_lengths: list[float], labels: list[int], low: torch.dtype
):
    generator = torch.Generator().manual_seed(0)
    classifier = MarginCosineProduct(5, 4, generator=generator)
    with torch.no_grad():
        classifier.weight.mul_(torch.tensor(class_lengths).unsqueeze(1))
    vectors = torch.randn(3, 5, generator=generator) * torch.tensor(lengths).unsqueeze(1)
    vectors, right = vectors.to(low).requires_grad_(), torch.tensor(labels)
    loss, expected = classifier.loss(vectors, right), F.cross_entropy(classifier(vectors, right), right)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    both = [torch.autograd.grad(value, (vectors, classifier.weight)) for value in (loss, expected)]
    for vector, ours, theirs in zip((vectors, classifier.weight), *both, strict=True):
        precision = max(1e-5, torch.finfo(ours.dtype).eps)
        lengths = vector.detach().float().norm(dim=1, keepdim=True).clamp(min=1e-8)
        # In units of their own size, s / length, as rows differ by 23 orders of magnitude.
        found, wanted = (gradient.float() * lengths / classifier.s for gradient in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=precision, atol=precision)


def test_loss_gives_only_the_gradients_asked_for():
    classifier, inputs, labels = classifier_and_batch()
    classifier.loss(inputs, labels).backward()
    by_weight = classifier.weight.grad
    assert by_weight is not None
    classifier.requires_grad_(False)
    inputs.requires_grad_()
    classifier.loss(inputs, labels).backward()
    expected = loss_by_formula(classifier, inputs, labels)
    for found, gradient in zip((inputs.grad, by_weight), expected[1:], strict=True):
        torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=1e-5)


def test_loss_without_gradients_is_the_same_number():
    classifier, inputs, labels = classifier_and_batch()
    expected = classifier.loss(inputs, labels)
    with torch.inference_mode():
        found = classifier.loss(inputs, labels)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())


def test_gradients_of_the_loss_may_be_asked_for_again():
    classifier, inputs, labels = classifier_and_batch()
    loss = classifier.loss(inputs, labels)
    first, again = (torch.autograd.grad(loss, classifier.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_stays_float32_under_autocast(dtype: torch.dtype):
    classifier, inputs, labels = classifier_and_batch()
    low = inputs.to(dtype).requires_grad_()
    expected = classifier.loss(low, labels)
    gradients = torch.autograd.grad(expected, (low, classifier.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classifier.loss(low, labels)
        both = zip(torch.autograd.grad(found, (low, classifier.weight)), gradients, strict=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in both)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_stay_float32_under_autocast(dtype: torch.dtype):
    classifier, inputs, labels = classifier_and_batch()
    low = inputs.to(dtype)
    expected = classifier(low.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classifier(low, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_weights_are_xavier_uniform_and_come_from_the_generator():
    first, same, other = (MarginCosineProduct(256, 300, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    bound = (6 / (256 + 300)) ** 0.5
    assert first.weight.shape == (300, 256)
    assert first.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert first.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("dim, num_classes", [(0, 5), (5, 0)])
def test_empty_classifiers_are_refused(dim: int, num_classes: int):
    with pytest.raises(ConfigError, match="at least 1 feature and 1 class"):
        MarginCosineProduct(dim, num_classes)


def test_a_classifier_says_what_it_is():
    assert "in_features=6, out_features=11, s=30.0, m=0.4" in repr(classifier_and_batch()[0])
