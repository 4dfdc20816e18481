"""The command line: `python -m benchmarks.user`, in the root of the repository."""

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.stage import BenchmarkError
from benchmarks.user.commands import disk_bytes, measure_command
from benchmarks.user.photos import TestSet, write_test_set, write_weights
from benchmarks.user.table import Figures, Results, Row, difference, lowest_cosine, recalls_text, row_of, table
from cosplace.cli.console import log_to_terminal, print_error, print_result, write_json
from cosplace.errors import ConfigError, CosPlaceError

PROG = "python -m benchmarks.user"
ROOT = Path(__file__).resolve().parents[2]
EXIT_USER_ERROR = 2
MIB = 1 << 20
FULL, QUICK = (5_000, 512), (120, 128)  # photos, and pixels of their shorter side in the network
OURS = "cosplace eval"
AUTO, NO_REPORT = "--engine auto", "--no_report"
RESULTS = "logs/*/*/results.json"  # of our commands

log = logging.getLogger("cosplace.benchmarks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What each side gets."""

    photos: TestSet
    weights: Path
    image_size: int
    batch_size: int
    num_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One side: a command that writes its results into the folder that it runs in."""

    name: str
    command: Callable[[Task], list[str]]
    results: Callable[[Path], Results]
    descriptors: tuple[str, ...]  # files and folders of descriptors, in the folder
    needs: dict[str, str]  # module -> how to install it
    chooses_engine: bool = False  # by a first run, not measured
    has_16_bits: bool = False  # its recalls may differ by one query

    @property
    def tolerance_queries(self) -> int:
        """By how many queries its recalls may differ."""
        return int(self.chooses_engine or self.has_16_bits)


# --- the sides -------------------------------------------------------------------------------------------------------


def _script(module: str) -> Callable[[Task], list[str]]:
    def command(task: Task) -> list[str]:
        folders = [str(path) for path in (task.photos.database, task.photos.queries, task.weights, ".")]
        flags = {"image_size": task.image_size, "batch_size": task.batch_size, "num_workers": task.num_workers}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", f"benchmarks.user.{module}", *folders, *words]

    return command


def _our_command(*flags: str) -> Callable[[Task], list[str]]:
    def command(task: Task) -> list[str]:
        folders = ["--database_folder", str(task.photos.database), "--queries_folder", str(task.photos.queries)]
        model = ["--model", str(task.weights), "--descriptors_folder", "descriptors",
                 "--descriptors_dtype", "float16"]  # fmt: skip
        size = ["--resize_test_imgs", "--image_size", str(task.image_size), "--infer_batch_size", str(task.batch_size)]
        return [sys.executable, "-m", "cosplace", "eval", *folders, *model, *size, *flags]

    return command


def _array_results(folder: Path) -> Results:
    from benchmarks.user.shared_steps import read_recalls

    arrays = [np.load(folder / name) for name in ("database.npy", "queries.npy")]
    return Results(recalls=read_recalls(folder), descriptors=np.concatenate(arrays))


def _feature_results(folder: Path) -> Results:
    import h5py

    from benchmarks.user.feature_file import FEATURES, read_descriptors
    from benchmarks.user.shared_steps import read_recalls

    with h5py.File(folder / FEATURES) as features:
        names = [f"{part}/{name}" for part in ("database", "queries") for name in sorted(features[part])]
    return Results(recalls=read_recalls(folder), descriptors=read_descriptors(folder / FEATURES, names))


def _our_results(folder: Path) -> Results:
    from cosplace.retrieval.shards import read_shards

    (file,) = folder.glob(RESULTS)
    recalls = {int(k): value for k, value in json.loads(file.read_text())["recalls"].items()}
    shards = [read_shards(folder / "descriptors" / part)[0] for part in ("database", "queries")]
    return Results(
        recalls=recalls, descriptors=np.concatenate([each[: len(each)] for each in shards]).astype(np.float32)
    )


CONTESTANTS = (
    Contestant(
        name="evaluation script",
        command=_script("methods_evaluation"),
        results=_array_results,
        descriptors=("database.npy", "queries.npy"),
        needs={"faiss": "faiss-cpu", "sklearn": "scikit-learn"},
    ),
    Contestant(
        name="feature file (h5)",
        command=_script("feature_file"),
        results=_feature_results,
        descriptors=("features.h5",),
        needs={"h5py": "h5py"},
        has_16_bits=True,
    ),
    Contestant(
        name="plain script",
        command=_script("plain_script"),
        results=_array_results,
        descriptors=("database.npy", "queries.npy"),
        needs={"faiss": "faiss-cpu"},
    ),
    Contestant(
        name=f"{OURS} {AUTO}",
        command=_our_command(*AUTO.split()),
        results=_our_results,
        descriptors=("descriptors",),
        needs={module: module for module in ("onnx", "onnxruntime", "onnxscript")},
        chooses_engine=True,
    ),
    Contestant(  # writes what the scripts write
        name=f"{OURS} {NO_REPORT}",
        command=_our_command(NO_REPORT),
        results=_our_results,
        descriptors=("descriptors",),
        needs={},
    ),
)
COSPLACE = Contestant(name=OURS, command=_our_command(), results=_our_results, descriptors=("descriptors",), needs={})


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(contestants: Sequence[Contestant], task: Task, turns: int) -> list[Row]:
    """Measure all sides in turns.

    A side that chooses an engine is left out if its results differ too much.  Raises BenchmarkError if those of another
    side differ, before all figures.
    """
    sides, num_queries = [*contestants, COSPLACE], len(list(task.photos.queries.iterdir()))
    figures: dict[str, list[Figures]] = {side.name: [] for side in sides}
    for side in sides:
        if side.chooses_engine:
            _choose_engine(side, task)
    for turn in range(turns):
        results = {}
        # Each turn starts with another side.
        for side in (*sides[turn % len(sides) :], *sides[: turn % len(sides)]):
            with tempfile.TemporaryDirectory() as name:
                figures[side.name].append(_measure(side, task, Path(name)))
                if turn == 0:
                    results[side.name] = side.results(Path(name))
            log.info("turn %d, %s: %.1f s", turn + 1, side.name, figures[side.name][-1].command.wall_s)
        for side in [*sides] if turn == 0 else ():
            if side is COSPLACE:
                continue
            theirs, own = results[side.name], results[OURS]
            found = difference(theirs, own, 100 * side.tolerance_queries / num_queries)
            if found is not None and not side.chooses_engine:
                raise BenchmarkError(f"The results of the {side.name} and of {OURS} differ: {found}")
            if found is not None:
                log.warning("%s is left out, because its results differ: %s", side.name, found)
                sides.remove(side)
                continue
            log.info("%s: recalls %s, lowest cosine %.6f", side.name, recalls_text(theirs), lowest_cosine(theirs, own))
    ours = figures[OURS]
    rows = [
        row_of(side.name, figures[side.name], ours, task.photos.num_photos) for side in sides if side is not COSPLACE
    ]
    return [*rows, row_of(OURS, ours, None, task.photos.num_photos)]


def _choose_engine(side: Contestant, task: Task) -> None:
    """Run our command without measuring: it exports the network, compares engines, and remembers the fastest."""
    with tempfile.TemporaryDirectory() as name:
        _measure(side, task, Path(name))
        (file,) = Path(name).glob(RESULTS)
        log.info("%s: the engine is %s", side.name, json.loads(file.read_text())["environment"]["engine"])


def _measure(side: Contestant, task: Task, folder: Path) -> Figures:
    # Otherwise the threads of the plain sides spin while they wait, which is slower on a busy machine; `cosplace` sets
    # these itself.
    passive = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "4"}
    environment = os.environ | passive | {"PYTHONPATH": str(ROOT)}
    command = measure_command(side.command(task), folder, environment, name=side.name)
    (folder / "output.log").unlink()
    descriptors = sum(
        disk_bytes(folder / name) if (folder / name).is_dir() else (folder / name).stat().st_size
        for name in side.descriptors
    )
    return Figures(
        command=command, descriptors_mib=descriptors / MIB, other_mib=(disk_bytes(folder) - descriptors) / MIB
    )


def missing_packages(side: Contestant) -> list[str]:
    """The packages that a side needs and this machine lacks."""
    return [package for module, package in side.needs.items() if importlib.util.find_spec(module) is None]


# --- the command line ------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The parser of all flags."""
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Compare `cosplace eval` with three scripts, from a folder of photos to recalls: equal results "
        "first, then wall time, CPU time, memory and disk space.",
    )
    parser.add_argument("--quick", action="store_true", help="120 generated photos of 128 pixels, in a minute")
    parser.add_argument("--size", type=int, metavar="N", help="number of photos (default: 5,000)")
    parser.add_argument("--image_size", type=int, metavar="N", help="pixels of the shorter side (default: 512)")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="photos per batch (default: 16)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="turns of each side (default: 3)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="copy these photos instead of generating some")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of a ResNet-18 (default: random weights)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        with log_to_terminal():
            rows, left_out = _run(arguments)
    except CosPlaceError as error:
        print_error(str(error))
        return EXIT_USER_ERROR
    print_result(table(rows))
    print_result(
        "wall, CPU, memory, disk: each side divided by cosplace eval, medians over turns.  Results are equal, those of "
        "the feature file within one query, as it stores 16-bit numbers.  disk: descriptors + other files."
    )
    if f"{OURS} {AUTO}" not in left_out:
        print_result(
            f"{AUTO}: its first run, which exports the network and chooses an engine, is not measured.  With 16-bit "
            "numbers, its recalls may differ by one query."
        )
    for name, packages in left_out.items():
        print_result(f"left out: {name}. Run `pip install {' '.join(packages)}`.")
    if arguments.json is not None:
        write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows], "left_out": left_out})
    return 0


def _run(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, list[str]]]:
    for flag in ("size", "image_size", "batch_size", "turns"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise ConfigError(f"--{flag} must be at least 1, got {value}. Omit it to use the default.")
    num_photos, image_size = QUICK if arguments.quick else FULL
    num_photos, image_size = arguments.size or num_photos, arguments.image_size or image_size
    left_out = {side.name: packages for side in CONTESTANTS if (packages := missing_packages(side))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log.info("writing %d photos", num_photos)
        if arguments.quick:
            photos = write_test_set(folder / "photos", num_photos, arguments.photos, side=image_size)
        else:
            photos = write_test_set(folder / "photos", num_photos, arguments.photos)
        weights = arguments.weights
        if weights is None:
            weights = folder / "weights.pth"
            write_weights(weights, photos.database, image_size)
        task = Task(
            photos=photos,
            weights=weights.absolute(),
            image_size=image_size,
            batch_size=arguments.batch_size,
            num_workers=os.cpu_count() or 1,
        )
        return compare([side for side in CONTESTANTS if side.name not in left_out], task, arguments.turns), left_out


if __name__ == "__main__":
    sys.exit(main())
