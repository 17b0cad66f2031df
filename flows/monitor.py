"""Monitor: one look at every part, its readings written down, and what passes a limit told; the same when it ends.

The process behind ``cryptique-rag serve`` looks every few seconds (``deployments/watch.py``) and needs no Prefect for
that. The flow looks by schedule, and at that process too: each of the two tells when the other is gone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL
from prefect.states import Completed

from blocks.monitor_book import MonitorBook
from blocks.prefect_server import PrefectServer
from blocks.slack import SlackNotifier
from flows.blocks import load_alerts, load_backups, load_embedder, load_monitor, load_source, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from tasks.alert import Told, send_alert, tell_due, tell_resolved
from tasks.domain.alerts import Alert, Judgement, judge, query_of, runbook_link
from tasks.domain.errors import PipelineError, TransientError
from tasks.domain.incidents import Incident, cause_of
from tasks.domain.probes import Reading, Verdict
from tasks.probe import ProbeParts, Prober

#: What conditions are told under; ``Incident.flow`` of a run is the flow's name.
MONITOR = "monitor"
#: When the process that watches looked last.
WATCHED = "watched"
#: Readings that rules look back on.
_LOOKS_BACK = timedelta(minutes=31)
#: While nothing changes, a reading a minute is written down.
_WRITTEN_EVERY = timedelta(seconds=55)
_LOOK_AGAIN_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look found, and what was said of it."""

    readings: list[Reading]
    judgements: list[Judgement]
    told: list[Told]

    @property
    def passed(self) -> list[Judgement]:
        """Return what is wrong now, or was when it could last be told."""
        return [one for one in self.judgements if one.passed]


class Lookout:
    """Looks, writes down and tells. One thread calls it; several processes may share its book.

    While the book can't be used, it goes by what it remembers itself, and still tells.
    """

    def __init__(
        self,
        parts: ProbeParts,
        book: MonitorBook,
        notifier: SlackNotifier | None,
        *,
        public_url: str | None,
        logger: Any,
    ) -> None:
        self._prober = Prober(parts)
        self._parts, self._book, self._notifier = parts, book, notifier
        self._public_url = public_url
        self._logger = logger
        self._recent: deque[Reading] = deque()
        self._written: dict[str, Reading] = {}
        self._open: dict[str, Alert] = {}

    def look(self, *, now: datetime, every: bool = False, also: Sequence[Reading] = ()) -> Looked:
        """Take the readings that are due, or every one; write them down; tell what began, goes on and ended.

        ``also`` are readings that were taken elsewhere. Raises nothing that a person need not act on: what can't be
        written or sent is logged, and told by the next look.
        """
        readings = [*(self._prober.take(now=now) if every else self._prober.take_due(now=now)), *also]
        self._write_down(readings)
        judgements = judge(self._read_recent(now), self._parts.limits, now=now)
        told = [one for judgement in judgements for one in self._tell(judgement, now)]
        told += self._tell_due(now)
        return Looked(readings, judgements, told)

    def _write_down(self, readings: Sequence[Reading]) -> None:
        self._recent.extend(readings)
        while self._recent and self._recent[-1].at - self._recent[0].at > _LOOKS_BACK:
            self._recent.popleft()
        due = [one for one in readings if self._is_news(one)]
        try:
            self._book.add_readings(due)
        except TransientError as error:
            self._logger.error("readings are not written down: %s", error)
            return
        self._written |= {one.probe: one for one in due}

    def _is_news(self, reading: Reading) -> bool:
        last = self._written.get(reading.probe)
        if last is None or reading.verdict != "ok" or last.verdict != reading.verdict:
            return True
        return reading.at - last.at >= _WRITTEN_EVERY

    def _read_recent(self, now: datetime) -> list[Reading]:
        """Return what this process saw, and before that what is written down, the oldest first."""
        mine = list(self._recent)
        try:
            before = self._book.read_readings(now - _LOOKS_BACK)
        except TransientError:
            return mine
        seen = {(one.probe, one.at) for one in mine}
        others = [one for one in before if (one.probe, one.at) not in seen]
        return sorted([*others, *mine], key=lambda one: one.at)

    def _tell(self, judgement: Judgement, now: datetime) -> list[Told]:
        if judgement.passed is None:
            return []
        try:
            return self._begin(judgement, now) if judgement.passed else self._end(judgement, now)
        except PipelineError as error:
            self._logger.error("the alert %s waits: %s", judgement.name, error)
            return []

    def _begin(self, judgement: Judgement, now: datetime) -> list[Told]:
        alert = Alert(judgement.name, judgement.severity, judgement.title, judgement.says, judgement.probe, now)
        new = judgement.name not in self._open
        self._open[judgement.name] = alert
        try:
            new = self._book.begin_alert(alert)
        except TransientError as error:
            self._logger.error("the alert %s is not written down: %s", alert.name, error)
        if new:
            level = logging.INFO if alert.severity == "info" else logging.WARNING
            self._logger.log(level, "alert %s: %s %s", alert.name, alert.title, alert.says)
        severity = judgement.told_as
        if severity is None or self._notifier is None:
            return []
        incident = Incident(
            cause=_cause(alert.name),
            flow=MONITOR,
            severity=severity,
            title=alert.title,
            what=alert.says,
            first_seen=now,
            last_seen=now,
            link=f"{self._public_url}/admin/monitoring" if self._public_url else None,
            resume=query_of(alert.name),
            runbook=runbook_link(alert.name, self._public_url),
            condition=True,
        )
        return self._logged([send_alert(incident, notifier=self._notifier, book=self._book, now=now)])

    def _end(self, judgement: Judgement, now: datetime) -> list[Told]:
        self._open.pop(judgement.name, None)
        ended = self._book.end_alert(judgement.name, now)
        if ended is not None:
            self._logger.info("alert %s is over: %s", judgement.name, judgement.says)
        if self._notifier is None:
            return []
        cause = _cause(judgement.name)
        if ended is None and self._book.find_incident(cause) is None:
            return []
        link = f"{self._public_url}/admin/monitoring" if self._public_url else None
        return self._logged(
            tell_resolved(MONITOR, link=link, scope="", notifier=self._notifier, book=self._book, now=now, cause=cause)
        )

    def _tell_due(self, now: datetime) -> list[Told]:
        if self._notifier is None:
            return []
        try:
            return self._logged(tell_due(notifier=self._notifier, book=self._book, now=now))
        except PipelineError as error:
            self._logger.error("summaries that are due wait: %s", error)
            return []

    def _logged(self, told: list[Told]) -> list[Told]:
        for one in told:
            if one.kind is not None:
                self._logger.log(logging.INFO if one.delivered else logging.WARNING, "alert %s", one)
        return told


def _cause(name: str) -> str:
    return cause_of(MONITOR, name, "look")


def watch_reading(book: MonitorBook, *, silent_after_s: float, now: datetime) -> Reading:
    """Return whether the process that watches did look lately. Where none ever did, nothing is missed."""
    watched = book.read_note(WATCHED)
    if watched is None:
        return Reading("watch", now, "unknown", "no `cryptique-rag serve` watches here.", 0.0)
    age_s = (now - watched).total_seconds()
    says = f"it looked last at {watched:%Y-%m-%d %H:%M:%S} UTC."
    verdict: Verdict = "failed" if age_s > silent_after_s else "ok"
    return Reading("watch", now, verdict, says, 0.0, {"age_s": age_s})


@flow(
    name="monitor",
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def monitor() -> State[dict[str, Any]]:
    """Look once at every part, and again after a moment where one failed; tell what passes a limit, and what ended.

    Runs every five minutes; by hand at any time. A run completes whatever it found: what is wrong is in its message,
    its artifact ``health``, and its alerts. Its result holds ``readings`` and the names of alerts that are ``open``.
    """
    block = load_monitor()
    book = block.open_book()
    vectors = load_vectors()
    api_url = PREFECT_API_URL.value()
    parts = ProbeParts(
        source=load_source(),
        vectors=vectors,
        embedder=load_embedder(vectors),
        backups=load_backups(),
        prefect=PrefectServer(api_url, auth=PREFECT_API_AUTH_STRING.value()) if api_url else None,
        home=block.folder,
        limits=block.limits,
        pool=block.pool,
        begun=book.read_begun(),
    )
    lookout = Lookout(parts, book, load_alerts(), public_url=block.public_url, logger=get_run_logger())
    looked = _look(lookout, parts, book)
    if any(one.verdict == "failed" for one in looked.readings):
        # One failure may be an election; the next run is minutes away.
        threading.Event().wait(_LOOK_AGAIN_AFTER_S)
        looked = _look(lookout, parts, book)
    create_markdown_artifact(_table(looked), key="health", description="What each probe found")
    wrong = [one.name for one in looked.passed]
    return Completed(
        message=f"{len(wrong)} alerts: {', '.join(wrong)}" if wrong else "all is well",
        data={
            "readings": {one.probe: {"verdict": one.verdict, "says": one.says} for one in looked.readings},
            "open": wrong,
        },
    )


def _look(lookout: Lookout, parts: ProbeParts, book: MonitorBook) -> Looked:
    now = datetime.now(UTC)
    watch = watch_reading(book, silent_after_s=parts.limits.watch_silent_s, now=now)
    return lookout.look(now=now, every=True, also=[watch])


def _table(looked: Looked) -> str:
    lines = ["| probe | verdict | |", "| --- | --- | --- |"]
    lines += [f"| {one.probe} | {one.verdict} | {one.says.replace('|', '/')} |" for one in looked.readings]
    wrong = [f"- **{one.title}** ({one.severity}): {one.says}" for one in looked.passed]
    return "\n".join([*lines, "", *(wrong or ["No limit is passed."])])
