"""Choose the device and the type of numbers for computing; settings of torch for the time of a block."""

import logging
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from cosplace.errors import ConfigError, DeviceError

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device with this name: auto (CUDA, else Apple's MPS, else CPU), cpu, mps, cuda or cuda:N.

    Raises DeviceError if it is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device '{name}'. Use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            reason = "torch finds no CUDA device" if torch.version.cuda else "this build of torch has no CUDA support"
            raise DeviceError(f"--device {name}: {reason}. Use `--device auto` or `--device cpu`.")
        if device.index is not None and device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise DeviceError(f"--device {name}: torch finds {count} CUDA device(s), numbered from 0. Use cuda:0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: this machine has no MPS. Use `--device auto` or `--device cpu`.")
    return device


def amp_type(use_amp16: bool, amp_dtype: str, device: torch.device) -> torch.dtype | None:
    """The 16-bit type of mixed precision on a device; None for plain fp32.

    auto: fp16 on CUDA, bf16 on MPS and on CPUs with bf16 instructions, fp32 on other CPUs, where emulated bf16 is ten
    times slower than fp32.
    """
    if not use_amp16:
        return None
    if device.type == "cpu" and amp_dtype == "fp16":
        raise ConfigError("--amp_dtype fp16 needs a GPU. On a CPU, use `--amp_dtype bf16`.")
    if amp_dtype == "auto" and device.type == "cpu" and not _cpu_has_bf16():
        log.warning(
            "--use_amp16: this CPU has no bf16 instructions, so fp32 is used. To emulate bf16, use --amp_dtype bf16."
        )
        return None
    if amp_dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.float16 if amp_dtype == "fp16" else torch.bfloat16


def _cpu_has_bf16() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported())


def at_least_float32(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of 16 bits as float32; float32 and float64 stay what they are."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to `dtype` on the device; for None, a context that changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def fused_adam(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam with one kernel per step for all parameters, on the CPU too; it does not wait for the device."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


@contextmanager
def tuned_convolutions(device: torch.device) -> Generator[None]:
    """Let cuDNN try its algorithms on the first photos of a size and use the fastest; changes nothing on a CPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch compute with one thread, so that sums have the same order on all machines and in all processes."""
    threads = torch.get_num_threads()
    if threads == 1:  # setting it would change the number for Python threads that start later
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
