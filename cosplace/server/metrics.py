"""Prometheus metrics.  Each app has its own registry, so several apps can run in one process.

With several workers, they share their metrics through the files of prometheus_client's multiprocess mode, and any of
them answers with the sums: counters of workers that have ended are kept, gauges are those of the running ones.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from cosplace.server.failures import is_logged
from cosplace.server.workers import METRICS_VARIABLE

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARE_S = 1.0  # between two updates of the gauges that other workers read
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})

log = logging.getLogger("cosplace.server")


class Metrics:
    """Metrics of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, open files and CPU seconds of the process
        self.requests = Counter(
            "cosplace_requests", "Number of requests.", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "cosplace_request_seconds",
            "Time from a request's header to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.photos = Counter(
            "cosplace_photos", "Uploaded photos by outcome.", ["outcome"], registry=self.registry
        )  # located, unknown, refused, expired, failed
        self.stage_seconds = Histogram(
            "cosplace_stage_seconds",
            "Time of each stage; decode and wait: of one photo, describe and locate: of one batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_sizes = Histogram(
            "cosplace_batch_photos", "Photos per forward pass.", buckets=COUNTS, registry=self.registry
        )
        self.body_bytes = self._gauge("cosplace_body_bytes", "Bytes of request bodies in memory.", "livesum")
        self.queued = self._gauge("cosplace_queue_photos", "Photos accepted and not yet answered.", "livesum")
        self.indexed = self._gauge("cosplace_index_photos", "Photos in the index.", "livemax")
        self.values: dict[Gauge, Callable[[], float]] = {}

    def _gauge(self, name: str, text: str, of_workers: Literal["livesum", "livemax"]) -> Gauge:
        return Gauge(name, text, registry=self.registry, multiprocess_mode=of_workers)

    def set_gauges(
        self, *, queued: Callable[[], float], indexed: Callable[[], float], body_bytes: Callable[[], float]
    ) -> None:
        """Set the functions that are called for the three gauges at each scrape."""
        self.values = {self.queued: queued, self.indexed: indexed, self.body_bytes: body_bytes}

    def _update_gauges(self) -> None:
        for gauge, value in self.values.items():
            gauge.set(value())

    async def share_forever(self) -> None:
        """Keep the gauges of this process up to date for other workers that are scraped, also after errors."""
        num_failures = 0  # in a row
        while METRICS_VARIABLE in os.environ:
            try:
                self._update_gauges()
                num_failures = 0
            except Exception:
                num_failures += 1
                if is_logged(num_failures):
                    log.exception("metrics could not be shared with other workers", extra={"event": "metrics"})
            await asyncio.sleep(SHARE_S)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request.  Unknown methods share one label, so a client cannot create time series."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format, version 0.0.4."""
        self._update_gauges()
        registry = self.registry
        if METRICS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)
