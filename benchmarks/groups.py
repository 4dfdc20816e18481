"""Names -> groups: this package beside one Python tuple per image, as the field writes it.

    python benchmarks/groups.py [--images 1000000] [--repeats 3] [--json FILE]

Each side runs in a process of its own, so that peak memory is its own; they take turns, and the ratios are medians
over turns.  Both read the same file of names; a difference between their groups is an error, not a row.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from cosplace.images import LISTED_FILES_CHECKED

TARGETS = {"cpu_ratio": 12.0, "memory_ratio": 8.0}


def write_names(path: Path, num_images: int) -> None:
    """SF-XL names on a grid of streets: panoramas every few meters, 12 headings, several years."""
    rng = np.random.default_rng(0)
    num_panoramas = num_images // 12 + 1
    side = max(2, int(np.sqrt(num_panoramas / 40)))  # cross streets 100 m apart
    street = rng.integers(0, side, num_panoramas) * 100.0
    along = np.round(rng.uniform(0, side * 100, num_panoramas) / 2.5) * 2.5
    turned = rng.random(num_panoramas) < 0.5
    east = 540_000 + np.where(turned, street, along) + rng.normal(0, 1, num_panoramas)
    north = 4_170_000 + np.where(turned, along, street) + rng.normal(0, 1, num_panoramas)
    first = rng.integers(0, 30, num_panoramas)
    lines = []
    for p in range(num_panoramas):
        head = f"37.{int(north[p]) // 1000 % 100:02d}/@{east[p]:010.2f}@{north[p]:010.2f}@10@S@037.77510@-122.42940"
        lines += [f"{head}@{p:022d}@@{first[p] + 30 * h}@@@@201311@@.jpg\n" for h in range(12)]
    path.write_text("".join(sorted(lines[:num_images])))


# Both sides print the same digest: group after group, classes by cell, images in order.

PLAIN = """
import hashlib, sys, time
from collections import defaultdict
M, alpha, N, L, least = 10, 30, 5, 2, 10
started = time.process_time()
paths = open(sys.argv[1]).read().splitlines()
metadata = [p.split("@") for p in paths]
positions = [(m[1], m[2], m[9]) for m in metadata]
positions = [(float(e), float(n), float(h)) for e, n, h in positions]
del metadata
images_of_class, group_of_class = defaultdict(list), {}
for path, (east, north, heading) in zip(paths, positions):
    e, n, h = int(east // M * M), int(north // M * M), int(heading // alpha * alpha)
    images_of_class[e, n, h].append(path)
    group_of_class[e, n, h] = (e % (M * N) // M, n % (M * N) // M, h % (alpha * L) // alpha)
images_of_class = {c: images for c, images in images_of_class.items() if len(images) >= least}
groups = defaultdict(list)
for c in images_of_class:
    groups[group_of_class[c]].append(c)
seconds = time.process_time() - started
PEAK = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
order = sorted(groups.values(), key=lambda classes: min(images_of_class[c][0] for c in classes))
digest = hashlib.sha256()
for classes in order:
    digest.update(b"group")
    for c in sorted(classes):
        digest.update(repr(c).encode() + "\\n".join(images_of_class[c]).encode())
print(seconds, PEAK, digest.hexdigest())
"""

OURS = """
import hashlib, sys, time
from pathlib import Path
import numpy as np
from cosplace.config import Grouping
from cosplace.groups import partition
from cosplace.images import scan_images
names = Path(sys.argv[1])
started = time.process_time()
groups = partition(scan_images(names.parent / "train"), Grouping())
seconds = time.process_time() - started
PEAK = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
digest = hashlib.sha256()
for number in range(len(groups)):
    group = groups[number]
    digest.update(b"group")
    for c in np.lexsort(group.cells.T[::-1]):
        images = range(group.class_starts[c], group.class_starts[c + 1])
        cell = tuple(group.cells[c].tolist())
        digest.update(repr(cell).encode() + "\\n".join(group.image_name(i) for i in images).encode())
print(seconds, PEAK, digest.hexdigest())
"""


def run(code: str, names: Path) -> tuple[float, float, str]:
    """(CPU seconds, peak MiB, digest) of one side in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code, str(names)], capture_output=True, text=True, check=True)
    seconds, peak_kb, digest = done.stdout.split()
    return float(seconds), float(peak_kb) / 1024, digest


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train"
        train.mkdir()
        names = Path(folder) / "train_images_paths.txt"
        write_names(names, options.images)
        with names.open() as lines:  # the list is checked against the folder by a sample: make that sample exist
            paths = lines.read().splitlines()
        for index in np.unique(np.linspace(0, len(paths) - 1, LISTED_FILES_CHECKED).astype(np.int64)):
            (train / paths[index]).parent.mkdir(exist_ok=True)
            (train / paths[index]).touch()
        turns = [(run(PLAIN, names), run(OURS, names)) for _ in range(options.repeats)]
    if len({side[2] for turn in turns for side in turn}) != 1:
        sys.exit("the two sides form different groups")
    cpu = statistics.median(plain[0] / ours[0] for plain, ours in turns)
    memory = statistics.median(plain[1] / ours[1] for plain, ours in turns)
    met = cpu >= TARGETS["cpu_ratio"] and memory >= TARGETS["memory_ratio"]
    print(f"names -> groups, {options.images:,} names, median of {options.repeats} turns, equal groups")
    print(f"  CPU     plain {turns[0][0][0]:6.2f} s    ours {turns[0][1][0]:6.2f} s    ratio {cpu:5.1f}")
    print(f"  memory  plain {turns[0][0][1]:6.0f} MiB  ours {turns[0][1][1]:6.0f} MiB  ratio {memory:5.1f}")
    if options.json:
        row = {"stage": f"groups {options.images}", "equal": True, "cpu_ratio": cpu, "memory_ratio": memory}
        options.json.write_text(json.dumps({"rows": [{**row, "target": TARGETS, "met": met}]}, indent=2))


if __name__ == "__main__":
    main()
