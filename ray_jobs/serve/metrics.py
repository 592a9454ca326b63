"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """One registry per server, so that two in a process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.open = Gauge("guardmill_streams_open", "streams open now", registry=registry)
        self.streams = Counter("guardmill_streams", "streams opened", ["route"], registry=registry)
        self.refused = Counter("guardmill_refused", "requests refused", ["reason"], registry=registry)
        self.flagged = Counter(
            "guardmill_flagged", "texts flagged", ["side", "risk", "category"], registry=registry
        )
        self.tokens = Counter("guardmill_tokens", "tokens judged", registry=registry)
        self.steps = Histogram(
            "guardmill_step_seconds",
            "a forward step over all waiting streams",
            buckets=SECONDS,
            registry=registry,
        )
        self.together = Histogram(
            "guardmill_step_streams", "streams in a step", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )

    def step(self, seconds: float, tokens: int, streams: int) -> None:
        self.steps.observe(seconds)
        self.together.observe(streams)
        self.tokens.inc(tokens)

    def flag(self, side: str, verdict: dict) -> None:
        self.flagged.labels(side, verdict.get("risk_level", "refused"), verdict.get("category", "")).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
