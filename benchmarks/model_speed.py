"""Speed of the released models: `python -m benchmarks.model_speed [--device cuda]`, with random weights.

Prints the part of cosplace/models/speeds.toml for this machine.  Times are medians; on a CPU, of threads' CPU time
divided by their number, which other programs disturb less.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from cosplace.device import choose_device, mixed_precision
from cosplace.memory import keep_freed_memory
from cosplace.models.inference import optimize_for_inference
from cosplace.models.layouts import network_from_release
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.zoo import NATIVE_MODELS
from tests.models.released_layouts import random_weights, released

SIDE = 512  # pixels of the photos of CosPlace and EigenPlaces
BACKBONES = ("ResNet18", "ResNet50", "ResNet101", "ResNet152", "VGG16")
SAME_NETWORK = ("image_merged",)  # as image_gsv


def networks() -> Iterator[tuple[str, int, nn.Module]]:
    """Key of speeds.toml, side of the photos, and network."""
    for backbone in BACKBONES:
        yield backbone, SIDE, GeoLocalizationNet(backbone, 512)
    for name, model in NATIVE_MODELS.items():
        if name not in SAME_NETWORK:
            network = network_from_release(random_weights(released(name.removesuffix("_gsv"))))
            assert network is not None
            yield name, model.input_size, network


def seconds_per_call(call: Callable[[], object], device: torch.device, turns: int) -> float:
    """Median time of a call."""
    times = []
    for turn in range(turns + 1):
        _wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        _wait(device)
        on_cpu = (time.process_time() - cpu) / torch.get_num_threads()
        if turn:  # the first is not counted
            times.append(on_cpu if device.type == "cpu" else time.perf_counter() - wall)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure all models and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_speed", description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="timed calls (default: 3)")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands of cosplace do
    device = choose_device(arguments.device)
    batch_size = 64 if device.type == "cuda" else 4
    half = torch.float16 if device.type == "cuda" else None
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, fp16, batches of {batch_size}"
    else:
        machine = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, batches of {batch_size}"
    print(f'[{device.type}]\nmachine = "{machine}, torch {torch.__version__.partition("+")[0]}"', flush=True)
    for key, side, network in networks():
        ready = optimize_for_inference(network.eval()).to(device, memory_format=torch.channels_last)
        batch = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)

        with torch.inference_mode(), mixed_precision(device, half):
            many = seconds_per_call(partial(ready, batch), device, arguments.turns)
            one = seconds_per_call(partial(ready, batch[:1]), device, 3 * arguments.turns)
        print(f"{key} = [{side}, {batch_size / many:.3g}, {1000 * one:.3g}]", flush=True)


if __name__ == "__main__":
    main()
