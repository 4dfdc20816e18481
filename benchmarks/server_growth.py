"""How `cosplace serve`, `cosplace locate` and adding photos to an index grow with the number of indexed photos.

    python -m benchmarks.server_growth --model MODEL --photos FOLDER [--image_size 224] [--sizes 1000 10000 100000]

MODEL: a weights file of a network with 512-D descriptors.  The indexed photos are synthetic places, see
`benchmarks.index`; the photos of FOLDER are sent, so the network computes what it always does.  CPU time is that of all
processes of the server: from the start until it accepts connections, and for one answer.  Adding photos includes the
search index, which 100,000 photos have.  An exponent is the slope of the logarithm of a figure over that of the size; 1
is linear.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index import DIMENSION, PHOTOS_PER_PLACE, SyntheticPlaces, fill_index
from benchmarks.results import exponent
from benchmarks.serving import command_of, free_port, running
from benchmarks.user.commands import measure_command
from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import load_model
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec

SIZES = (1_000, 10_000, 100_000)
FIGURES = (
    "adding_cpu_s",
    "locate_cpu_s",
    "locate_mb",
    "start_cpu_s",
    "start_mb",
    "answer_cpu_ms",
    "p50_ms",
    "memory_mb",
)
NUM_REQUESTS = 60
TIME_LIMIT_S = 600.0
MIB = 1 << 20


def write_index(address: Path, num_photos: int, spec: ModelSpec) -> float:
    """Write an index of synthetic photos, with its search index if it has one at this size; returns its CPU seconds."""
    started = time.process_time()
    world = SyntheticPlaces(max(1, num_photos // PHOTOS_PER_PLACE))
    with create_index(address, spec, IndexSettings()) as index:
        fill_index(index, world, num_photos)
        index.update_search()
    return time.process_time() - started


def measure(index: Path, photos: Path, log: Path) -> dict[str, float]:
    """Locate one photo by the command line, then start a server, and send photos one after another."""
    words = ["locate", str(min(photos.iterdir())), "--index", str(index), "--uncalibrated", "--device", "cpu"]
    located = measure_command(
        [sys.executable, "-m", "cosplace", *words], log.parent, os.environ, name="cosplace locate"
    )
    port = free_port()
    command = command_of("cosplace", str(index), log, port, ["--uncalibrated", "--device", "cpu"])
    with running("cosplace", command, port, log) as server:
        start_cpu_s, start_mb = server.usage()
        server.send(photos, 1, TIME_LIMIT_S, 3)  # reads what is read at the first search
        report = server.send(photos, 1, TIME_LIMIT_S, NUM_REQUESTS)
    return {
        "locate_cpu_s": located.cpu_s,
        "locate_mb": located.memory_mib * MIB / 1e6,
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
            adding_cpu_s = write_index(address, size, spec)
            measured = measure(address, arguments.photos.absolute(), Path(folder) / "log")
            figures.append({"photos": size, "adding_cpu_s": adding_cpu_s} | measured)
            print(json.dumps({name: round(value, 2) for name, value in figures[-1].items()}), flush=True)
    for name in FIGURES:
        values = [one[name] for one in figures]
        print(f"{name}: exponent {exponent(arguments.sizes, values):.2f}")


if __name__ == "__main__":
    main()
