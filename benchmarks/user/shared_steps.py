"""Shared by the three scripts: arguments, the network, positives and recalls.

Legend: Q queries, R database photos, K predictions per query, D descriptor dimension.
"""

import argparse
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import transforms

from benchmarks.plain_network import MEAN, STD, PlainNetwork

KS = (1, 5, 10, 20)
RADIUS_M = 25.0
RECALLS = "recalls.json"


def parse_arguments(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, the same for each script."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("database", type=Path, help="folder of photos with '@' names")
    parser.add_argument("queries", type=Path, help="folder of photos with '@' names")
    parser.add_argument("weights", type=Path, help="state dict of a ResNet-18 with GeM")
    parser.add_argument("out", type=Path, help="existing folder for the results")
    parser.add_argument("--image_size", type=int, default=512, help="pixels of the shorter side (default: 512)")
    parser.add_argument("--batch_size", type=int, default=16, help="photos per batch (default: 16)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that load photos (default: 2)")
    return parser.parse_args(argv)


def open_network(weights: Path) -> PlainNetwork:
    """The network with its weights, in evaluation mode."""
    state = torch.load(weights, weights_only=True)
    network = PlainNetwork(dimension=len(state["aggregation.3.bias"]))
    network.load_state_dict(state)
    return network.eval()


def photo_transform(image_size: int) -> Any:
    """From a Pillow image to a normalized tensor (3, H, W)."""
    return transforms.Compose(
        [transforms.Resize(image_size), transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=STD)]
    )


def list_photos(folder: Path) -> list[str]:
    """Paths of all photos in a folder and its subfolders, sorted."""
    return sorted(glob.glob(f"{folder}/**/*.jpg", recursive=True))  # noqa: PTH207 - the usual recipe


def positions(paths: Sequence[str]) -> np.ndarray:
    """UTM east and north in meters of photos with '@' names, (n, 2) float64."""
    fields = [path.rpartition("/")[2].split("@") for path in paths]
    return np.array([(float(each[1]), float(each[2])) for each in fields])


def recalls_of(predictions: np.ndarray, positives: Sequence[np.ndarray]) -> dict[int, float]:
    """Recall@N in percent.  predictions: (Q, K) database photos, best first; positives: those of each query."""
    hits = np.zeros(len(KS))
    for found, correct in zip(predictions, positives, strict=True):
        for i, k in enumerate(KS):
            if np.isin(found[:k], correct).any():
                hits[i:] += 1
                break
    return dict(zip(KS, (100 * hits / len(predictions)).tolist(), strict=True))


def write_recalls(out: Path, recalls: dict[int, float]) -> None:
    """Print the recalls and write them to a file in `out`."""
    print(", ".join(f"R@{k}: {value:.1f}" for k, value in recalls.items()))
    (out / RECALLS).write_text(json.dumps(recalls))


def read_recalls(out: Path) -> dict[int, float]:
    """The recalls that `write_recalls` wrote."""
    return {int(k): value for k, value in json.loads((out / RECALLS).read_text()).items()}
