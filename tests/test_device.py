"""Devices and 16-bit types."""

import pytest
import torch

from cosplace.device import amp_type, choose_device, mixed_precision, one_thread
from cosplace.errors import ConfigError, DeviceError


def test_auto_is_an_available_device() -> None:
    assert torch.ones(1, device=choose_device("auto")).item() == 1
    assert choose_device("cpu").type == "cpu"


def test_unavailable_devices_are_refused() -> None:
    with pytest.raises(DeviceError):
        choose_device(f"cuda:{torch.cuda.device_count() + 3}")
    with pytest.raises(ConfigError):
        choose_device("toaster")


def test_sixteen_bit_types() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert amp_type(False, "bf16", cpu) is None
    assert amp_type(True, "auto", cuda) == torch.float16
    assert amp_type(True, "bf16", cuda) == amp_type(True, "bf16", cpu) == torch.bfloat16
    assert amp_type(True, "auto", cpu) in (torch.bfloat16, None)
    with pytest.raises(ConfigError, match="needs a GPU"):
        amp_type(True, "fp16", cpu)
    with mixed_precision(cpu, torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with mixed_precision(cpu, None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_one_thread_restores_the_number() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
