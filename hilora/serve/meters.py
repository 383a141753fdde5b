"""What happens, counted for Prometheus. Names of adapters only of public ones, and only so many."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hilora.serve.asked import Ask, Why

NAMES = 100
"""Adapters that are counted by name; all others together as "other"."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counts(Collector):
    """Numbers that only grow, counted elsewhere, by a label; read when they are asked for."""

    def __init__(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        self.name, self.about, self.label, self.read = name, about, label, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For Prometheus."""
        found = CounterMetricFamily(self.name, self.about, labels=[self.label] if self.label else [])
        for value, count in self.read().items():
            found.add_metric([value] if self.label else [], count)
        yield found


class _AtWork(Collector):
    """One number, when it was read, whose labels say it all."""

    def __init__(self, read: Callable[[], tuple[Iterable[str], Iterable[str]]], most: int) -> None:
        self.read, self.most = read, most

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For Prometheus."""
        labels = ["running_lora_adapters", "waiting_lora_adapters", "max_lora"]
        found = GaugeMetricFamily("vllm:lora_requests_info", "Adapters at work, and waited for", labels=labels)
        running, waiting = (",".join(sorted(set(names))[:NAMES]) for names in self.read())
        found.add_metric([running, waiting, str(self.most)], time.time())
        yield found


class Shown:
    """Numbers that `/metrics` shows.

    Attributes:
        registry: all of them.
    """

    prefix: ClassVar[str] = ""
    """Of the names of those that are read elsewhere."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Show a number that is read when it is asked for."""
        Gauge(f"{self.prefix}{name}", about, registry=self.registry).set_function(read)

    def watch_counts(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Show numbers that only grow, by a label, likewise."""
        self.registry.register(Counts(f"{self.prefix}{name}", about, label, read))

    def page(self) -> tuple[bytes, str]:
        """What `/metrics` answers, and its type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Meters(Shown):
    """Counts what happens in one server."""

    def __init__(self) -> None:
        super().__init__()
        own = self.registry
        self._requests = Counter("hilora_requests", "Requests that came", ["model"], registry=own)
        self._refused = Counter("hilora_refused", "Requests that were refused", ["why"], registry=own)
        self._ends = Counter("hilora_answers", "Answers that ended", ["finish_reason"], registry=own)
        self._prompt = Counter("hilora_prompt_tokens", "Tokens of prompts", registry=own)
        self._new = Counter("hilora_generation_tokens", "Tokens of answers", registry=own)
        self._first = Histogram("hilora_first_token_seconds", "To the first token", buckets=SECONDS, registry=own)
        self._more = Histogram("hilora_token_seconds", "A token more", buckets=SECONDS, registry=own)
        self._whole = Histogram("hilora_answer_seconds", "To the whole answer", buckets=SECONDS, registry=own)
        self._waited = Histogram("hilora_waiting_seconds", "In the line", buckets=SECONDS, registry=own)
        self._select = Histogram("hilora_selection_seconds", "Routing a batch", buckets=SECONDS, registry=own)
        self._set = Histogram("hilora_candidates", "Adapters of a prompt", buckets=range(9), registry=own)
        self._unseen = Counter("hilora_unseen", "Prompts that no adapter knows", registry=own)
        self._served = Counter("hilora_adapter_prompts", "Prompts by adapter", ["adapter"], registry=own)
        self._uploads = Counter("hilora_uploads", "Uploads by their fate", ["state", "reason"], registry=own)
        self._check = Histogram("hilora_check_seconds", "Checking an upload", buckets=SECONDS, registry=own)
        self._removed = Counter("hilora_removals", "Adapters taken out over HTTP", ["whose"], registry=own)
        self._named: set[str] = set()
        self._recent: deque[float] = deque(maxlen=64)

    def watch_count(self, name: str, about: str, read: Callable[[], int]) -> None:
        """Show a number that only grows, likewise."""
        self.watch_counts(name, about, "", lambda: {"": read()})

    def watch_adapters(self, read: Callable[[], tuple[Iterable[str], Iterable[str]]], most: int) -> None:
        """Show which adapters are at work and which are waited for, in the form that fleet schedulers know of vLLM.

        Args:
            read: gives names of both, of adapters that are everybody's.
            most: requests that share a step, and so adapters that may be at work at the least.
        """
        self.registry.register(_AtWork(read, most))

    def came(self, ask: Ask) -> None:
        """A request."""
        self._requests.labels(ask.model if ask.model in ("auto", "base") else "adapter").inc()

    def refused(self, why: str) -> None:
        """A request that is not served, by one word."""
        self._refused.labels(why).inc()

    def failed(self, error: BaseException) -> None:
        """The same, by what was raised."""
        self.refused(reason_of(error))

    def uploaded(self, state: str, reason: str = "") -> None:
        """The fate of an upload is known: live, refused or failed, and why by one word."""
        self._uploads.labels(state, reason).inc()

    def checked(self, seconds: float) -> None:
        """A check has ended, whatever it said."""
        self._check.observe(seconds)

    def removed(self, tenant: str) -> None:
        """An adapter was taken out; whose it was is told only as far as it was everybody's or not."""
        self._removed.labels("tenant" if tenant else "everybody").inc()

    def selected(self, seconds: float, prompts: int) -> None:
        """Some prompts were routed together."""
        self._select.observe(seconds)

    def routed(self, why: Why, names: Sequence[str]) -> None:
        """A prompt has its adapters, under names that anybody may read."""
        self._prompt.inc(why.prompt_tokens)
        self._set.observe(len(why.choices))
        self._unseen.inc(bool(why.choices) and why.choices[0].seen is False)
        for name in names:
            if name not in self._named and len(self._named) >= NAMES:
                self._served.labels("other").inc()
                continue
            self._named.add(name)
            self._served.labels(name).inc()

    def began(self, came: float) -> None:
        """A request leaves the line; when it came, by `time.perf_counter`."""
        self._waited.observe(time.perf_counter() - came)

    def answered(self, came: float, first: float | None, tokens: int, reason: str) -> None:
        """An answer is complete.

        Args:
            came: when the request did.
            first: when the first token was there; None where nobody looked.
            tokens: of the answer.
            reason: why it ended.
        """
        now = time.perf_counter()
        self._ends.labels(reason).inc()
        self._new.inc(tokens)
        self._whole.observe(now - came)
        if first is not None:
            self._first.observe(first - came)
            if tokens > 1:
                self._more.observe((now - first) / (tokens - 1))

    def worked(self, seconds: float) -> None:
        """A request is answered, so long after it left the line."""
        self._recent.append(seconds)

    @property
    def typical_seconds(self) -> float:
        """From the line to the whole answer, lately; 1 where none is known."""
        return sorted(self._recent)[len(self._recent) // 2] if self._recent else 1.0


def reason_of(error: BaseException) -> str:
    """One word for what was raised."""
    return getattr(error, "code", None) or type(error).__name__
