"""Figures for Prometheus: how long people wait, for what, and how much there is to do."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pellucid.generation.engine import Engine
from pellucid.serving.writing import Following

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One server's figures. Those of texts are noted on the engine's thread, the others on the event loop's."""

    def __init__(self) -> None:
        self.registry = all_of_it = CollectorRegistry()

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pellucid_{name}_seconds", meaning, buckets=buckets, registry=all_of_it)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"pellucid_{name}", meaning, labels, registry=all_of_it)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"pellucid_{name}", meaning, registry=all_of_it)

        self.queued = histogram("queue", "from a text's arrival to its place in the engine", LONG)
        self.first = histogram("time_to_first_token", "from a text's arrival to its first token", LONG)
        self.between = histogram("inter_token", "between two tokens of a text", SHORT)
        self.took = histogram("request_duration", "from a request's arrival to the end of its answer", LONG)
        self.running = gauge("texts_running", "texts that the engine reads or writes")
        self.waiting = gauge("texts_waiting", "texts that wait for a place in the engine")
        self.cache = gauge("cache_used_ratio", "share of the engine's slots that texts under way have filled")
        self.prompts = counter("prompt_tokens", "tokens of prompts")
        self.cached = counter("cached_tokens", "tokens of prompts that were remembered from earlier ones")
        self.written = counter("completion_tokens", "tokens written")
        self.finished = counter("finished", "texts by how they ended", "reason")
        self.requests = counter("requests", "requests by path and status", "path", "status")
        self.rejected = counter("rejected", "requests that were refused, by the code of the error", "code")

    def progressed(self, following: Following, now: float) -> None:
        """Note the times of a text that got tokens or ended."""
        text, written = following.text, len(following.text.tokens) - following.counted
        if following.first is None:
            following.first = now
            self.queued.observe((following.admitted or now) - following.added)
            self.first.observe(now - following.added)
            self.prompts.inc(len(text.request.prompt))
            self.cached.inc(text.cached)
        elif following.last is not None:
            for _ in range(written):  # of tokens that were guessed, and came in one step, each is given its share
                self.between.observe((now - following.last) / written)
        following.last, following.counted = now, len(text.tokens)
        self.written.inc(written)
        if text.finish_reason:
            self.finished.labels(text.finish_reason).inc()

    def watch(self, engine: Engine, capacity: int) -> None:
        """Read, whenever figures are asked for, how much an engine has to do; all its slots hold `capacity` tokens."""

        def held() -> float:
            texts = [place.text for place in engine.places]
            return sum(len(text.request.prompt) + len(text.tokens) for text in texts) / capacity

        self.running.set_function(lambda: len(engine.places))
        self.waiting.set_function(lambda: len(engine.waiting))
        self.cache.set_function(held)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
