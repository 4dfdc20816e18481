"""The command line of the benchmark: `python -m benchmarks [STAGE ...]`, in the root of the repository.

A user's mistake prints one line and exits with code 2, like `cosplace`.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cosplace.cli.console import log_to_terminal, print_result, write_json
from cosplace.errors import ConfigError, CosPlaceError

PROG = "python -m benchmarks"
EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


class Parser(argparse.ArgumentParser):
    """Raises ConfigError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message}. See `{PROG} --help`.")


def make_parser() -> Parser:
    """The parser of all flags."""
    parser = Parser(
        prog=PROG,
        description="Compare each stage of cosplace with a plain implementation: equal results, then ratios of CPU "
        "time, wall time and memory.",
    )
    parser.add_argument("stages", metavar="STAGE", nargs="*", help="stages to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first impression in a minute")
    parser.add_argument("--growth", action="store_true", help="also measure how time and memory grow with the size")
    parser.add_argument("--turns", type=int, metavar="N", help="turns of each stage (default: 5, fewer for long ones)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="use these photos instead of generated ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--gpu", action="store_true", help="measure training on a CUDA device instead of the stages")
    parser.add_argument("--compile", action="store_true", help="with --gpu: compile our network with torch.compile")
    parser.add_argument("--cuda_graphs", action="store_true", help="with --gpu: run our network as CUDA graphs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    for name, value in ENVIRONMENT.items():  # before NumPy and torch are imported: one thread per side
        os.environ.setdefault(name, value)
    try:
        arguments = make_parser().parse_args(argv)
        with log_to_terminal():
            (_run_gpu if arguments.gpu else _run_stages)(arguments)
    except CosPlaceError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _run_stages(arguments: argparse.Namespace) -> None:
    if arguments.compile:
        raise ConfigError("--compile needs --gpu.")
    from benchmarks.results import table
    from benchmarks.run import as_json, choose_stages, run_stages
    from benchmarks.stage import BenchmarkError, Options
    from benchmarks.stages import STAGES

    options, stages = Options(quick=arguments.quick, photos=arguments.photos), choose_stages(arguments.stages, STAGES)
    _check_writable(arguments.json)
    report = run_stages(stages, options=options, turns=arguments.turns, growth=arguments.growth)
    print_result(table(report))
    if arguments.json is not None:
        write_json(arguments.json, as_json(report, options))
    if report.failures:
        raise BenchmarkError("  ".join(report.failures))


def _run_gpu(arguments: argparse.Namespace) -> None:
    if arguments.stages or arguments.quick or arguments.growth:
        raise ConfigError("--gpu measures training as a whole. Leave out STAGE, --quick and --growth.")
    from benchmarks.gpu import GpuOptions, gpu_table, measure_gpu

    options = GpuOptions(
        compiled=arguments.compile,
        cuda_graphs=arguments.cuda_graphs,
        photos=arguments.photos,
        num_workers=os.cpu_count() or 1,
    )
    if arguments.turns is not None:
        options = dataclasses.replace(options, turns=arguments.turns)
    _check_writable(arguments.json)
    rows = measure_gpu(options)
    print_result(gpu_table(rows))
    if arguments.json is not None:
        write_json(arguments.json, {"rows": [dataclasses.asdict(row) for row in rows]})


def _check_writable(file: Path | None) -> None:
    """Raise StorageError now, not after an hour, if the results cannot be written."""
    if file is not None:
        write_json(file, {"rows": []})


if __name__ == "__main__":
    sys.exit(main())
