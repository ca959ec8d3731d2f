"""What Prometheus reads at /metrics."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = tuple(2**power for power in range(15))


class Metrics:
    """The measurements of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        known: dict[str, Any] = {"registry": self.registry, "namespace": "groundwork"}
        self.requests = Counter("requests", "Requests answered", ["path", "status"], **known)
        self.seconds = Histogram("request_seconds", "Time of a request", ["path"], buckets=SECONDS, **known)
        self.active = Gauge("active_requests", "Requests that are being answered", **known)
        self.waiting = Gauge("waiting_tokens", "Tokens that wait for the model", ["work"], **known)
        self.tokens = Counter(
            "tokens", "Tokens that the model read (embed, classify) or wrote (write)", ["work"], **known
        )
        self.rows = Histogram("batch_rows", "Rows of a batch", ["work"], buckets=SIZES, **known)
        self.dropped = Counter("dropped_requests", "Requests whose client went away", **known)

    def computed(self, work: str, rows: int, tokens: int) -> None:
        """A batch is done. `work`: embed, classify or write."""
        self.rows.labels(work).observe(rows)
        self.tokens.labels(work).inc(tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
