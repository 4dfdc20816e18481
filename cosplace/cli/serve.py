"""cosplace serve."""

import argparse
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command
from cosplace.cli.console import say
from cosplace.errors import ConfigError
from cosplace.server import ServerSettings, require_extra, serve

TOKEN_VARIABLE = "COSPLACE_TOKEN"
DEFAULTS = ServerSettings()


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", required=True, metavar="INDEX", help="made by `cosplace index build`")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--precision", type=float, default=None, help="answers below it become `unknown`, such as 0.95")
    parser.add_argument("--min_confidence", type=float, default=None, help="the same by the confidence of one answer")
    parser.add_argument("--uncalibrated", action="store_true", help="take an index without calibration as it is")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model from a hub")
    _add_address(parser.add_argument_group("address"))
    _add_limits(parser.add_argument_group("limits"))
    parser.set_defaults(run=_serve)


def _add_address(group: Any) -> None:
    group.add_argument("--host", default=DEFAULTS.host, help="address to listen on (default: this machine only)")
    group.add_argument("--port", type=int, default=DEFAULTS.port, help="0 for any free one (default: 8000)")
    group.add_argument(
        "--token",
        default=None,
        help=f"who shows it may add and delete photos; better in {TOKEN_VARIABLE}, which other users of the machine "
        "do not see (default: nobody writes)",
    )
    group.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="more names of this server, as behind a proxy"
    )
    group.add_argument("--tiles", default=None, metavar="URL", help="map tiles, with {z}, {x}, {y} (default: none)")
    group.add_argument("--attribution", default="", help="what the map says of its tiles")


def _add_limits(group: Any) -> None:
    for name, text in (
        ("max_upload_mb", "of one photo, in MB"),
        ("max_pixels", "of one photo, refused before decoding"),
        ("max_files", "photos of one request"),
        ("max_side", "where the index keeps photos at their own size: pixels of the shorter side"),
        ("max_batch", "photos that pass the network at once"),
        ("batch_wait_ms", "how long a photo waits for company, in ms"),
        ("max_queue", "photos in line; more are told to come back (429)"),
        ("time_limit_s", "of one request, its upload included, in s"),
        ("decoding_threads", "threads that decode photos"),
        ("max_connections", "at one time"),
        ("refresh_s", "how often the index is asked for what others wrote, in s; 0: never"),
    ):
        default = getattr(DEFAULTS, name)
        group.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default:,})")


def _serve(values: dict[str, Any]) -> None:
    require_extra()
    index = values.pop("index")
    names = ("device", "precision", "min_confidence", "uncalibrated", "trust_remote_code")
    own = {name: values.pop(name) for name in names}
    token = values.pop("token") or os.environ.get(TOKEN_VARIABLE) or None
    if values["attribution"] and not values["tiles"]:
        raise ConfigError("--attribution belongs to --tiles: give both.")
    settings = ServerSettings(token=token, allowed_hosts=tuple(values.pop("allowed_hosts")), **values)
    serve_index(index, settings, **own)


def serve_index(index: str | Path, settings: ServerSettings = DEFAULTS, **own: Any) -> None:
    """Serve until the process is told to stop."""
    with _json_log():
        serve(index, settings, announce=lambda address: say(f"serving {index} at {address}"), **own)


@contextmanager
def _json_log() -> Generator[None]:
    """Within: what the server tells goes to stderr, one JSON object a line."""
    from cosplace.server.middleware import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    levels = {"cosplace.server": logging.INFO, "uvicorn": logging.WARNING, "py.warnings": logging.WARNING}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = [(logger, logger.propagate, logger.level) for logger in loggers]
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, propagate, level in before:
            logger.removeHandler(handler)
            logger.propagate, logger.level = propagate, level


COMMANDS = (
    Command(
        name="serve",
        text="Serve an index: the map in a browser, and a REST API that says where photos were taken.",
        add=_add_serve,
    ),
)
