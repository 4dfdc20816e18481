"""cosplace serve."""

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import print_result
from cosplace.config.server import NO_TILES, TOKEN_VARIABLE, ServeConfig
from cosplace.errors import ConfigError

if TYPE_CHECKING:
    from cosplace.server import ServerSettings


def run_serve(config: ServeConfig) -> None:
    """Serve an index until the process is stopped."""
    from cosplace.server import ServerSettings, require_extra

    require_extra()
    options = dataclasses.asdict(config.server)
    if options["attribution"] and options["tiles"] in (None, NO_TILES):
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
        model=config.model,
        roots=config.root,
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
    """Within: all log lines, warnings and tracebacks of this process go to stderr, one JSON object per line."""
    from cosplace.server.middleware import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    levels = {"cosplace": logging.INFO, **dict.fromkeys(("uvicorn", "asyncio", "py.warnings"), logging.WARNING)}
    loggers = {logging.getLogger(name): level for name, level in levels.items()}
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger, level in loggers.items():
        handlers: list[logging.Handler] = [handler]
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(level)
    logging.captureWarnings(True)
    thread_hook, threading.excepthook = threading.excepthook, _log_thread_error
    try:
        yield
    finally:
        threading.excepthook = thread_hook
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _log_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Log an exception that ends a thread."""
    error = (failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    logging.getLogger("cosplace.server").error("a thread failed", exc_info=error, extra={"event": "bug"})
