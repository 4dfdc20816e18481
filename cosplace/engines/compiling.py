"""The engine that compiles the network with torch.compile, for the CPU or CUDA.

Legend: B photos of one size, D descriptor dimension.
"""

import logging
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from cosplace.engines.kinds import KINDS
from cosplace.engines.torch_engine import TorchEngine
from cosplace.errors import ConfigError, CosPlaceError
from cosplace.models.averaging import averaged
from cosplace.storage import cache_folder

MAX_PROGRAMS = 64  # of all networks of this process; torch's own limit of 8 is for one network
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
LOGGERS = ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension", "torch.utils._sympy")


class CompiledEngine(TorchEngine):
    """A TorchEngine in fp32 whose network is compiled when the first photos are described.

    Sizes of photos and batches are variables of the compiled program, but it is compiled again for a batch of one
    photo, and for batches of 16 or more on the CPU: torch distinguishes them.
    Compiled parts are kept in the cache folder.
    Raises ConfigError without a compiler, and when photos are described that the compiled network does not take.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str | torch.device = "cpu",
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        # Before any part of the compiler is imported, as that sets the variable to a folder for temporary files.
        os.environ.setdefault(CACHE_VARIABLE, str(cache_folder("engines") / "compiled"))
        _require_compiler(torch.device(device))
        super().__init__(network, KINDS["torch_compile"], device=device, scales=scales, flip=flip)
        # fullgraph: what cannot be compiled is an error.  Else it would be run without being compiled.
        compiled: Any = torch.compile(self._optimized, fullgraph=True, dynamic=True)
        self._fast_network = averaged(compiled, scales, flip=flip)
        self._num_threads = torch.get_num_threads()
        self._lock = Lock()  # a program is compiled for a number of threads, so it computes one batch at a time

    def describe_on_device(self, photos: Tensor) -> Tensor:
        """See `TorchEngine`."""
        with self._lock, _settings(), _threads(self._num_threads):
            try:
                return super().describe_on_device(photos)
            except CosPlaceError:
                raise
            except Exception as error:  # each part of the compiler raises types of its own
                count, _, height, width = photos.shape
                raise ConfigError(
                    f"torch.compile cannot compile this model for a batch of {count} photos of {width} x {height} "
                    f"pixels ({_reason(error)}). Use --engine torch."
                ) from error


def _require_compiler(device: torch.device) -> None:
    """Raise ConfigError where torch.compile cannot compile for a device."""
    with redirect_stderr(StringIO()):  # torch 2.6 prints there that CUDA is installed without a GPU
        import_module("torch.utils.cpp_extension")
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ConfigError(
                "--engine torch_compile needs a C++ compiler, and torch finds none. Install g++, or use --engine torch."
            ) from error
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(
                f"--engine torch_compile needs Triton and a GPU that it supports for {device}. Install with: pip "
                f"install triton. Or use --engine torch."
            )
    else:
        raise ConfigError(
            f"--engine torch_compile computes on the CPU and on CUDA, not on {device}. Use --engine torch, or --device "
            f"cpu."
        )


@contextmanager
def _settings() -> Generator[None]:
    """Within: the settings of torch.compile, and only errors in its log, unless TORCH_LOGS asks for more."""
    from torch._dynamo import config

    shapes: Any = import_module("torch.fx.experimental._config")

    loggers = [] if "TORCH_LOGS" in os.environ else [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # Without duck shapes, equal sizes of the first photos, such as width and height, may differ later.
        with (
            warnings.catch_warnings(action="ignore"),
            config.patch(cache_size_limit=MAX_PROGRAMS, fail_on_cache_limit_hit=True, suppress_errors=False),
            shapes.patch(use_duck_shape=False),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _threads(number: int) -> Generator[None]:
    """Within: torch computes with this number of threads; with another, the network would be compiled again."""
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reason(error: BaseException) -> str:
    """The line of an error that says most: the first of a compiler that has an error, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error: " in line), lines[0])[:200]
