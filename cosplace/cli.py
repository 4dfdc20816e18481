"""The command line: the only module that parses arguments, prints and exits.

A user's mistake prints one line and exits with code 2.  Heavy modules are imported by the command that needs them,
so that --help answers at once.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cosplace import __version__
from cosplace.config import (
    EvalConfig,
    GroupsConfig,
    TrainConfig,
    from_values,
    knobs,
    loading_workers,
    nearest_names,
    set_folder,
    to_values,
)
from cosplace.errors import ConfigError, CosPlaceError

LOGS = Path("logs")
EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130

log = logging.getLogger("cosplace")


# --- parsing ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (`{self.prog} --help` lists everything)")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(120, _terminal_width()))


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 100


def add_knobs(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add a command's settings as flags; only flags that are given reach the namespace."""
    for section, items in knobs(config_class):
        group = parser.add_argument_group((type(section.default).__doc__ or section.name).lower())
        for item in items:
            meta = item.metadata
            names = [f"--{name}" for name in (item.name, *meta["aliases"])]
            shown = meta["shown"] or ("" if item.default is False else _shown(item.default))
            text = f"{meta['text']}{f' (default: {shown})' if shown else ''}".replace("%", "%%")
            if item.default is False:
                group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
                continue
            options: dict[str, Any] = {"nargs": "+"} if meta["several"] else {}
            metavar = meta["metavar"] or ("{" + ",".join(meta["choices"]) + "}" if meta["choices"] else None)
            group.add_argument(
                *names,
                dest=item.name,
                type=_parse_or_explain(meta["parse"], item.name),
                default=argparse.SUPPRESS,
                help=text,
                metavar=metavar or meta["parse"].__name__.upper(),
                **options,
            )


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)


def _parse_or_explain(parse: Any, name: str) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}.get(parse, "another value")
            raise ConfigError(f"--{name} '{text}': give {wanted}.") from error

    return convert


def build_parser(prog: str = "cosplace", only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, or of one (`only`) for the scripts train.py and eval.py."""
    texts = {
        "train": "Train CosPlace: form classes and groups, learn, validate each epoch, test the best model.",
        "eval": "Evaluate a model: describe database and queries, search, Recall@N and a report.",
        "groups": "Form CosPlace classes and groups, and say whether they are fit for training.",
        "city": "Make a synthetic city in SF-XL layout: street photos that agree in 3D, for trials without data.",
        "demo": "Make a city, train on it, evaluate, write a report: the whole journey in minutes, without data.",
        "bench": "Measure each stage beside the plain way to do it: equal results, then ratios of time and memory.",
    }
    add = {"train": _add_train, "eval": _add_eval, "groups": _add_groups, "city": _add_city, "demo": _add_demo}
    add["bench"] = _add_bench
    if only:
        parser = _Parser(prog=prog, description=texts[only], formatter_class=_Formatter)
        add[only](parser)
        return parser
    parser = _Parser(
        prog=prog,
        description="Recognise places from photos (CosPlace, CVPR 2022): train, evaluate, look at the results.",
        epilog="Start with `cosplace demo`.  Each command explains itself: `cosplace train --help`.",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"cosplace {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, text in texts.items():
        add[name](commands.add_parser(name, help=text, description=text, formatter_class=_Formatter))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_knobs(parser, TrainConfig)
    parser.set_defaults(run=_train)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    add_knobs(parser, EvalConfig)
    parser.set_defaults(run=_eval)


def _add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="training photos with '@' names, in any subfolders")
    parser.add_argument("--json", action="store_true", help="print the groups as JSON")
    add_knobs(parser, GroupsConfig)
    parser.set_defaults(run=_groups)


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


def main(argv: Sequence[str] | None = None, *, prog: str = "cosplace", only: str | None = None) -> int:
    """Run a command line; returns its exit code."""
    # Before torch is imported: its threads would spin while they wait for each other, and where loading processes share
    # the cores that made a training step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser(prog, only)
    try:
        arguments = _parse(parser, list(sys.argv[1:] if argv is None else argv), only)
        if arguments is None:
            parser.print_help()
            return EXIT_USER_ERROR
        with _console():
            arguments.pop("run")(arguments)
    except CosPlaceError as error:
        log.debug("stopped", exc_info=True)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; a training run goes on with --resume_train", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _parse(parser: argparse.ArgumentParser, argv: list[str], only: str | None) -> dict[str, Any] | None:
    """The arguments by name; None when no command is named."""
    namespace, rest = parser.parse_known_args(argv)
    arguments = vars(namespace)
    command = only or arguments.pop("command", None)
    if rest:
        raise ConfigError(f"{_about_unknown(rest[0].partition('=')[0], command)} (`cosplace {command} --help`)")
    return arguments if command else None


def _about_unknown(flag: str, command: str | None) -> str:
    for name, config in (("train", TrainConfig), ("eval", EvalConfig), ("groups", GroupsConfig)):
        if name != command and flag.lstrip("-") in {item.name for _, items in knobs(config) for item in items}:
            return f"{flag} belongs to `cosplace {name}`: leave it out here."
    flags = [f"--{item.name}" for config in (TrainConfig, EvalConfig) for _, items in knobs(config) for item in items]
    offered = nearest_names(flag, dict.fromkeys(flags)) if flag.startswith("-") else []
    return f"Unknown argument {flag}" + (f": did you mean {offered[0]}?" if offered else ".")


# --- what the user sees ----------------------------------------------------------------------------------------------


class _Bars:
    """One progress bar at a time, on the terminal: what, how far, speed, time left."""

    def __init__(self) -> None:
        self.what, self.bar = "", None

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        from tqdm import tqdm

        if self.bar is None or what != self.what:
            self.close()
            self.what = what
            self.bar = tqdm(
                desc=what, total=total, unit="img", dynamic_ncols=True, smoothing=0.1, leave=False, initial=0
            )
        if note and note != getattr(self.bar, "postfix", ""):
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Leave the line clean."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _BarHandler(logging.Handler):
    """Log lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class _console:  # noqa: N801 - reads as a statement
    """Within: log lines of level INFO go to the terminal."""

    def __enter__(self) -> None:
        log.setLevel(logging.DEBUG)
        self.handler = _BarHandler(logging.INFO)
        self.handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        log.addHandler(self.handler)

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self.handler)


class _log_files:  # noqa: N801 - reads as a statement
    """Within: log lines also go to info.log and debug.log in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.handlers = folder, []

    def __enter__(self) -> None:
        from cosplace.storage import storage_errors

        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, level in (("info.log", logging.INFO), ("debug.log", logging.DEBUG)):
                handler = logging.FileHandler(self.folder / name)
                handler.setLevel(level)
                handler.setFormatter(logging.Formatter("%(asctime)s  %(levelname)-7s  %(message)s"))
                log.addHandler(handler)
                self.handlers.append(handler)

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if isinstance(error, CosPlaceError):
            self.handlers[0].handle(log.makeRecord(log.name, logging.ERROR, "", 0, str(error), (), None))
        for handler in self.handlers:
            log.removeHandler(handler)
            handler.close()


def _now() -> str:
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def _say(text: str) -> None:
    print(text, flush=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    from cosplace.storage import write_text

    write_text(path, json.dumps(content, indent=2) + "\n")


# --- commands --------------------------------------------------------------------------------------------------------


def _train(values: dict[str, Any]) -> None:
    for split in ("train", "val", "test") if not values.get("resume_train") else ():
        set_folder(from_values(TrainConfig, values).folders, split)  # says at once when one is not given

    from cosplace.preparation import describe_plan, prepare, run_folder
    from cosplace.results import keep_training
    from cosplace.training import resumed_config, train

    if values.get("resume_train"):
        config = resumed_config(values["resume_train"], values)
        folder = Path(config.training.resume_train or "").parent
    else:
        config = from_values(TrainConfig, values)
        folder = run_folder(LOGS, config.running.save_dir, _now())
    prepared = prepare(config, values)
    if config.running.dry_run:
        from cosplace.forecast import forecast_training

        for line in (*describe_plan(prepared), *forecast_training(prepared, folder, _Bars()).lines):
            _say(line)
        return
    with _log_files(folder):
        log.info("results go to %s", folder)
        result = train(prepared, folder, _Bars())
        keep_training(result, prepared.config)
    _say(result.test.recalls_text())
    _say(f"report: {folder / 'report.html'}")


def _eval(values: dict[str, Any]) -> None:
    config = from_values(EvalConfig, values)
    folder = set_folder(config.folders, "test")

    from cosplace.datasets import open_retrieval_dataset
    from cosplace.preparation import network_to_evaluate, run_folder
    from cosplace.results import evaluate_from_config, keep_evaluation

    dataset = open_retrieval_dataset(folder, config.folders.queries_folder)
    model = network_to_evaluate(config, backbone=values.get("backbone"), fc_output_dim=values.get("fc_output_dim"))
    if config.running.dry_run:
        from cosplace.forecast import forecast_evaluation

        for line in forecast_evaluation(model, dataset, config, _Bars()).lines:
            _say(line)
        return
    run = run_folder(LOGS, config.running.save_dir, _now())
    with _log_files(run):
        log.info("results go to %s", run)
        _write_json(run / "config.json", to_values(config))
        evaluation = evaluate_from_config(model, dataset, config, _Bars())
        log.info("%s: %s", dataset.name, evaluation.recalls_text())
        keep_evaluation(run, evaluation, dataset, config)
    _say(evaluation.recalls_text())
    _say(f"report: {run / 'report.html'}")


def _groups(values: dict[str, Any]) -> None:
    from cosplace.groups import advice, cached_partition, partition
    from cosplace.images import scan_images

    folder, as_json = values.pop("folder"), values.pop("json")
    config = from_values(GroupsConfig, values)
    form = partition if config.caching.no_cache else cached_partition
    groups = form(scan_images(folder), config.grouping)
    counts, hint = groups.counts(), advice(groups, config.grouping)
    if as_json:
        rows = [{"num_classes": num_classes, "num_images": num_images} for num_classes, num_images in counts]
        parameters = dataclasses.asdict(config.grouping)
        _say(json.dumps({"groups": rows, "num_scanned": groups.num_scanned, "parameters": parameters, "advice": hint}))
        return
    kept = sum(num_images for _, num_images in counts)
    _say(f"{groups.num_scanned} images, {kept} in classes of {config.grouping.min_images_per_class} or more")
    _say("group   classes    images")
    for number, (num_classes, num_images) in enumerate(counts):
        unused = "" if number < config.grouping.groups_num else "   not used (--groups_num)"
        _say(f"{number:5d}  {num_classes:8d}  {num_images:8d}{unused}")
    if hint:
        _say(hint)


def _city(values: dict[str, Any]) -> None:
    from cosplace.city import CitySettings, build_city

    folder, num_workers = Path(values.pop("folder")), values.pop("num_workers")
    settings = CitySettings(**values, num_threads=loading_workers(num_workers))
    bars = _Bars()
    summary = build_city(folder, settings, progress=lambda done, total: bars("city", done, total))
    found = f" ({summary.num_found} were there already)" if summary.num_found else ""
    _say(f"{folder}: {', '.join(f'{name} {count}' for name, count in summary.counts.items())} pictures{found}")


def _demo(values: dict[str, Any]) -> None:
    from cosplace.demo import run_demo
    from cosplace.preparation import run_folder

    folder = run_folder(LOGS, "demo", _now())
    with _log_files(folder):
        table = run_demo(Path(values["folder"]), folder, values["seed"], _Bars())
    _say(table)
    _say(f"report: {(folder / 'report.html').resolve()}")


def _bench(values: dict[str, Any]) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before anything heavy is imported: one thread a side
        os.environ.setdefault(name, "1")
    if values["compile"] and not values["gpu"]:
        raise ConfigError("--compile belongs to `cosplace bench --gpu`: leave it out here.")
    if values["gpu"]:
        return _bench_gpu(values)
    from cosplace.bench import STAGES, BenchmarkError, Options, as_json, choose_stages, run_stages, table

    options = Options(quick=values["quick"], photos=values["photos"])
    if values["json"] is not None:  # now, and not after an hour
        _write_json(values["json"], {"rows": []})
    report = run_stages(
        choose_stages(values["stages"], STAGES),
        options=options,
        turns=values["turns"],
        growth=values["growth"],
        progress=log.info,
    )
    _say(table(report))
    if values["json"] is not None:
        _write_json(values["json"], as_json(report, options))
    if report.failures:
        raise BenchmarkError("  ".join(report.failures))
    return None


def _bench_gpu(values: dict[str, Any]) -> None:
    if values["stages"] or values["quick"] or values["growth"]:
        raise ConfigError("--gpu measures training as a whole: leave out STAGE, --quick and --growth.")
    from cosplace.bench.gpu import GpuOptions, gpu_table, measure_gpu

    turns = {} if values["turns"] is None else {"turns": values["turns"]}
    options = GpuOptions(compiled=values["compile"], photos=values["photos"], num_workers=os.cpu_count() or 1, **turns)
    rows = measure_gpu(options, log.info)
    _say(gpu_table(rows))
    if values["json"] is not None:
        _write_json(values["json"], {"rows": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
    sys.exit(main())
