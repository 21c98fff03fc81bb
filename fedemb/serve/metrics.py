"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Fine around the 20 ms that a look-up may take.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass(frozen=True)
class Metrics:
    """What is counted.

    Attributes:
        registry: Holds all of it.
        requests: By route, method and status.
        latency: Seconds to the end of an answer, by route.
        accepted: Interactions on the disk.
        refused: Interactions that found no room.
        applied: Interactions that a version knows.
        rejected: Interactions whose window was left out because it led to numbers that are none.
        window_seconds: What applying a window takes.
    """

    registry: CollectorRegistry
    requests: Counter
    latency: Histogram
    accepted: Counter
    refused: Counter
    applied: Counter
    rejected: Gauge
    window_seconds: Histogram

    @staticmethod
    def make() -> Metrics:
        """Everything at zero."""
        registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"fedemb_{name}", what, labels, registry=registry)

        return Metrics(
            registry=registry,
            requests=counter("requests", "Requests answered", "route", "method", "status"),
            latency=Histogram(
                "fedemb_request_seconds", "Seconds to the end of an answer", ["route"], buckets=_SECONDS,
                registry=registry,
            ),
            accepted=counter("interactions_accepted", "Interactions on the disk"),
            refused=counter("interactions_refused", "Interactions that found no room in the queue"),
            applied=counter("interactions_applied", "Interactions that a version knows"),
            rejected=Gauge(
                "fedemb_interactions_rejected", "Interactions of windows that led to no numbers", registry=registry
            ),
            window_seconds=Histogram(
                "fedemb_window_seconds", "Seconds to apply a window", buckets=_SECONDS, registry=registry
            ),
        )  # fmt: skip

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        Gauge(f"fedemb_{name}", what, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
