"""cosplace serve."""

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import print_result
from cosplace.config.server import NO_TILES, TOKEN_VARIABLE, ServeConfig
from cosplace.errors import ConfigError, CosPlaceError

if TYPE_CHECKING:
    from cosplace.server import ServerSettings
    from cosplace.server.workers import Worker


def run_serve(config: ServeConfig) -> None:
    """Serve an index until the process is stopped."""
    from cosplace.server import ServerSettings, require_extra

    # Before numpy is imported: its products are small here, and more threads would take cores from the network.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    require_extra()
    options = dataclasses.asdict(config.server)
    if options["attribution"] and options["tiles"] in (None, NO_TILES):
        raise ConfigError("--attribution has an effect only with --tiles. Add --tiles, or omit --attribution.")
    options["token"] = options["token"] or os.environ.get(TOKEN_VARIABLE) or None
    settings = ServerSettings(**options)
    localizer_options = {
        "device": config.device.device,
        "precision": config.confidence.precision,
        "min_confidence": config.confidence.min_confidence,
        "uncalibrated": config.confidence.uncalibrated,
        "trust_remote_code": config.device.trust_remote_code,
        "model": config.model,
        "roots": config.root,
        "engine": config.engine,
    }
    if settings.workers == 1:
        serve_index(config.index, settings, **localizer_options)
        return
    from cosplace.server.workers import serve_with_workers

    with _json_log():
        serve_with_workers(
            _run_worker, settings, (config.index, localizer_options), announce=partial(_announce, config.index)
        )


def serve_index(index: str | Path, settings: "ServerSettings | None" = None, **options: Any) -> None:
    """Serve an index until the process is stopped.  options: those of Localizer."""
    from cosplace.localization.localizer import Localizer
    from cosplace.server import serve

    with _json_log():
        serve(Localizer(index, **options), settings, announce=partial(_announce, index))


def _announce(index: str | Path, address: str) -> None:
    print_result(f"Serving {index} at {address}")


def _run_worker(worker: "Worker", settings: "ServerSettings", index: str, options: dict[str, Any]) -> None:
    """Serve as one of several processes."""
    worker.prepare()
    with _json_log():
        try:
            from cosplace.localization.localizer import Localizer
            from cosplace.server import serve

            serve(Localizer(index, **options), settings, announce=lambda _: worker.report(), worker=worker)
        except CosPlaceError as error:
            worker.report(str(error))


@contextmanager
def _json_log() -> Generator[None]:
    """Within: all log lines, warnings and tracebacks of this process go to stderr, one JSON object per line."""
    from cosplace.server.json_lines import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    levels = {"cosplace": logging.INFO, **dict.fromkeys(("uvicorn", "asyncio", "py.warnings"), logging.WARNING)}
    levels |= dict.fromkeys(("python_multipart", "multipart"), logging.ERROR)  # warnings are about a request: a 400
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
