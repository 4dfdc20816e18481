"""Prometheus metrics.  Each app has its own registry, so several apps can run in one process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})


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
        self.body_bytes = Gauge("cosplace_body_bytes", "Bytes of request bodies in memory.", registry=self.registry)
        self.queued = Gauge("cosplace_queue_photos", "Photos accepted and not yet answered.", registry=self.registry)
        self.indexed = Gauge("cosplace_index_photos", "Photos in the index.", registry=self.registry)

    def set_gauges(
        self, *, queued: Callable[[], float], indexed: Callable[[], float], body_bytes: Callable[[], float]
    ) -> None:
        """Set the functions that are called for the three gauges at each scrape."""
        self.queued.set_function(queued)
        self.indexed.set_function(indexed)
        self.body_bytes.set_function(body_bytes)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request.  Unknown methods share one label, so a client cannot create time series."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)
