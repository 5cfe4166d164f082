"""What the gateway counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class GatewayMetrics:
    """Counters of one application, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = Counter(
            "slmrank_gateway_requests", "requests by route and status",
            ["route", "status"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "slmrank_gateway_seconds", "seconds of a request",
            ["route"], registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.documents = Counter(
            "slmrank_gateway_documents", "documents by how scoring ended",
            ["status"], registry=registry,
        )  # fmt: skip

    def page(self) -> bytes:
        return generate_latest(self._registry)
