"""cosplace serve."""

import dataclasses
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import print_result
from cosplace.config.server import TOKEN_VARIABLE, ServeConfig
from cosplace.errors import ConfigError

if TYPE_CHECKING:
    from cosplace.server import ServerSettings


def run_serve(config: ServeConfig) -> None:
    """Serve an index until the process is stopped."""
    from cosplace.server import ServerSettings, require_extra

    require_extra()
    options = dataclasses.asdict(config.server)
    if options["attribution"] and not options["tiles"]:
        raise ConfigError("--attribution has an effect only with --tiles. Add --tiles, or omit --attribution.")
    options["token"] = options["token"] or os.environ.get(TOKEN_VARIABLE) or None
    serve_index(
        config.index,
        ServerSettings(**options),
        device=config.device.device,
        precision=config.confidence.precision,
        min_confidence=config.confidence.min_confidence,
        uncalibrated=config.confidence.uncalibrated,
        trust_remote_code=config.device.trust_remote_code,
    )


def serve_index(index: str | Path, settings: "ServerSettings | None" = None, **options: Any) -> None:
    """Serve an index until the process is stopped.  options: those of Localizer."""
    from cosplace.localization.localizer import Localizer
    from cosplace.server import serve

    with _json_log():
        localizer = Localizer(index, **options)
        serve(localizer, settings, announce=lambda address: print_result(f"Serving {index} at {address}"))


@contextmanager
def _json_log() -> Generator[None]:
    """Within: the log of the server goes to stderr, one JSON object per line."""
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
