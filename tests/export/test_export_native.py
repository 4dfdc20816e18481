"""Export of networks of other projects: any size in one file, the same descriptors as PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.engines.deployable import DeployableNetwork, find_smallest_side, trace
from cosplace.engines.input_format import InputFormat
from cosplace.errors import ConfigError
from cosplace.export.exporter import export_model
from cosplace.export.runtime import open_exported
from cosplace.export.settings import ExportSettings
from cosplace.models.layouts import network_from_release
from cosplace.models.native import NativeNetwork
from tests.export.versions import needs_new_torch
from tests.models.released_layouts import random_weights, released

SIZES = ((1, 126, 126), (3, 150, 203), (2, 140, 140), (1, 301, 130))
"""(B, H, W): smallest, not multiples of 14, and 10 x 10 patches, the size of the stored positions."""
QUICK = ("mixvpr",)  # the others are exported by `make long`
NAMES = ("megaloc", "salad", "boq_dinov2", "boq_resnet50", "image", "mixvpr", "conv_ap", "netvlad")
WITH_ATTENTION = ("megaloc", "salad", "boq_dinov2", "boq_resnet50", "image")


def tiny(name: str) -> NativeNetwork:
    network = network_from_release(random_weights(released(name, dim=64, depth=1, grid=10, small=True)))
    assert network is not None
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["megaloc", "image"])
def test_a_traced_network_takes_any_size(name: str) -> None:
    network = tiny(name)
    traced = trace(DeployableNetwork(network, inputs=InputFormat(values="normalized"), half=False)).module()
    with torch.inference_mode():
        for size in SIZES:
            images = torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(traced(images), network(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "smallest"), [("megaloc", 120), ("image", 8), ("mixvpr", 1)])
def test_the_smallest_side_is_found(name: str, smallest: int) -> None:
    assert find_smallest_side(tiny(name)) == smallest


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *([needs_new_torch] if name in WITH_ATTENTION else []),
                *([] if name in QUICK else [pytest.mark.long]),
            ],
        )
        for name in NAMES
    ],
)
def test_onnx_files_agree_with_pytorch(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "weights.pth"
    torch.save(random_weights(released(name, dim=64, depth=5, grid=10, small=True)), path)
    report = export_model(path, tmp_path / "model.onnx", ExportSettings())
    assert report.comparison.worst.largest < 1e-5
    exported, network = open_exported(tmp_path / "model.onnx"), network_from_release(torch.load(path))
    assert network is not None
    with torch.inference_mode():
        for size in SIZES:
            images = torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(1))
            assert np.abs(exported(images).numpy() - network(images).numpy()).max() < 1e-4


@pytest.mark.slow
@needs_new_torch
def test_half_precision_keeps_the_head_in_float32(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "weights.pth"
    torch.save(random_weights(released("megaloc", dim=64, depth=2, grid=10, small=True)), path)
    report = export_model(path, tmp_path / "model.onnx", ExportSettings(precision="fp16"))
    assert report.comparison.worst.least_cosine > 0.9999


def test_photos_below_the_smallest_side_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(random_weights(released("salad", dim=64, depth=1, grid=10, small=True)), path)
    with pytest.raises(ConfigError, match=r"--image_size 112 is too small for DINOv2-64/14. Use at least 120"):
        export_model(path, tmp_path / "model.onnx", ExportSettings(image_size=112))
