"""The pages in a real browser: nothing is asked of elsewhere, nothing breaks, and they fit a phone, a key and an eye.

Pictures of what was seen are written into the folder that CRYPTIQUE_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled
from pymongo.database import Database

from deployments.http.app import make_app
from tasks.domain.alerts import ALERT_NAMES
from tests.browser import NAMES, Browser, find_chromium
from tests.end_to_end.pipeline import prefect_client
from tests.monitored import Monitored, at_work_for_a_month, daily, hourly

pytestmark = pytest.mark.long

BEARER = {"Authorization": "Bearer a-token-of-the-test-0123456789"}
#: Contrast that WCAG's level AA asks for of small letters, and of large ones and what is no letter.
SMALL, LARGE = 4.5, 3.0
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const part = (one) => (one /= 255) <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = rgba(getComputedStyle(one).backgroundColor);
      if (color[3] === 255) return color;
    }
    return rgba("Canvas");
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.getClientRects().length || element.closest("title, desc")) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [high, low] = [light(rgba(color)), light(ground(element))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    found.push([ratio, large, walk.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    found = find_chromium()
    if found is None:
        pytest.skip(f"no Chromium here: install one of {', '.join(NAMES)}, or name it in CHROMIUM")
    return found


@pytest.fixture
def browser(chromium: str, tmp_path: Path) -> Iterator[Browser]:
    with Browser(chromium, tmp_path / "browser", headers=BEARER) as made:
        yield made


@pytest.fixture
def address(mongo_uri: str, prefect_api: str, database: Database[dict[str, Any]], tmp_path: Path) -> Iterator[str]:
    """A service that answers, of a system that has been at work for a month."""
    now = datetime.now(UTC).replace(microsecond=0)
    scene = Monitored(mongo_uri, database, tmp_path / "home", now, prefect_api_url=prefect_api)
    scene.parts.vectors.initialise(256)
    at_work_for_a_month(scene)
    for back in range(24 * 6):
        at = now - back * timedelta(minutes=10)
        scene.ask("embed", at, 2, texts=hourly(back // 6) // 5, reused=9 + 6 * (back % 3))
    for back in range(2, 30):
        scene.ask("embed", now - timedelta(days=back), 2, texts=daily(back) * 11 // 10, reused=daily(back) // 6)
    run_flows(now)
    with served(scene) as url:
        yield url
    scene.parts.vectors.close()
    scene.parts.source.close()


def run_flows(now: datetime) -> None:
    @flow(name="ingest")
    def ingest() -> None: ...

    @flow(name="migrate")
    def migrate() -> None: ...

    gone = Failed(message="Gemini refused the key: check GEMINI_API_KEY")
    with prefect_client() as client:
        made: list[FlowRun] = [
            client.create_flow_run(ingest, name="ingest transactions", state=Completed()),
            client.create_flow_run(ingest, name="ingest sessions", state=Completed()),
            client.create_flow_run(migrate, name="migrate campaigns all time", state=gone),
            client.create_flow_run(ingest, name="ingest websites", state=Crashed(message="its process ended: SIGKILL")),
            client.create_flow_run(migrate, name="migrate transactions all time", state=Running()),
            client.create_flow_run(ingest, name="ingest smart contracts", state=Pending()),
            client.create_flow_run(
                ingest, name="ingest transactions", state=Scheduled(scheduled_time=now + timedelta(minutes=5))
            ),
        ]
    assert len(made) == 7


@contextmanager
def served(scene: Monitored) -> Iterator[str]:
    """Yield where the service answers, over real HTTP on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(make_app(scene.parts), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


def keep(browser: Browser, name: str, *, whole: bool = True) -> None:
    folder = os.environ.get("CRYPTIQUE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.shoot(Path(folder) / f"{name}.png", whole=whole)


def too_faint(browser: Browser) -> list[Any]:
    found = browser.run(CONTRAST)
    assert len(found) > 30
    return [one for one in found if one[0] < (LARGE if one[1] else SMALL)]


def sticks_out(browser: Browser) -> list[str]:
    """Return what is wider than the screen and no reader can move into sight."""
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    wide = """(() => {
      const right = document.documentElement.clientWidth + 1;
      const moved = ".scroll, .skip, .unseen, pre, table";
      return [...document.body.querySelectorAll("*")]
        .filter((one) => !one.closest(moved) && one.getBoundingClientRect().right > right)
        .map((one) => one.outerHTML.slice(0, 99));
    })()"""
    return list(browser.run(wide))


def test_the_page_asks_nothing_of_elsewhere_and_nothing_breaks(address: str, browser: Browser) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.look(width=1_280, height=900, scheme=scheme)
        browser.open(f"{address}/admin/monitoring")
        seen[scheme] = browser.run("getComputedStyle(document.documentElement).backgroundColor")
        assert too_faint(browser) == []
        assert sticks_out(browser) == []
        keep(browser, f"monitoring-{scheme}")
        keep(browser, f"monitoring-{scheme}-top", whole=False)
    assert seen["light"] != seen["dark"]
    assert browser.run("document.querySelector('h1').innerText") == "Warning: Too many jobs wait"
    # The chart for a phone is not seen here, and has no words for anybody.
    assert browser.run("[...document.querySelectorAll('.chart.narrow')].every((one) => !one.getClientRects().length)")
    assert browser.run("[...document.querySelectorAll('.chart.wide')].every((one) => one.getClientRects().length)")
    browser.open(f"{address}/admin/runbook#alert-queue")
    assert browser.run("document.querySelector(':target').innerText") != ""
    keep(browser, "runbook-dark", whole=False)
    assert too_faint(browser) == []
    assert browser.complaints == []
    assert {one for one in browser.asked if not one.startswith(f"{address}/admin/")} == set()


def test_the_pages_fit_a_phone(address: str, browser: Browser) -> None:
    for width in (360, 320):
        browser.look(width=width, height=740, scale=2)
        browser.open(f"{address}/admin/monitoring")
        assert sticks_out(browser) == []
        drawn = "[...document.querySelectorAll('.chart.narrow')].map((one) => one.getBoundingClientRect().width)"
        assert all(200 < one <= width for one in browser.run(drawn))
        # Letters of a drawing are as large as they are meant to be.
        scale = "document.querySelector('.chart.narrow').getBoundingClientRect().width / 310"
        assert 0.8 < browser.run(scale) < 1.2
        opened = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
        browser.run(opened)
        assert sticks_out(browser) == []
        browser.open(f"{address}/admin/runbook")
        assert sticks_out(browser) == []
    browser.look(width=360, height=740, scale=2)
    browser.open(f"{address}/admin/monitoring")
    keep(browser, "monitoring-phone")
    assert browser.complaints == []


def test_a_keyboard_reaches_everything_in_the_order_of_the_page(address: str, browser: Browser) -> None:
    browser.look(width=1_280, height=900)
    browser.open(f"{address}/admin/monitoring")
    reachable = "a[href], button:not([hidden]), summary, [tabindex='0']"
    shown = f'[...document.querySelectorAll("{reachable}")].filter((one) => one.checkVisibility())'
    wanted = browser.run(f"{shown}.map((one) => one.outerHTML.slice(0, 200))")
    assert len(wanted) > 50
    reached = []
    for place in range(len(wanted)):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.outerHTML.slice(0, 200)"))
        if place == 0:
            assert "Skip to the content" in reached[0]
            assert browser.run("document.activeElement.getBoundingClientRect().left >= 0")
        seen = "(({ outlineStyle, outlineWidth }) => outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2)"
        assert browser.run(f"{seen}(getComputedStyle(document.activeElement))"), reached[-1]
    assert reached == wanted
    browser.open(f"{address}/admin/monitoring")
    browser.press("Tab")
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"


def test_the_page_renews_itself_in_its_place(address: str, browser: Browser) -> None:
    browser.look(width=1_280, height=900)
    browser.open(f"{address}/admin/monitoring")
    browser.run("document.querySelector('#cost details').open = true")
    browser.run("document.querySelector('#history a').focus(); document.querySelector('#now h1').textContent = 'old'")
    # A page that is seen again is renewed at once.
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    renewed = """new Promise((done) => { const look = () => document.querySelector('#now h1').textContent === 'old'
      ? setTimeout(look, 20) : done(document.querySelector('#now h1').textContent); look(); })"""
    assert browser.run(renewed) == "Warning: Too many jobs wait"
    assert browser.run("document.querySelector('#cost details').open") is True
    assert browser.run("document.activeElement.closest('section').id") == "history"
    assert browser.run("document.getElementById('pause').innerText") == "Stop renewing"
    asked = len(browser.asked)
    browser.run("document.getElementById('pause').click()")
    assert browser.run("document.getElementById('pause').innerText") == "Renew every 30 s"
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    browser.run("new Promise((done) => setTimeout(done, 200))")
    assert len(browser.asked) == asked
    assert browser.complaints == []


def test_a_page_that_can_not_be_renewed_says_that_it_is_old(
    chromium: str, mongo_uri: str, database: Database[dict[str, Any]], tmp_path: Path
) -> None:
    scene = Monitored(mongo_uri, database, tmp_path / "home", datetime.now(UTC))
    scene.look_now()
    with Browser(chromium, tmp_path / "browser", headers=BEARER) as browser:
        with served(scene) as url:
            browser.open(f"{url}/admin/monitoring")
        browser.run("document.dispatchEvent(new Event('visibilitychange'))")
        told = """new Promise((done) => { const look = () => document.getElementById('renewal').hidden
          ? setTimeout(look, 20) : done(document.getElementById('renewal').textContent); look(); })"""
        assert browser.run(told).startswith("This page is old:")
        assert browser.run("document.querySelectorAll('.probe').length") == 15


def test_every_alert_leads_to_its_entry(address: str, browser: Browser) -> None:
    browser.look(width=1_280, height=900)
    for name in ALERT_NAMES:
        browser.open(f"{address}/admin/runbook")
        browser.run(f"location.hash = 'alert-{name}'")
        assert browser.run("document.querySelector(':target') !== null"), name
