"""From a command line to an exit code."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from cosplace import __version__
from cosplace.cli import demo as trying
from cosplace.cli import export, index, locate, models, serve, zoo
from cosplace.cli import training as learning
from cosplace.cli.arguments import Formatter, Parser, parse_arguments
from cosplace.cli.console import console
from cosplace.errors import CosPlaceError

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
COMMANDS = (
    *learning.COMMANDS,
    *zoo.COMMANDS,
    *models.COMMANDS,
    *export.COMMANDS,
    *index.COMMANDS,
    *locate.COMMANDS,
    *serve.COMMANDS,
    *trying.COMMANDS,
)

log = logging.getLogger("cosplace")


def build_parser(prog: str = "cosplace", only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, or of one (`only`) for the scripts train.py and eval.py."""
    if only:
        command = next(command for command in COMMANDS if command.name == only)
        parser = Parser(prog=prog, description=command.text, formatter_class=Formatter)
        command.add(parser)
        return parser
    parser = Parser(
        prog=prog,
        description="Recognise places from photos (CosPlace, CVPR 2022): train, evaluate, index, locate.",
        epilog="Start with `cosplace demo`.  Each command explains itself: `cosplace train --help`.",
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"cosplace {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(
            commands.add_parser(command.name, help=command.text, description=command.text, formatter_class=Formatter)
        )
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "cosplace", only: str | None = None) -> int:
    """Run a command line; returns its exit code."""
    # Before torch is imported: its threads would spin while they wait for each other, and where loading processes share
    # the cores that made a training step ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser(prog, only)
    try:
        arguments = parse_arguments(parser, list(sys.argv[1:] if argv is None else argv), only)
        if arguments is None:
            parser.print_help()
            return EXIT_USER_ERROR
        with console():
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
