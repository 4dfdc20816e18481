"""Speed of the engines: `python -m benchmarks.engines --photos FOLDER [--only resnet18-224 ...]`, with random weights.

Compares the descriptors of each engine with those of PyTorch on photos first, then measures all engines in turn on the
same batches, and prints the lowest cosine similarity and the median ratio of times, as a table of docs/engines.md.
int8 is calibrated on the photos.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from cosplace.engines.cached import EngineUse
from cosplace.engines.comparison import lowest_cosine, measure_speedups, sample_photos
from cosplace.engines.engine import Engine
from cosplace.engines.kinds import KINDS
from cosplace.engines.opening import Opener
from cosplace.errors import CosPlaceError
from cosplace.models.layouts import network_from_release
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.weight_files import model_checksum
from cosplace.photos.image_list import ImageList
from cosplace.photos.scanning import scan_images
from tests.models.networks import fill_by_rule
from tests.models.released_layouts import random_weights, released

MODELS = {"resnet18-224": 224, "resnet18-512": 512, "resnet50-224": 224, "dinov2b-224": 224}
"""Pixels of the shorter side, by model and size."""


def new_network(name: str) -> nn.Module:
    """The network of a name in MODELS."""
    if name.startswith("dinov2"):
        network = network_from_release(random_weights(released("salad")))
        assert network is not None
        return network.eval()
    return fill_by_rule(GeoLocalizationNet({"resnet18": "ResNet18", "resnet50": "ResNet50"}[name[:8]], 512)).eval()


def print_table(name: str, photos: ImageList, batch_sizes: list[int]) -> None:
    """Rows of one model: engine, lowest cosine similarity, times faster than PyTorch by batch size."""
    network, side = new_network(name), MODELS[name]
    samples = sample_photos(photos, side)
    opener = Opener(network, EngineUse(checksum=model_checksum(network), image_size=side), device="cpu", photos=photos)
    engines: dict[str, Engine] = {}
    for kind in KINDS.values():
        try:
            engines[kind.name] = opener.open(kind)
        except CosPlaceError as error:
            print(f"{name} {kind.name}: {error}", flush=True)
    cosines = {key: lowest_cosine(engine, engines["torch"], samples) for key, engine in engines.items()}
    columns = [measure_speedups(engines, "torch", samples[:1], size) for size in batch_sizes]
    for key in engines:
        ratios = " | ".join(f"{speedups[key]:.2f}" for speedups, _ in columns)
        print(f"| {name} | {key} | {cosines[key]:.6f} | {ratios} |", flush=True)
    print(f"PyTorch: {', '.join(f'{seconds:.3f} s' for _, seconds in columns)} per batch of {batch_sizes}", flush=True)


def main() -> None:
    """Measure the engines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models to measure")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 16], help="photos per batch")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads", flush=True)
    photos = scan_images(arguments.photos)
    for name in arguments.only:
        print_table(name, photos, arguments.batch_sizes)


if __name__ == "__main__":
    main()
