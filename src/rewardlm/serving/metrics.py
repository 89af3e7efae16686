"""What the server counts, for Prometheus: no label of any figure comes from a request's text, key or address."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rewardlm.serving.batching import BatchWatch
from rewardlm.types import Verdict

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Figures of one server, in a registry of their own."""

    def __init__(self, judges: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        names = list(judges)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"rewardlm_{name}", what, labels, registry=self._registry)

        self.requests = counter("requests", "Requests, by path and status.", "path", "status")
        self.texts = counter("texts", "Texts that were scored or could not be.", "judge")
        self.unscored = counter("unscored_texts", "Texts without a score.", "judge")
        self._seconds = Histogram(
            "rewardlm_request_seconds", "From a request's headers to its answer.", ("path",), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._waiting = Gauge("rewardlm_queue_texts", "Texts that wait.", registry=self._registry)
        self._sizes = Histogram(
            "rewardlm_batch_texts", "Different texts that a judge got at once.", ("judge",), buckets=_SIZES,
            registry=self._registry,
        )  # fmt: skip
        self._batch_seconds = Histogram(
            "rewardlm_batch_seconds", "What a batch took.", ("judge",), buckets=_SECONDS, registry=self._registry
        )
        for name in names:
            # So that they are there, as 0, before the first text.
            for metric in (self.texts, self.unscored, self._sizes, self._batch_seconds):
                metric.labels(name)

    @property
    def watch(self) -> BatchWatch:
        """What the batcher tells."""

        def batch(judge: str, _texts: int, different: int, seconds: float) -> None:
            self._sizes.labels(judge).observe(different)
            self._batch_seconds.labels(judge).observe(seconds)

        return BatchWatch(batch, self._waiting.set)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request has its answer. ``path`` is that of a route, not what was asked."""
        self.requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def judged(self, judge: str, found: Iterable[Verdict]) -> None:
        """A request's texts were judged."""
        verdicts = list(found)
        self.texts.labels(judge).inc(len(verdicts))
        self.unscored.labels(judge).inc(sum(not verdict.values for verdict in verdicts))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
