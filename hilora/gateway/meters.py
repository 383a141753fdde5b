"""What happens in a gateway, counted for Prometheus. Backends are numbers, in the order in which they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import Counter, Gauge, Histogram

from hilora.gateway.job import Clock
from hilora.serve.meters import SECONDS, Shown, reason_of

SHORT = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)


class Meters(Shown):
    """Counts."""

    prefix = "hilora_gateway_"

    def __init__(self) -> None:
        super().__init__()
        own = self.registry
        self._requests = Counter("hilora_gateway_requests", "Requests that came", ["model"], registry=own)
        self._refused = Counter("hilora_gateway_refused", "Requests that failed", ["why"], registry=own)
        labels = ["backend", "outcome"]
        self._asked = Counter("hilora_gateway_asked", "Requests to backends", labels, registry=own)
        self._retries = Counter("hilora_gateway_retries", "Requests asked again", registry=own)
        self._gone = Counter("hilora_gateway_gone", "Clients that left before their answer", registry=own)
        self._own = Histogram(
            "hilora_gateway_overhead_seconds", "Of the gateway itself, by request", buckets=SHORT, registry=own
        )
        self._parts = {
            what: Histogram(f"hilora_gateway_{what}_seconds", about, buckets=SECONDS, registry=own)
            for what, about in (
                ("routing", "Routing a prompt, with waiting for it"),
                ("waiting", "In the line for a backend"),
                ("loading", "Writing and loading an adapter, where that was needed"),
                ("backend", "At the backend"),
            )
        }

    def watch_gauges(self, name: str, about: str, label: str, read: Mapping[str, Callable[[], float]]) -> None:
        """Show numbers by a label, likewise."""
        gauge = Gauge(f"{self.prefix}{name}", about, [label], registry=self.registry)
        for value, each in read.items():
            gauge.labels(value).set_function(each)

    def came(self, model: str) -> None:
        """A request."""
        self._requests.labels(model if model in ("auto", "base") else "adapter").inc()

    def failed(self, error: BaseException) -> None:
        """A request that is not answered, by one word for what was raised."""
        self._refused.labels(reason_of(error)).inc()

    def asked(self, backend: int, outcome: str) -> None:
        """A backend was asked."""
        self._asked.labels(str(backend), outcome).inc()

    def retried(self) -> None:
        """A request is asked again."""
        self._retries.inc()

    def left(self) -> None:
        """A client has left."""
        self._gone.inc()

    def answered(self, clock: Clock) -> None:
        """A request has ended: where its time went."""
        self._own.observe(clock.own)
        for what, seconds in clock.spent.items():
            self._parts[what].observe(seconds)
