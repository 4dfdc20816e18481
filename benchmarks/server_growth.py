"""How the start, the answers and the memory of `cosplace serve` grow with the number of indexed photos.

    python -m benchmarks.server_growth --model MODEL --photos FOLDER [--image_size 224] [--sizes 1000 10000 100000]

MODEL: a weights file of a network with 512-D descriptors.  The indexed photos are synthetic places, see
`benchmarks.index`; the photos of FOLDER are sent, so the network computes what it always does.  CPU time is that of all
processes of the server: from the start until it accepts connections, and for one answer.  An exponent is the slope of
the logarithm of a figure over that of the size; 1 is linear.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import DIMENSION, PHOTOS_PER_PLACE, SyntheticPlaces, fill_index
from benchmarks.results import exponent
from benchmarks.serving import command_of, free_port, running
from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import load_model
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec

SIZES = (1_000, 10_000, 100_000)
FIGURES = ("start_cpu_s", "start_mb", "answer_cpu_ms", "p50_ms", "memory_mb")
NUM_REQUESTS = 60
TIME_LIMIT_S = 600.0


def write_index(address: Path, num_photos: int, spec: ModelSpec) -> None:
    """Write an index of synthetic photos, with its search index if it has one at this size."""
    world = SyntheticPlaces(max(1, num_photos // PHOTOS_PER_PLACE))
    with create_index(address, spec, IndexSettings()) as index:
        fill_index(index, world, num_photos)
        index.update_search()


def measure(index: Path, photos: Path, log: Path) -> dict[str, float]:
    """Start a server, send photos one after another, and return the figures."""
    port = free_port()
    command = command_of("cosplace", str(index), log, port, ["--uncalibrated", "--device", "cpu"])
    with running("cosplace", command, port, log) as server:
        start_cpu_s, start_mb = server.usage()
        server.send(photos, 1, TIME_LIMIT_S, 3)  # reads what is read at the first search
        report = server.send(photos, 1, TIME_LIMIT_S, NUM_REQUESTS)
    return {
        "start_cpu_s": start_cpu_s,
        "start_mb": start_mb,
        "answer_cpu_ms": 1_000 * report["server_cpu_s"] / report["num_answers"],
        "p50_ms": 1_000 * float(np.median(report["latencies_s"])),
        "memory_mb": report["memory_mb"],
    }


def main() -> None:
    """Measure all sizes; print figures and exponents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_growth", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="weights file of a network with 512-D descriptors")
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG files to locate")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    encoder = load_model(arguments.model, image_size=arguments.image_size, device="cpu")
    spec = ModelSpec(
        model=encoder.name, checksum=encoder.checksum, dimension=DIMENSION, image_size=arguments.image_size
    )
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            address = Path(folder) / f"{size}.index"
            write_index(address, size, spec)
            figures.append({"photos": size} | measure(address, arguments.photos, Path(folder) / "log"))
            print(json.dumps({name: round(value, 2) for name, value in figures[-1].items()}), flush=True)
    for name in FIGURES:
        values = [one[name] for one in figures]
        print(f"{name}: exponent {exponent(arguments.sizes, values):.2f}")


if __name__ == "__main__":
    main()
