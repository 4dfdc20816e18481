"""cosplace city, demo, bench: everything without data of one's own."""

import argparse
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command
from cosplace.cli.console import Bars, log_files, now, say, write_json
from cosplace.cli.serve import require_extra, serve_index
from cosplace.cli.training import LOGS
from cosplace.config.values import loading_workers
from cosplace.errors import ConfigError

log = logging.getLogger("cosplace")


def _add_city(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="OUT", help="folder to write, with train/, val/ and test/")
    parser.add_argument("--images", type=int, default=20_000, help="training images, about (default: 20000)")
    parser.add_argument("--image_size", type=int, default=96, help="side of the pictures in pixels (default: 96)")
    parser.add_argument("--num_queries", type=int, default=300, help="queries of val and of test (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="one seed, one city (default: 0)")
    parser.add_argument("--num_workers", type=int, default=None, help="threads (default: the number of cores)")
    parser.set_defaults(run=_city)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default="demo", help="where the city is kept (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the city and of training (default: 0)")
    parser.add_argument("--serve", action="store_true", help="end with the map, at http://127.0.0.1:8000")
    parser.set_defaults(run=_demo)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stages", metavar="STAGE", nargs="*", help="stages to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, within a minute")
    parser.add_argument("--growth", action="store_true", help="also how time and memory of ours grow with the size")
    parser.add_argument("--turns", type=int, default=None, help="of each stage (default: 5, fewer for the longest)")
    parser.add_argument("--photos", type=Path, default=None, metavar="FOLDER", help="photos instead of made ones")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--gpu", action="store_true", help="measure training on a CUDA device instead of the stages")
    parser.add_argument("--compile", action="store_true", help="with --gpu: compile our network with torch.compile")
    parser.set_defaults(run=_bench)


def _city(values: dict[str, Any]) -> None:
    from synthcity.capture import build_city
    from synthcity.settings import CitySettings

    folder, num_workers = Path(values.pop("folder")), values.pop("num_workers")
    settings = CitySettings(**values, num_threads=loading_workers(num_workers))
    bars = Bars()
    summary = build_city(folder, settings, progress=lambda done, total: bars("city", done, total))
    found = f" ({summary.num_found} were there already)" if summary.num_found else ""
    say(f"{folder}: {', '.join(f'{name} {count}' for name, count in summary.counts.items())} pictures{found}")


def _demo(values: dict[str, Any]) -> None:
    if values["serve"]:  # now, and not after minutes
        require_extra()

    from cosplace.demo import INDEX, city_folder, index_and_locate, run_demo
    from cosplace.storage import run_folder

    folder, cities, seed = run_folder(LOGS, "demo", now()), Path(values["folder"]), values["seed"]
    with log_files(folder):
        table = run_demo(cities, folder, seed, Bars())
        located = index_and_locate(city_folder(cities, seed), folder, Bars())
    say(f"{table}\n\n{located}\n")
    say(f"report: {(folder / 'report.html').resolve()}")
    if values["serve"]:
        serve_index(folder / INDEX)
    else:
        say(f"map:    cosplace serve --index {folder / INDEX}")


def _bench(values: dict[str, Any]) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before anything heavy is imported: one thread a side
        os.environ.setdefault(name, "1")
    if values["compile"] and not values["gpu"]:
        raise ConfigError("--compile belongs to `cosplace bench --gpu`: leave it out here.")
    if values["gpu"]:
        return _bench_gpu(values)
    from benchmarks.catalog import STAGES
    from benchmarks.judging import table
    from benchmarks.records import BenchmarkError, Options
    from benchmarks.running import as_json, choose_stages, run_stages

    options = Options(quick=values["quick"], photos=values["photos"])
    if values["json"] is not None:  # now, and not after an hour
        write_json(values["json"], {"rows": []})
    report = run_stages(
        choose_stages(values["stages"], STAGES),
        options=options,
        turns=values["turns"],
        growth=values["growth"],
        progress=log.info,
    )
    say(table(report))
    if values["json"] is not None:
        write_json(values["json"], as_json(report, options))
    if report.failures:
        raise BenchmarkError("  ".join(report.failures))
    return None


def _bench_gpu(values: dict[str, Any]) -> None:
    if values["stages"] or values["quick"] or values["growth"]:
        raise ConfigError("--gpu measures training as a whole: leave out STAGE, --quick and --growth.")
    from benchmarks.gpu import GpuOptions, gpu_table, measure_gpu

    turns = {} if values["turns"] is None else {"turns": values["turns"]}
    options = GpuOptions(compiled=values["compile"], photos=values["photos"], num_workers=os.cpu_count() or 1, **turns)
    rows = measure_gpu(options, log.info)
    say(gpu_table(rows))
    if values["json"] is not None:
        write_json(values["json"], {"rows": [dataclasses.asdict(row) for row in rows]})


COMMANDS = (
    Command(
        name="city",
        text="Make a synthetic city in SF-XL layout: street photos that agree in 3D, for trials without data.",
        add=_add_city,
    ),
    Command(
        name="demo",
        text="Make a city, train on it, evaluate, index it, locate photos: the whole journey in minutes, without data.",
        add=_add_demo,
    ),
    Command(
        name="bench",
        text="Measure each stage beside the plain way to do it: equal results, then ratios of time and memory.",
        add=_add_bench,
    ),
)
