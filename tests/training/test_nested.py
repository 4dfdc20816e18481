"""Nested descriptors: the loss is the mean of the losses of the parts; a model is evaluated with fewer dimensions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cosplace.cli import main
from cosplace.errors import ConfigError
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.setup import check_nested_dims
from cosplace.training.step import nested_loss
from tests.synthetic_dataset import write_dataset


def cosface(descriptors: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, s: float, m: float) -> torch.Tensor:
    """Wang et al., equation 4."""
    cosines = F.normalize(descriptors, dim=1) @ F.normalize(weight, dim=1).T
    return F.cross_entropy(s * (cosines - m * F.one_hot(labels, len(weight))), labels)


def test_the_loss_is_the_mean_of_the_parts_and_so_are_the_gradients() -> None:
    torch.manual_seed(0)
    classifier = MarginCosineProduct(12, 7).double()
    descriptors = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (5,))
    loss = nested_loss(classifier, descriptors, labels, (3, 8))
    loss.backward()
    found = descriptors.grad, classifier.weight.grad
    inputs = descriptors.detach().clone().requires_grad_()
    weight = classifier.weight.detach().clone().requires_grad_()
    parts = [cosface(inputs[:, :dim], weight[:, :dim], labels, classifier.s, classifier.m) for dim in (12, 3, 8)]
    expected = torch.stack(parts).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, (inputs.grad, weight.grad), strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_without_nested_dimensions_it_is_the_loss_itself() -> None:
    classifier, descriptors = MarginCosineProduct(8, 4), torch.randn(3, 8)
    labels = torch.tensor([0, 3, 1])
    assert torch.equal(nested_loss(classifier, descriptors, labels, ()), classifier.loss(descriptors, labels))


@pytest.mark.parametrize("dims", [(64, 32), (32, 32), (32, 128), (256,)])
def test_dimensions_that_make_no_sense_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="--nested_dims"):
        check_nested_dims(dims, 128)


@pytest.mark.slow
def test_a_nested_model_is_evaluated_with_fewer_dimensions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    city = write_dataset(tmp_path / "city", num_places=6)
    flags = {
        "backbone": "ResNet18_Small", "fc_output_dim": 32, "image_size": 32, "epochs_num": 2, "iterations_per_epoch": 4,
        "M": 20, "alpha": 360, "N": 1, "L": 1, "groups_num": 1, "min_images_per_class": 2, "batch_size": 4,
        "num_workers": 0, "device": "cpu", "report_matches": 0,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in flags.items()] + ["--nested_dims", "8", "16"]
    assert main(["train", "--dataset_folder", str(city), *words]) == 0
    (model,) = tmp_path.glob("logs/default/*/best_model.safetensors")
    capsys.readouterr()
    words = ["--model", str(model), "--reduce_to", "8", "--reduce_method", "truncation", "--device", "cpu"]
    assert main(["eval", "--dataset_folder", str(city), *words, "--report_matches", "0"]) == 0
    assert "R@1" in capsys.readouterr().out
    assert main(["train", "--dataset_folder", str(city), "--fc_output_dim", "32", "--nested_dims", "64"]) == 2
