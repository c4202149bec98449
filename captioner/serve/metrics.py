"""What a server counts, in Prometheus's format.

If `PROMETHEUS_MULTIPROC_DIR` names a folder, as `captioner serve` sets it for its workers, they count together.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)

_registry = CollectorRegistry()

requests = Counter("captioner_requests", "Requests by path and status.", ("path", "status"), registry=_registry)
request_seconds = Histogram(
    "captioner_request_seconds", "Time to the end of the response.", ("path",), registry=_registry, buckets=SECONDS
)
images = Counter("captioner_images", "Images by outcome: captioned, or why not.", ("outcome",), registry=_registry)
batch_size = Histogram("captioner_batch_size", "Images computed together.", registry=_registry, buckets=SIZES)
batch_seconds = Histogram("captioner_batch_seconds", "Time to compute a batch.", registry=_registry, buckets=SECONDS)
images_in_progress = Gauge(
    "captioner_images_in_progress",
    "Images that are admitted and not answered yet.",
    registry=_registry,
    multiprocess_mode="livesum",
)


def exposition() -> bytes:
    """All metrics in the text format, of all workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(_registry)
    of_all_workers = CollectorRegistry()
    MultiProcessCollector(of_all_workers)
    return generate_latest(of_all_workers)
