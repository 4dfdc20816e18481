"""All commands; from a command line to an exit code."""

import atexit
import gc
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cosplace import __version__
from cosplace.cli.command import Command
from cosplace.cli.console import Interruption, end_on_signals, log_to_terminal, print_error, set_terminal
from cosplace.cli.help import help_text
from cosplace.cli.parser import HelpRequested, about_missing_action, about_unknown_action, flag_names, parse_words
from cosplace.cli.second_signal import EXIT_SIGNAL
from cosplace.config.terminal import TERMINAL_FLAGS, take_terminal_settings
from cosplace.config.values import to_values
from cosplace.errors import ConfigError, CosPlaceError, StorageError, advise_only
from cosplace.memory import explain_memory_errors, keep_freed_memory
from cosplace.progress import StopRequest
from cosplace.storage import FULL_DISK

EXIT_USER_ERROR = 2
COSPLACE = Command(
    name="cosplace",
    summary="Visual place recognition with CosPlace (CVPR 2022): train and evaluate models, build an index of photos, "
    "and find where photos were taken. Start with `cosplace demo`.",
    topics={
        "Start": ("demo", "city", "completion"),
        "Your own photos": ("import", "panoramas", "validate", "split", "dataset", "pairs"),
        "Locate photos": ("index", "locate", "serve"),
        "Models": ("zoo", "convert", "reduce", "export"),
        "Train": ("finetune", "train", "distill", "groups"),
        "Evaluate": ("eval", "reproduce", "protocols", "compare", "audit", "runs"),
        "Many photos": ("plan", "extract"),
    },
    actions=(
        Command(
            name="train",
            summary="Train a CosPlace model: form groups, train, validate after each epoch, test the best model.",
            function="distributed_training:run_train",
        ),
        Command(
            name="finetune",
            summary="Fine-tune a model on your own photos, with settings chosen automatically; keep the result only if "
            "it is better than the original model.",
            function="finetuning:run_finetune",
        ),
        Command(
            name="distill",
            summary="Train a small network to imitate a large one; the photos need no labels.",
            function="distillation:run_distill",
        ),
        Command(
            name="eval",
            summary="Evaluate a model on a test set: Recall@N and an HTML report.",
            function="evaluating:run_eval",
        ),
        Command(
            name="extract",
            summary="Compute the descriptors of many photos by any number of processes or machines, in a store that "
            "eval can search.",
            function="extract:run_extract",
        ),
        Command(
            name="protocols",
            summary="List the published protocols that eval and reproduce can follow: counts, radius, notes.",
            function="reproduce:run_protocols",
        ),
        Command(
            name="reproduce",
            summary="Evaluate a released model by a published protocol, and compare with its published figures.",
            function="reproduce:run_reproduce",
        ),
        Command(
            name="compare",
            summary="Compare runs on the same queries: differences of recalls with intervals, and the queries that "
            "flipped.",
            function="comparing:run_compare",
        ),
        Command(
            name="audit",
            summary="Judge wrong answers that look right: a page with pairs of photos; verdicts become part of the "
            "ground truth.",
            function="auditing:run_audit",
        ),
        Command(
            name="runs",
            summary="List runs with their main figures: recalls, model, dataset, epochs, state.",
            function="runs:run_runs",
        ),
        Command(
            name="groups",
            summary="Form CosPlace classes and groups, and check whether they are suitable for training.",
            function="training:run_groups",
        ),
        Command(
            name="import",
            summary="Import your own photos, with positions from EXIF, tables or tracks, into a dataset.",
            function="importing:run_import",
        ),
        Command(
            name="panoramas",
            summary="Cut equirectangular panoramas into a dataset of perspective photos with headings.",
            function="panoramas:run_panoramas",
        ),
        Command(
            name="validate",
            summary="Check a dataset: photos, positions, headings, clocks, duplicates, splits; recommend the "
            "command to run next.",
            function="validate:run_validate",
        ),
        Command(
            name="split",
            summary="Split a dataset into train, val and test by areas, time or sequences, with a buffer between them.",
            function="splitting:run_split",
        ),
        Command(
            name="dataset",
            summary="Export a dataset for other programs.",
            actions=(
                Command(
                    name="export",
                    summary="Export a dataset: photos with '@' names, GeoJSON, or a description for mapillary_tools.",
                    function="pairs:run_dataset_export",
                ),
            ),
        ),
        Command(
            name="pairs",
            summary="Write image pairs for hloc and COLMAP: nearby, consecutive or similar photos.",
            function="pairs:run_pairs",
        ),
        Command(
            name="zoo",
            summary="List, inspect, download and verify released models.",
            default_action="list",
            actions=(
                Command(
                    name="list",
                    summary="List all released models, and models of other projects that torch.hub loads.",
                    function="zoo:run_list",
                ),
                Command(name="info", summary="Print all information about one model.", function="zoo:run_info"),
                Command(
                    name="download",
                    summary="Download models into the cache, so that they can be used without a network connection.",
                    function="zoo:run_download",
                ),
                Command(
                    name="verify",
                    summary="Check the models in the cache: checksum, content and architecture.",
                    function="zoo:run_verify",
                ),
            ),
        ),
        Command(
            name="convert",
            summary="Convert a model to .safetensors, with a model card, or to .pth; the weights stay identical.",
            function="models:run_convert",
        ),
        Command(
            name="reduce",
            summary="Reduce the dimension of descriptors: fit PCA whitening or PCA on photos, store it with the model.",
            function="models:run_reduce",
        ),
        Command(
            name="export",
            summary="Export a model to ONNX or torch.export, in fp32, fp16 or int8, and compare it with PyTorch.",
            function="export:run_export",
        ),
        Command(
            name="index",
            summary="Build and maintain a searchable index of photos with their positions.",
            actions=(
                Command(
                    name="build",
                    summary="Build an index of the photos of a folder, or continue one that was interrupted.",
                    function="index:run_build",
                ),
                Command(
                    name="add",
                    summary="Add the photos of a folder to an index; photos that it already contains are skipped.",
                    function="index:run_add",
                ),
                Command(
                    name="sync",
                    summary="Synchronize an index with a folder: add new photos, update moved and changed ones, remove "
                    "those whose files are gone.",
                    function="index:run_sync",
                ),
                Command(
                    name="remove",
                    summary="Remove photos from an index, by id, path or folder.",
                    function="index_maintenance:run_remove",
                ),
                Command(
                    name="info",
                    summary="Print what an index contains, and the recall of its search.",
                    function="index_maintenance:run_info",
                ),
                Command(
                    name="verify",
                    summary="Check the files and photos of an index against their checksums; exits with code 2 if any "
                    "have changed.",
                    function="index_maintenance:run_verify",
                ),
                Command(
                    name="compact",
                    summary="Free the disk space of removed photos, and rebuild the search index of a large index.",
                    function="index_maintenance:run_compact",
                ),
                Command(
                    name="calibrate",
                    summary="Calibrate confidence: measure on the photos of an index how often answers are correct.",
                    function="index:run_calibrate",
                ),
            ),
        ),
        Command(
            name="locate",
            summary="Find where photos were taken, with a confidence and the matches in an index of photos.",
            function="locate:run_locate",
        ),
        Command(
            name="serve",
            summary="Serve an index: a map in the browser, and a REST API that finds where photos were taken.",
            function="serve:run_serve",
        ),
        Command(
            name="plan",
            summary="Estimate what a number of photos needs: disk, memory, machines, hours, cost; each figure with its "
            "formula or measurement.",
            function="planning:run_plan",
        ),
        Command(
            name="city",
            summary="Render a synthetic city in SF-XL layout: street photos, consistent in 3D, to try all commands.",
            function="demo:run_city",
        ),
        Command(
            name="demo",
            summary="Run all steps on a synthetic city in minutes: train, evaluate, build an index and locate photos.",
            function="demo:run_demo",
        ),
        Command(
            name="completion",
            summary="Print a script with which a shell completes commands, flags and their values.",
            function="completion:run_completion",
        ),
    ),
)

log = logging.getLogger("cosplace")
# New containers before a garbage collection.  With Python's own number, 700, collections are a tenth of `import torch`.
COLLECT_AFTER = 50_000
_LEAVE: list[int] = []  # the exit code of a process whose command has ended


def _leave_at_once() -> None:
    """End a process after its command without freeing its objects: 0.3 s for torch, seconds on a busy machine."""
    if _LEAVE:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(_LEAVE[-1])


atexit.register(_leave_at_once)  # before all others, which then run earlier


def main(argv: Sequence[str] | None = None, *, prog: str = "cosplace", only: str | None = None) -> int:
    """Run a command line; returns its exit code.  only: a command, for the scripts train.py and eval.py."""
    _open_closed_streams()
    if argv is not None:
        return _exit_code(argv, prog, only)
    _read_names_as_utf_8()
    _lose_messages_on_a_full_disk()
    gc.set_threshold(COLLECT_AFTER)
    keep_freed_memory()
    code = _exit_code(argv, prog, only)
    _LEAVE.append(code)
    return code


def _open_closed_streams() -> None:
    """Open the null device where stdin, stdout or stderr is closed, as under some daemons."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # os.open takes the lowest free descriptor, which is the closed one
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


class _LossyFile(io.FileIO):
    """A file that loses what a full disk has no space for."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            return memoryview(data).nbytes


def _lose_messages_on_a_full_disk() -> None:
    """Let commands work, with their results and exit codes, if stderr is a file on a full disk."""
    stream = sys.stderr
    if stream is sys.__stderr__:  # else a caller's
        file = io.BufferedWriter(_LossyFile(stream.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=True)


def _read_names_as_utf_8() -> None:
    """Start this process again with PYTHONUTF8=1 if its locale has another encoding; tables of photos are in UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def _exit_code(argv: Sequence[str] | None, prog: str, only: str | None) -> int:
    # Before torch and numpy are imported: their threads would spin while they wait for work.  When other threads or
    # processes load photos on the same cores, that makes a training step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # lower case: in a Turkish locale, libgomp rejects PASSIVE
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the binary logarithm of a number of cycles; 4 is the least
    try:
        with end_on_signals(owns_process=argv is None):
            if sys.getfilesystemencoding() != "utf-8":
                encoding = sys.getfilesystemencoding()
                raise ConfigError(f"File names are read as {encoding}, not as UTF-8. Set PYTHONUTF8=1.")
            shown, words = take_terminal_settings(list(sys.argv[1:] if argv is None else argv))
            set_terminal(shown)
            code = _run(words, prog, only)
            sys.stdout.flush()
            return code
    except CosPlaceError as error:
        return _report(error)
    except StopRequest as stop:
        print(stop, file=sys.stderr)
        return EXIT_SIGNAL + stop.signal_number
    except KeyboardInterrupt as error:
        interruption = error if isinstance(error, Interruption) else Interruption()
        print(interruption, file=sys.stderr)
        return EXIT_SIGNAL + interruption.number
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path that is too long, or that this user may not read or write
        if error.filename is None and error.errno in FULL_DISK:
            return _report(
                StorageError(f"Cannot write the output: {error.strerror}. Free some space, or use another disk.")
            )
        if error.filename is None:
            raise
        path = os.fsdecode(error.filename)
        return _report(ConfigError(f"Cannot use {path}: {error.strerror}. Check the path and its permissions."))


def _run(words: list[str], prog: str, only: str | None) -> int:
    command = COSPLACE if only is None else COSPLACE.find_action(only)
    assert command is not None
    while command.actions:
        word = words[0] if words else command.default_action
        if word in ("-h", "--help"):
            print(help_text(command, prog), end="")
            return 0
        if word == "--version" and command is COSPLACE:
            print(f"cosplace {__version__}")
            return 0
        if not word:
            print(help_text(command, prog), end="")
            return EXIT_USER_ERROR
        action = command.find_action(word)
        if action is None and word.startswith("-"):
            raise ConfigError(about_missing_action(word, command, prog))
        if action is None:
            raise ConfigError(about_unknown_action(word, command, prog))
        command, words, prog = action, words[1:], f"{prog} {word}"
    try:
        config, given = parse_words(command, words, prog, COSPLACE)
    except HelpRequested:
        print(help_text(command, prog), end="")
        return 0
    with advise_only(flag_names(command) | set(TERMINAL_FLAGS)):
        try:
            with log_to_terminal(), explain_memory_errors(to_values(config)):
                command(config, given)
        except CosPlaceError as error:
            return _report(error)
    return 0


def _report(error: CosPlaceError) -> int:
    """Print an error in one line; returns the exit code."""
    log.debug("stopped", exc_info=True)
    print_error(str(error))
    return error.exit_code
