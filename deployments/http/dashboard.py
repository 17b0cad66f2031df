"""The operations pages: the monitoring page, the same as JSON, the runbook; nothing on them comes from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from string import ascii_lowercase, digits

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from deployments.http.charts import Chart, draw, in_short, time_in_short
from deployments.http.overview import Overview, Sample, StepOfWork, read_overview
from deployments.http.parts import HttpParts
from deployments.http.problems import ProblemError

_HERE = Path(__file__).resolve().parent
_RUNBOOK = _HERE.parent / "runbook.md"
_ASSETS = {
    "monitoring.css": "text/css; charset=utf-8",
    "monitoring.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_ANCHOR = frozenset(ascii_lowercase + digits + "-_")


def make_routes(parts: HttpParts) -> APIRouter:
    """Return the routes of the pages; whoever mounts them sees to it that only admins pass."""
    routes = APIRouter(prefix="/admin", tags=["operations"])

    @routes.get("", include_in_schema=False)
    def home() -> RedirectResponse:
        """Lead to the monitoring page."""
        return RedirectResponse("/admin/monitoring")

    @routes.get("/monitoring", response_class=HTMLResponse)
    def monitoring() -> HTMLResponse:
        """Return the page as it is now."""
        return HTMLResponse(render(read_overview(parts, now=datetime.now(UTC))))

    @routes.get("/monitoring.json")
    def monitoring_json() -> Overview:
        """Return the same as JSON."""
        return read_overview(parts, now=datetime.now(UTC))

    @routes.get("/runbook", response_class=HTMLResponse)
    def runbook() -> HTMLResponse:
        """Return what to do about each alert."""
        return HTMLResponse(_templates().get_template("runbook.html").render(body=_runbook_html()))

    @routes.get("/assets/{name}")
    def asset(name: str, request: Request) -> Response:
        """Return the style sheet, the script or the icon; a browser that has it is told so."""
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
    charts = {name: (chart, draw(chart)) for name, chart in _charts(overview).items()}
    return _templates().get_template("monitoring.html").render(o=overview, charts=charts)


# -- the charts of the page ------------------------------------------------------------------------------------------


def _charts(o: Overview) -> Mapping[str, Chart]:
    work, pace, objective = o.throughput, o.pace, o.objective
    return {
        "documents_day": _documents(work.hours, "an hour", daily=False),
        "documents_month": _documents(work.days, "a day", daily=True),
        "texts_day": _texts(work.hours, "an hour", daily=False),
        "texts_month": _texts(work.days, "a day", daily=True),
        "requests_day": _requests(work.hours),
        "lag_day": _pace("Ingestion lag, 24 hours", pace.lag_day_s, pace.lag_limit_s, daily=False),
        "lag_month": _pace("Ingestion lag, 30 days", pace.lag_month_s, pace.lag_limit_s, daily=True),
        "p95_day": _pace("Response times (95 %), 24 hours", pace.p95_day_s, pace.slow_limit_s, daily=False),
        "usd": Chart(
            title="Cost of embedding a day, 30 days",
            says=_sum_in_words([one.usd for one in o.cost.days], _usd),
            kind="bars",
            moments=[one.day for one in o.cost.days],
            series={"cost": [one.usd for one in o.cost.days]},
            tell=_usd,
            axis=lambda value: f"${in_short(value)}",
            daily=True,
            limit=o.cost.budget_usd,
        ),
        "tokens": Chart(
            title="Tokens embedded a day, 30 days",
            says=_sum_in_words([one.tokens for one in o.cost.days], _number),
            kind="bars",
            moments=[one.day for one in o.cost.days],
            series={"tokens": [one.tokens for one in o.cost.days]},
            tell=_number,
            axis=in_short,
            daily=True,
        ),
        "looks": Chart(
            title="What looks saw, by day",
            says=f"{_duration(objective.good_s)} all answered, {_duration(objective.bad_s)} one did not, "
            f"{_duration(objective.unknown_s)} nobody looked",
            kind="bars",
            moments=[one.day for one in objective.days],
            series={
                "a vital part failed": [one.bad_s for one in objective.days],
                "nobody looked": [one.unknown_s for one in objective.days],
                "all answered": [one.good_s for one in objective.days],
            },
            tell=_duration,
            axis=lambda seconds: f"{seconds / 3_600:g} h",
            daily=True,
            style={"a vital part failed": "bad", "nobody looked": "none", "all answered": "good"},
            top=86_400.0 if objective.days else None,
        ),
    }


def _documents(steps: Sequence[StepOfWork], of: str, *, daily: bool) -> Chart:
    values = [float(one.documents) for one in steps]
    return Chart(
        title=f"Documents written {of}, {'30 days' if daily else '24 hours'}",
        says=_sum_in_words(values, _number),
        kind="bars",
        moments=[one.began for one in steps],
        series={"documents": values},
        tell=_number,
        axis=in_short,
        daily=daily,
    )


def _texts(steps: Sequence[StepOfWork], of: str, *, daily: bool) -> Chart:
    texts, reused = [float(one.texts) for one in steps], [float(one.reused) for one in steps]
    says = _sum_in_words(texts, _number)
    return Chart(
        title=f"Texts embedded {of}, {'30 days' if daily else '24 hours'}",
        says=f"{says}; {_number(sum(reused))} more had a vector already" if any(reused) else says,
        kind="bars",
        moments=[one.began for one in steps],
        series={"embedded": texts, "had a vector already": reused} if any(reused) else {"embedded": texts},
        tell=_number,
        axis=in_short,
        daily=daily,
        style={"embedded": "s0", "had a vector already": "s3"},
    )


def _requests(steps: Sequence[StepOfWork]) -> Chart:
    kinds = sorted({kind for one in steps for kind in one.calls})
    good = {kind: [float(one.calls.get(kind, 0) - one.failed.get(kind, 0)) for one in steps] for kind in kinds}
    failed = [float(sum(one.failed.values())) for one in steps]
    total = [sum(one.calls.values()) for one in steps]
    return Chart(
        title="Requests an hour, 24 hours",
        says=f"{_sum_in_words(total, _number)}, {_number(sum(failed))} failed" if sum(total) else "no request",
        kind="bars",
        moments=[one.began for one in steps],
        series={"failed": failed, **good},
        tell=_number,
        axis=in_short,
        daily=False,
        style={"failed": "bad", **{kind: f"s{place}" for place, kind in enumerate(kinds)}},
    )


def _pace(title: str, samples: Sequence[Sample], limit: float, *, daily: bool) -> Chart:
    values = [one.value for one in samples]
    measured = [one for one in values if one is not None]
    says = f"highest {_duration(max(measured))}, last {_duration(measured[-1])}" if measured else "nothing was measured"
    return Chart(
        title=title,
        says=f"{says}; alert above {_duration(limit)}" if measured else says,
        kind="line",
        moments=[one.at for one in samples],
        series={"at worst": values},
        tell=_duration,
        axis=time_in_short,
        daily=daily,
        limit=limit,
        # All zero is something that was measured.
        top=1.0 if measured and not any(measured) else None,
    )


def _sum_in_words(values: Sequence[float], tell: object) -> str:
    if not any(values):
        return "nothing in this time"
    assert callable(tell)
    return f"{tell(sum(values))} in all, highest {tell(max(values))}"


# -- values in words -------------------------------------------------------------------------------------------------


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "moment": _moment,
        "clock": _clock,
        "duration": _duration,
        "size": _size,
        "share": _share,
        "usd": _usd,
        "number": _number,
    }
    return found


def _moment(at: datetime | None) -> Markup:
    """Return a moment for people and programs, in UTC."""
    if at is None:
        return Markup("never")
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M}")


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    """Return a span of time as a person says it: 0.4 s, 40 s, 12 min, 3 h 05 min, 5 d 2 h."""
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 10 and seconds != int(seconds):
        return f"{sign}{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{sign}{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{sign}{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{sign}{hours} h {minutes:02} min" if minutes else f"{sign}{hours} h"
    days, hours = divmod(hours, 24)
    return f"{sign}{days} d {hours} h" if hours else f"{sign}{days} d"


def _size(number: float | None) -> str:
    if number is None:
        return ""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _share(value: float | None) -> str:
    """Return a share in percent, never rounded up to a whole that it isn't."""
    if value is None:
        return "unknown"
    percent = int(value * 100_000) / 1_000
    return f"{percent:.3f} %" if value < 1 else "100 %"


def _usd(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


# -- what doesn't change while the process runs ----------------------------------------------------------------------


@cache
def _asset(name: str) -> tuple[bytes, str]:
    content = (_HERE / "assets" / name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:16]}"'


@cache
def _runbook_html() -> Markup:
    return runbook_html(_RUNBOOK.read_text(encoding="utf-8"))


def runbook_html(text: str) -> Markup:
    """Return Markdown as HTML. Each heading has the anchor that GitHub gives it, and ``<a id="..."></a>`` is one too.

    Other raw HTML stays text, and only links of the web, of mail and of this page lead anywhere.
    """
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.add_render_rule("html_block", _only_anchors)
    reader.add_render_rule("html_inline", _only_anchors)
    tokens = reader.parse(text)
    taken: set[str] = set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            anchor = _untaken(anchor_of(_plain(inline)), taken)
            if anchor:
                opening.attrSet("id", anchor)
        if opening.type == "table_open":
            opening.attrSet("tabindex", "0")
    html = reader.renderer.render(tokens, reader.options, {})
    # What is wider than a phone is moved with the keyboard too.
    return Markup(html.replace("<pre>", '<pre tabindex="0">'))


def _only_anchors(renderer: object, tokens: Sequence[Token], place: int, options: object, env: object) -> str:
    raw = tokens[place].content.strip()
    if raw == "</a>" or (raw.startswith("<!--") and raw.endswith("-->")):
        return ""
    for beginning, end in (('<a id="', '"></a>'), ('<a id="', '">'), ('<a name="', '"></a>'), ('<a name="', '">')):
        name = raw.removeprefix(beginning).removesuffix(end)
        if raw == f"{beginning}{name}{end}" and name and _ANCHOR.issuperset(name):
            return f'<a id="{name}"></a>'
    return str(escape(raw))


def _plain(inline: Token) -> str:
    """Return a heading's words without their marks."""
    return "".join(one.content for one in inline.children or () if one.type in ("text", "code_inline"))


def _untaken(anchor: str, taken: set[str]) -> str:
    tried = (f"{anchor}-{number}" if number else anchor for number in itertools.count())
    found = next(one for one in tried if one not in taken)
    taken.add(found)
    return found


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    kept = "".join(char for char in heading.strip().lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")
