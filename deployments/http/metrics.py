"""Metrics: what Prometheus reads. Everything is told as it is at the moment of asking; nothing is kept here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deployments.http.parts import HttpParts, within
from tasks.domain.alerts import ALERT_NAMES, STALE_AFTER
from tasks.domain.errors import PipelineError
from tasks.domain.meters import BUCKETS_S, Kind, merged
from tasks.domain.probes import PROBES

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WITHIN_S = 3.0
_WINDOW = timedelta(minutes=5)
_KINDS: tuple[Kind, ...] = ("embed", "search", "http")
SLO_SPAN = timedelta(days=30)


def make_routes(parts: HttpParts, require_admin: Callable[[Request], None]) -> APIRouter:
    """Return the route that Prometheus scrapes, with the admin token as a bearer."""
    routes = APIRouter(tags=["metrics"])

    @routes.get("/metrics", dependencies=[Depends(require_admin)], response_class=Response)
    def metrics() -> Response:
        """Return all metrics in Prometheus's text format; parts that don't answer are told as down."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(PipelineMetrics(parts))
        return Response(generate_latest(registry), media_type=_CONTENT_TYPE)

    return routes


class PipelineMetrics(Collector):
    """The metrics of one moment. Labels are names of probes, alerts, kinds and codes: never an id or a tenant."""

    def __init__(self, parts: HttpParts) -> None:
        self._parts = parts
        self._now = datetime.now(UTC)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what is there is known when it was asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; each group that can't be read is left out, and told by ``cryptique_scrape_ok``."""
        groups: dict[str, Callable[[], list[Metric]]] = {
            "monitor": self._of_monitor,
            "requests": self._of_requests,
            "store": self._of_store,
        }
        ok = GaugeMetricFamily("cryptique_scrape_ok", "1 where this group of metrics could be read", labels=["group"])
        for name, read in groups.items():
            try:
                found = within(_WITHIN_S, read)
            except PipelineError:
                ok.add_metric([name], 0)
                continue
            ok.add_metric([name], 1)
            yield from found
        yield ok

    def _of_monitor(self) -> list[Metric]:
        book = self._parts.book
        up = GaugeMetricFamily("cryptique_up", "1 well, 0 failed; missing: unknown or not looked at", labels=["probe"])
        age = GaugeMetricFamily("cryptique_probe_age_seconds", "Since when nobody looked", labels=["probe"])
        figures = GaugeMetricFamily("cryptique_probe", "What a probe measured", labels=["probe", "figure"])
        latest = book.read_latest()
        for name in PROBES:
            reading = latest.get(name)
            if reading is None:
                continue
            age.add_metric([name], (self._now - reading.at).total_seconds())
            if self._now - reading.at > STALE_AFTER:
                continue
            if reading.verdict != "unknown":
                up.add_metric([name], float(reading.verdict == "ok"))
            for figure, value in sorted(reading.figures.items()):
                figures.add_metric([name, figure], value)
        opened = {alert.name: alert for alert in book.read_open_alerts()}
        alerts = GaugeMetricFamily("cryptique_alert", "1 while the alert is open", labels=["name"])
        for name in ALERT_NAMES:
            alerts.add_metric([name], float(name in opened))
        looks = book.count_looks(self._now - SLO_SPAN, self._now)
        found: list[Metric] = [up, age, figures, alerts]
        if looks.availability is not None:
            share = GaugeMetricFamily("cryptique_availability", "Share of 30 days in which all vital parts answered")
            share.add_metric([], looks.availability)
            left = GaugeMetricFamily("cryptique_error_budget_left_seconds", "What is left of 0.1 % of 30 days")
            left.add_metric([], looks.budget_left_s())
            found += [share, left]
        return found

    def _of_requests(self) -> list[Metric]:
        measures = self._parts.vectors.read_measures(self._now - _WINDOW)
        seconds = HistogramMetricFamily(
            "cryptique_request_seconds", "Durations of the last five minutes, all processes", labels=["kind"]
        )
        failed = GaugeMetricFamily(
            "cryptique_requests_failed", "Failures of the last five minutes", labels=["kind", "code"]
        )
        texts = GaugeMetricFamily("cryptique_texts_embedded", "Texts embedded in the last five minutes")
        tokens = GaugeMetricFamily("cryptique_tokens_embedded", "Tokens embedded in the last five minutes")
        reused = GaugeMetricFamily("cryptique_texts_reused", "Texts that had a vector, in the last five minutes")
        for kind in _KINDS:
            one = merged(measures, kind)
            if one is None:
                continue
            total, buckets = 0, []
            for bound, number in zip(BUCKETS_S, one.buckets, strict=True):
                total += number
                buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
            seconds.add_metric([kind], buckets=buckets, sum_value=one.seconds)
            for code, number in sorted(one.errors.items()):
                failed.add_metric([kind, code], number)
            if kind == "embed":
                texts.add_metric([], one.texts)
                tokens.add_metric([], one.tokens)
                reused.add_metric([], one.reused)
        return [seconds, failed, texts, tokens, reused]

    def _of_store(self) -> list[Metric]:
        letters = GaugeMetricFamily("cryptique_dead_letters", "Open dead letters", labels=["code"])
        for code, number in self._parts.vectors.count_letters_by_code().items():
            letters.add_metric([code], number)
        return [letters]
