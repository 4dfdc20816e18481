from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cosplace.cosface import MarginCosineProduct
from cosplace.errors import ConfigError


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
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    np.testing.assert_allclose(logits.detach(), reference["logits"], rtol=0, atol=1e-4)
    assert loss.item() == pytest.approx(reference["loss"].item(), abs=1e-4)
    for tensor, name in ((embeddings, "grad_embeddings"), (classifier.weight, "grad_weight")):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), reference[name], rtol=0, atol=1e-4)


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
