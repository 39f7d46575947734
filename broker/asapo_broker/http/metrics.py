"""Numbers of all services as Prometheus shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Numbers = Iterable[tuple[str, Mapping[str, str], float]]


class ServiceMetrics(Collector):
    """Numbers of several services, each told apart by its labels."""

    def __init__(self, services: Iterable[tuple[Mapping[str, str], Numbers]]) -> None:
        self._services = list(services)

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each name, with the samples of all services."""
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for service_labels, numbers in self._services:
            for name, labels, value in numbers:
                samples.setdefault(name, []).append(({**service_labels, **labels}, float(value)))
        for name, found in sorted(samples.items()):
            label_names = sorted({label for labels, _ in found for label in labels})
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family: Any = kind(name, f"See the metrics reference: {name}.", labels=label_names)
            for labels, value in found:
                family.add_metric([labels.get(label, "") for label in label_names], value)
            yield family


def exposition(services: Iterable[tuple[Mapping[str, str], Numbers]]) -> bytes:
    """Return the text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(ServiceMetrics(services))
    return generate_latest(registry)
