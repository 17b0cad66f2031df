"""The operations pages: the monitoring page, the same as JSON, the runbook; nothing on them comes from elsewhere."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.responses import HTMLResponse, RedirectResponse, Response

from deployments.http.charts import Point, bar_chart, line_chart
from deployments.http.overview import DAY, Cost, Overview, Throughput, read_overview
from deployments.http.parts import HttpParts
from deployments.http.problems import ProblemError

_HERE = Path(__file__).resolve().parent
_RUNBOOK = _HERE.parent / "runbook.md"
_ASSETS = {"monitoring.css": "text/css; charset=utf-8", "monitoring.js": "text/javascript; charset=utf-8"}


def make_routes(parts: HttpParts) -> APIRouter:
    """Return the routes of the pages; whoever mounts them sees to it that only admins pass."""
    routes = APIRouter(prefix="/admin", tags=["operations"])
    templates = _templates()

    @routes.get("", include_in_schema=False)
    def home() -> RedirectResponse:
        """Lead to the monitoring page."""
        return RedirectResponse("/admin/monitoring")

    @routes.get("/monitoring", response_class=HTMLResponse)
    def monitoring() -> HTMLResponse:
        """Return the page as it is now."""
        overview = read_overview(parts, now=datetime.now(UTC))
        return HTMLResponse(render(overview))

    @routes.get("/monitoring.json")
    def monitoring_json() -> Overview:
        """Return the same as JSON."""
        return read_overview(parts, now=datetime.now(UTC))

    @routes.get("/runbook", response_class=HTMLResponse)
    def runbook() -> HTMLResponse:
        """Return what to do about each alert."""
        return HTMLResponse(templates.get_template("runbook.html").render(body=_runbook_html()))

    @routes.get("/assets/{name}")
    def asset(name: str, request: Request) -> Response:
        """Return the style sheet or the script; a browser that has it is told so."""
        if name not in _ASSETS:
            raise ProblemError(404, "there is nothing at this address")
        content, tag = _asset(name)
        headers = {"ETag": tag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_ASSETS[name], headers=headers)

    return routes


def render(overview: Overview) -> str:
    """Return the monitoring page."""
    template = _templates().get_template("monitoring.html")
    return template.render(
        o=overview,
        texts_chart=_texts_chart(overview.throughput, overview.at),
        lag_chart=_lag_chart(overview.throughput, overview.at),
        cost_chart=_cost_chart(overview.cost),
    )


def _texts_chart(throughput: Throughput, now: datetime) -> Markup:
    points = [Point(one.at, one.value) for one in throughput.texts]
    return bar_chart(points, title="Texts embedded", unit="texts an hour", since=now - DAY, until=now)


def _lag_chart(throughput: Throughput, now: datetime) -> Markup:
    points = [Point(one.at, one.value) for one in throughput.lag_s]
    limit = throughput.lag_limit_s or None
    return line_chart(points, title="Ingestion lag", unit="seconds", since=now - DAY, until=now, limit=limit)


def _cost_chart(cost: Cost) -> Markup:
    if not cost.days:
        return Markup("")
    points = [Point(one.day, one.usd) for one in cost.days]
    until = cost.days[-1].day + timedelta(days=1)
    return bar_chart(points, title="Cost of embedding", unit="dollars a day", since=cost.days[0].day, until=until)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"moment": _moment, "ago": in_words_ago, "size": _size, "share": _share}
    return found


def _moment(at: datetime | None) -> str:
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def in_words_ago(seconds: float) -> str:
    """Return a span of time as a person says it: 40 s, 12 min, 3 h, 5 days."""
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{sign}{seconds / size:.0f} {unit}"
    return f"{sign}{seconds:.0f} s"


def _size(number: float | None) -> str:
    if number is None:
        return ""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.3f} %"


@cache
def _asset(name: str) -> tuple[bytes, str]:
    content = (_HERE / "assets" / name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:16]}"'


@cache
def _runbook_html() -> Markup:
    """Return the runbook as HTML, each heading with the anchor that alerts link to. Raw HTML in it stays text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(_RUNBOOK.read_text(encoding="utf-8"))
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor_of(inline.content))
        if opening.type == "fence":
            opening.attrSet("tabindex", "0")
    return Markup(reader.renderer.render(tokens, reader.options, {}))


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    kept = "".join(char for char in heading.strip().lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")
