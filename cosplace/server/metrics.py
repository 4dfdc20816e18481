"""What Prometheus reads from /metrics; each app has a registry of its own, so several live in one process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})


class Metrics:
    """Counters of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, files, processor seconds of the process
        self.requests = Counter(
            "cosplace_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cosplace_request_seconds",
            "From a request's header to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.photos = Counter(
            "cosplace_photos", "Uploaded photos by outcome.", ["outcome"], registry=self.registry
        )  # located, unknown, refused, expired, failed
        self.stages = Histogram(
            "cosplace_stage_seconds",
            "decode and wait: of a photo; describe and locate: of a batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "cosplace_batch_photos", "Photos that passed the network together.", buckets=COUNTS, registry=self.registry
        )
        self.bodies = Gauge("cosplace_body_bytes", "Bytes of bodies being read.", registry=self.registry)
        self.queue = Gauge("cosplace_queue_photos", "Photos accepted and not yet answered.", registry=self.registry)
        self.indexed = Gauge("cosplace_index_photos", "Photos in the index.", registry=self.registry)

    def watch(self, *, queue: Callable[[], float], indexed: Callable[[], float], bodies: Callable[[], float]) -> None:
        """Read these three when they are asked for."""
        self.queue.set_function(queue)
        self.indexed.set_function(indexed)
        self.bodies.set_function(bodies)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; methods of one's own invention share a name, so that there are few series."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self.registry)
