"""The monitoring page on a real store: its figures are those of the books, and what can't be read says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prefect import flow
from prefect.states import Completed, Crashed, Failed, Running
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from blocks.prefect_server import PrefectServer
from deployments.http.app import make_app
from deployments.http.dashboard import render, runbook_html
from deployments.http.overview import Overview, read_overview
from tasks.domain.alerts import ALERT_NAMES
from tests.builders import NOW
from tests.end_to_end.pipeline import prefect_client
from tests.loopback.relay import Relay
from tests.monitored import ACME, DAY, MARKUP, MINUTE, Monitored, at_work_for_a_month, daily, hourly

Row = dict[str, Any]
SECTIONS = (
    *("health", "objective", "throughput", "pace", "runs", "queue"),
    *("errors", "cost", "letters", "backups", "history"),
)
#: Read from MongoDB; the others must not mind that it is gone.
OF_MONGO = {"throughput", "queue", "errors", "cost", "letters"}
VOID = frozenset({"meta", "link", "img", "br"})


class Page(HTMLParser):
    """A page as a browser would see it: its words, ids, links, and whether every element is closed where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.wrong: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.wrong += [f"{tag} is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a" and "href" in found:
            self.links.append(str(found["href"]))
        self.wrong += [f"{tag} has {name}" for name in found if name == "style" or name.startswith("on")]
        if len(found) != len(attrs):
            self.wrong.append(f"{tag} has an attribute twice")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.wrong.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def scene(mongo_uri: str, database: Database[Row], tmp_path: Path) -> Iterator[Monitored]:
    made = Monitored(mongo_uri, database, tmp_path / "home", NOW)
    yield made
    made.parts.vectors.close()
    made.parts.source.close()


def problems(overview: Overview) -> dict[str, str]:
    found = {name: getattr(overview, name).problem for name in SECTIONS}
    return {name: said for name, said in found.items() if said}


def test_the_figures_are_those_of_the_books_on_the_page_and_in_the_json(scene: Monitored) -> None:
    scene.parts.vectors.initialise(256)
    at_work_for_a_month(scene)
    found = read_overview(scene.parts, now=NOW)
    assert problems(found) == {"runs": "No Prefect server is named: set PREFECT_API_URL."}
    page = Page(render(found))
    assert page.wrong == []
    assert len(page.ids) == len(set(page.ids))

    # 30 days are 2,592,000 s, a thousandth of which may be bad: 43.2 minutes.
    slo = found.objective
    assert (slo.good_s, slo.bad_s, slo.unknown_s) == (2_580_660, 600, 10_740)
    assert slo.availability == pytest.approx(2_580_660 / 2_581_260, abs=1e-12)
    assert (slo.availability_day, slo.availability_week) == (1.0, 1.0)
    assert slo.budget_left_min == pytest.approx(33.2)
    assert [(one.began, one.seconds) for one in slo.outages] == [(NOW - 12 * DAY, 600)]
    assert sum(day.bad_s for day in slo.days) == 600
    assert "99.976 %" in page.text
    assert "33.2 min of 43.2 min" in page.text

    assert [one.documents for one in found.throughput.hours] == [hourly(back) for back in range(23, -1, -1)]
    assert [one.documents for one in found.throughput.days][:-1] == [daily(back) for back in range(29, 0, -1)]
    assert {one.told_by for one in found.throughput.days[:-1]} == {"embeddingstats"}
    assert sum(one.failed.get("embed", 0) for one in found.throughput.hours) == 3
    assert sum(one.calls.get("http", 0) for one in found.throughput.hours) == 24 * 30
    written = [hourly(back) for back in range(24)]
    assert f"{sum(written):,} in all, highest {max(written)}" in page.text
    assert sum(one.texts for one in found.throughput.hours) == 1_000

    assert max(one.value or 0 for one in found.pace.lag_day_s) == 1_200
    assert "highest 20 min" in page.text

    assert [one.usd for one in found.cost.days[:-1]] == pytest.approx([2 + back % 7 / 10 for back in range(29, 0, -1)])
    assert found.cost.usd_today == pytest.approx(1.26)
    assert found.cost.usd == pytest.approx(29 * 2.0 + 8.5 + 1.26)
    teams = {one.team_id: (one.name, one.usd) for one in found.cost.teams}
    assert teams[str(MARKUP)] == ("<script>alert(1)</script>", pytest.approx(29 * 0.5))
    # 13 hours of today have no statistics yet, and its jobs tell.
    assert teams[str(ACME)] == ("Acme DAO", pytest.approx(29 * 1.2 + 13 * 0.0045))
    assert set(teams) == {str(ACME), str(MARKUP)}
    assert "$1.26 today of $5.00. $67.76 and" in page.text

    assert [(one.code, one.number, one.day) for one in found.letters.reasons] == [
        ("bad_amount", 22, 22),
        ("no_owner", 3, 0),
        ("bad_time", 1, 1),
    ]
    assert (found.letters.open, found.letters.day) == (26, 23)
    assert "26 are open, 23 of them" in page.text

    errors = {(one.of, one.stage, one.code): (one.day, one.month) for one in found.errors.shown}
    assert errors == {
        ("records", "extract", "bad_amount"): (22, 22),
        ("records", "extract", "no_owner"): (0, 3),
        ("records", "validate", "bad_time"): (1, 1),
        ("requests", "embed", "429"): (3, 3),
        ("runs", "migrate", "source"): (1, 1),
    }
    assert (found.errors.day, found.errors.month) == (27, 30)

    assert found.queue.by_status == {"completed": 54, "failed": 1, "processing": 1}
    assert [(one.percentage, one.total, one.process_gone) for one in found.queue.open] == [(62.0, 871_781, False)]

    assert found.backups.by_state == {"damaged": 1, "good": 4, "unverified": 1}
    assert found.backups.age_s == 5 * 3_600
    assert "The newest good one is 5 h old (alert above 1 d 2 h)." in page.text

    assert [one.name for one in found.history.alerts] == ["queue", "ingestion-lag", "vectors-unreachable"]
    assert (found.status, found.headline) == ("warning", "Warning: Too many jobs wait")
    assert found.since == NOW - 42 * MINUTE
    assert "/admin/runbook#alert-queue" in page.links


def test_no_word_of_the_books_is_markup_and_no_visitor_is_named(scene: Monitored) -> None:
    at_work_for_a_month(scene)
    scene.alert("disk", "critical", "<img src=x onerror=alert(1)>", "</p><script>x</script>", ago=MINUTE)
    found = read_overview(scene.parts, now=NOW)
    html = render(found)
    page = Page(html)
    assert page.wrong == []
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 1
    assert "<script>alert(1)</script>" in page.text
    assert "startTime is <b>soon</b>" in page.text
    for told in (html, found.model_dump_json()):
        assert "visitor@example.com" not in told
        assert "visitor's wallet" not in told
    assert found.headline == "Critical: <img src=x onerror=alert(1)>, and 1 warning"


def test_the_json_is_the_page_and_both_are_answered_through_the_service(scene: Monitored) -> None:
    scene.alert("queue", "warning", "Too many jobs wait", "128 jobs wait.", ago=MINUTE)
    client = TestClient(make_app(scene.parts), headers={"Authorization": "Bearer a-token-of-the-test-0123456789"})
    found = client.get("/admin/monitoring.json").json()
    assert Overview.model_validate(found).model_dump(mode="json") == found
    page = Page(client.get("/admin/monitoring").text)
    assert found["headline"] in page.text
    # Nobody has looked: that no alert ended is no proof that all is well.
    assert found["status"] == "unknown"
    assert "nobody looks" in page.text.lower()
    for name in ("monitoring.css", "monitoring.js", "icon.svg"):
        asset = client.get(f"/admin/assets/{name}")
        assert (asset.status_code, asset.headers["x-content-type-options"]) == (200, "nosniff")
        unchanged = client.get(f"/admin/assets/{name}", headers={"If-None-Match": asset.headers["etag"]})
        assert unchanged.status_code == 304
    assert client.get("/admin/assets/..%2f..%2foverview.py").status_code == 404


@pytest.mark.parametrize("break_", [Relay.cut, Relay.hang])
def test_with_mongodb_and_prefect_gone_the_page_tells_what_the_book_holds(
    break_: Callable[[Relay], None],
    mongo_uri: str,
    database: Database[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.http.overview._WITHIN_S", 0.6)
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with Relay(host, port) as relay:
        uri = f"mongodb://127.0.0.1:{relay.port}/?directConnection=true"
        nobody = f"http://127.0.0.1:{relay.port}/api"  # what listens there is no Prefect server
        scene = Monitored(uri, database, tmp_path / "home", NOW, prefect_api_url=nobody)
        scene.look_for_a_month(every=5 * MINUTE)
        scene.look_now(vectors="failed")
        scene.alert("vectors-unreachable", "critical", "The store is gone", "It does not answer.", ago=MINUTE)
        assert set(problems(read_overview(scene.parts, now=NOW))) == {"runs"}
        break_(relay)
        gone = read_overview(scene.parts, now=NOW)
        assert set(problems(gone)) == OF_MONGO | {"runs"}
        assert set(gone.unread) == OF_MONGO | {"runs"}
        assert gone.status == "critical"
        assert gone.objective.bad_s == 600 + 20
        page = Page(render(gone))
        assert page.wrong == []
        assert page.text.count("Can't be read now.") == len(OF_MONGO) + 1
        threads = sum(thread.name == "asked" for thread in threading.enumerate())
        for _ in range(3):
            read_overview(scene.parts, now=NOW)
        assert sum(thread.name == "asked" for thread in threading.enumerate()) <= max(threads, len(OF_MONGO) + 1)
        relay.mend()
        assert "cost" not in problems(wait_for(lambda: read_overview(scene.parts, now=NOW), "cost"))
        scene.parts.vectors.close()
        scene.parts.source.close()


def wait_for(read: Callable[[], Overview], section: str) -> Overview:
    """Read until a section is there again: what was under way when the server came back may fail yet."""
    for _ in range(20):
        found = read()
        if section not in problems(found):
            break
    return found


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "health"])
def test_a_section_that_breaks_takes_no_other_with_it(
    name: str, scene: Monitored, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deployments.http.overview as module

    def breaks(*given: object) -> module.Section:
        raise RuntimeError("mongodb://user:password@host")

    kind, _ = module._READS[name]
    monkeypatch.setattr(module, "_READS", {**module._READS, name: (kind, breaks)})
    found = read_overview(scene.parts, now=NOW)
    assert problems(found)[name] == "It can't be read (RuntimeError)."
    assert set(problems(found)) == {name, "health", "runs"}
    # The first look at a new scene has found nobody who looks; what can't be read is told beside that.
    assert name in found.unread
    html = render(found)
    assert Page(html).wrong == []
    assert "password" not in html


def test_a_book_that_can_not_be_read_is_not_called_well(scene: Monitored) -> None:
    scene.parts.book.path.parent.mkdir(parents=True)
    scene.parts.book.path.write_bytes(b"no database" * 1_000)
    found = read_overview(scene.parts, now=NOW)
    assert found.status == "unknown"
    assert {"health", "objective", "pace", "history"} <= set(problems(found))
    assert Page(render(found)).wrong == []


def test_what_failed_in_the_last_look_is_a_warning_before_it_is_an_alert(scene: Monitored) -> None:
    scene.look_now()
    scene.parts.vectors.initialise(256)
    assert read_overview(scene.parts, now=NOW).headline == "All is well"
    scene.look_now(source="failed")
    found = read_overview(scene.parts, now=NOW)
    assert (found.status, found.headline) == ("warning", "Failing, not yet an alert: source")
    later = read_overview(scene.parts, now=NOW + timedelta(minutes=12))
    assert later.status == "unknown"
    assert {one.verdict for one in later.health.probes.values()} == {"stale"}


def test_runs_are_those_of_the_prefect_server_with_links_into_it(scene: Monitored, prefect_api: str) -> None:
    @flow(name="shown-on-the-page")
    def shown() -> None: ...

    now = datetime.now(UTC)
    before = read_runs(scene, prefect_api, now)
    with prefect_client() as client:
        ids = [
            str(client.create_flow_run(shown, name=name, state=state).id)
            for name, state in (
                ("works-<b>", Running()),
                ("failed", Failed(message="by visitor@example.com at mongodb://u:secret@host/")),
                ("crashed", Crashed()),
                ("completed", Completed()),
            )
        ]
    found = read_runs(scene, prefect_api, now)
    assert found.runs.running == before.runs.running + 1
    latest = {one.id: one for one in [*found.runs.current, *found.runs.latest]}
    assert {latest[one].state for one in ids} == {"Running", "Failed", "Crashed", "Completed"}
    failed = latest[ids[1]]
    assert failed.link == f"{prefect_api.removesuffix('/api')}/runs/flow-run/{ids[1]}"
    assert failed.flow == "shown-on-the-page"
    page = render(found)
    assert failed.link in Page(page).links
    assert "works-&lt;b&gt;" in page
    assert "secret" not in page
    assert "visitor@" not in page


def read_runs(scene: Monitored, url: str, now: datetime) -> Overview:
    from dataclasses import replace

    return read_overview(replace(scene.parts, prefect=PrefectServer(url)), now=now)


def test_the_runbook_has_an_entry_for_every_alert_and_lets_no_markup_through(scene: Monitored) -> None:
    client = TestClient(make_app(scene.parts), headers={"Authorization": "Bearer a-token-of-the-test-0123456789"})
    page = Page(client.get("/admin/runbook").text)
    assert page.wrong == []
    assert {f"alert-{name}" for name in ALERT_NAMES} <= set(page.ids)
    here = {link for link in page.links if link.startswith("#")}
    assert {link.removeprefix("#") for link in here} <= set(page.ids)

    html = runbook_html(
        'x <script>alert(1)</script> <a id="mine"></a> <a id="x" onclick="y"></a>\n\n<div onclick="z">\n\n'
        "# A *b* `c`\n\n# A b c\n\n[bad](javascript:alert(1)) <!-- aside -->"
    )
    assert "<script" not in html
    assert "<div" not in html
    assert '<a id="mine"></a>' in html
    assert 'onclick="' not in html
    assert 'href="javascript' not in html
    assert 'id="a-b-c"' in html
    assert 'id="a-b-c-1"' in html


def test_a_json_of_nothing_is_complete(scene: Monitored) -> None:
    found = json.loads(read_overview(scene.parts, now=NOW).model_dump_json())
    assert set(SECTIONS) <= set(found)
    assert found["objective"]["availability"] is None
    assert found["objective"]["unknown_s"] == 30 * 86_400
    assert Page(render(read_overview(scene.parts, now=NOW))).wrong == []
