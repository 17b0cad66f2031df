"""A system that has been at work for a month, for tests of what is shown of it: settings, books and backups.

All is of the moment ``now`` that it is made for; what the books add up to is said where it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import cos, pi
from pathlib import Path
from typing import Any

import bson
from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo.database import Database

from deployments.http.parts import HttpParts
from deployments.http.serving import make_parts
from deployments.register_blocks import make_blocks
from deployments.settings import Settings
from tasks.domain.alerts import Alert, AlertSeverity
from tasks.domain.backups import BackupManifest, CollectionBackup, DatabaseBackup, Part, Verification, part_name
from tasks.domain.meters import Kind, Meter
from tasks.domain.probes import Reading, Verdict

Row = dict[str, Any]
TEAMS = {
    ObjectId("64a000000000000000000001"): "Acme DAO",
    ObjectId("64a000000000000000000002"): "<script>alert(1)</script>",
    ObjectId("64a000000000000000000003"): "Northwind Swap",
}
ACME, MARKUP, NORTHWIND = TEAMS
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Monitored:
    """The parts of a service over a database, and how to write into its books."""

    def __init__(self, uri: str, database: Database[Row], home: Path, now: datetime, **chosen: Any) -> None:
        self.database, self.now = database, now
        self.settings = Settings(
            _env_file=None,
            **{
                "cryptique_source_uri": uri,
                "cryptique_source_database": database.name,
                "cryptique_vectors_uri": None,
                "cryptique_vectors_database": database.name,
                "cryptique_embedder": "local",
                "gemini_api_key": None,
                "slack_webhook_url": None,
                "prefect_api_url": None,
                "cryptique_home": home,
                "cryptique_admin_token": "a-token-of-the-test-0123456789",
                "cryptique_http_rate_limit": 100_000,
                "cryptique_alert_usd_per_day": 5.0,
                **chosen,
            },
        )
        self.parts: HttpParts = make_parts(self.settings, make_blocks(self.settings))
        self._number = 0

    @property
    def midnight(self) -> datetime:
        return self.now.replace(hour=0, minute=0, second=0, microsecond=0)

    # -- the monitor's book -----------------------------------------------------------------------------------

    def look(
        self, probe: str, at: datetime, verdict: Verdict = "ok", says: str = "", took_s: float = 0.01, **figures: float
    ) -> Reading:
        return Reading(probe, at, verdict, says, took_s, figures)

    def look_for_a_month(self, *, every: timedelta = timedelta(minutes=5)) -> None:
        """Looks every five minutes for 30 days, the last one five minutes ago.

        Twelve days ago the vector store failed in two looks (600 s). Twenty days ago nobody looked for three hours: six
        minutes of them the look before covers, one of which lies in the pause.
        """
        begin = self.now - 30 * DAY
        outage, pause = self.now - 12 * DAY, self.now - 20 * DAY
        taken: list[Reading] = []
        for place in range(round(30 * DAY / every)):
            at = begin + place * every
            if pause <= at < pause + 3 * HOUR:
                continue
            down = outage <= at < outage + 2 * every
            taken += [
                self.look("source", at),
                self.look("vectors", at, "failed" if down else "ok"),
                self.look("prefect", at),
            ]
        self.parts.book.add_readings(taken)

    def fall_behind(self) -> None:
        """Ingestion is some seconds behind all day, and nine hours ago for half an hour 20 minutes."""
        taken = []
        for place in range(30 * 24 * 6):
            at = self.now - place * 10 * MINUTE - MINUTE
            late = 8.5 * HOUR <= self.now - at <= 9 * HOUR
            lag_s = 1_200.0 if late else 20 + 15 * (1 + cos(place / 9)) + (place % 7)
            taken.append(self.look("ingest", at, "ok", "all is taken over.", lag_s=lag_s))
            if place < 144:
                p95_s = 0.35 + 0.25 * (1 + cos(place / 11)) + (2.2 if late else 0.0)
                taken.append(self.look("requests", at, "ok", "", calls=120.0, error_rate=0.004, p95_s=p95_s))
        self.parts.book.add_readings(taken)

    def look_now(self, **verdicts: Verdict) -> None:
        """The newest reading of every probe, 20 s old."""
        at = self.now - timedelta(seconds=20)
        says = {
            "source": "MongoDB 7.0.14 answers.",
            "vectors": "MongoDB 7.0.14 answers.",
            "embedder": "Gemini knows gemini-embedding-001 and takes the key.",
            "backups": "the newest good one is of this morning.",
            "prefect": "Prefect 3.8.8 answers.",
            "workers": "2 online in cryptique.",
            "queue": "3 runs of the Prefect server and 128 of embeddingjobs wait for their turn.",
            "ingest": "all that changed until a moment ago is taken over.",
            "letters": "migrate-7 refused 22 of 18,000 records of transaction.",
            "spending": "8,400,000 tokens were embedded today for $1.2600 of $5.00.",
            "requests": "in the last 5 minutes: 240 search (1 failed, 95 % within 0.62 s).",
            "disk": "212.4 of 500.0 GB under CRYPTIQUE_HOME.",
            "memory": "5.1 of 8.0 GB.",
            "cpu": "37% of 4 processors.",
            "watch": "it looked last 5 s ago.",
        }
        figures: Mapping[str, Row] = {
            "ingest": {"lag_s": 23.0},
            "requests": {"calls": 240.0, "error_rate": 1 / 240, "p95_s": 0.62},
        }
        self.parts.book.add_readings(
            [
                self.look(name, at, verdicts.get(name, "ok"), said, 0.04, **figures.get(name, {}))
                for name, said in says.items()
            ]
        )

    def alert(
        self,
        name: str,
        severity: AlertSeverity,
        title: str,
        says: str,
        *,
        ago: timedelta,
        lasted: timedelta | None = None,
    ) -> None:
        began = self.now - ago
        self.parts.book.begin_alert(Alert(name, severity, title, says, "queue", began))
        if lasted is not None:
            self.parts.book.end_alert(name, began + lasted)

    # -- the store's books -------------------------------------------------------------------------------------

    def name_teams(self) -> None:
        self.database["teams"].insert_many([{"_id": key, "name": name} for key, name in TEAMS.items()])

    def job(
        self,
        ended: datetime,
        *,
        documents: int = 0,
        tokens: int = 0,
        usd: float = 0.0,
        team: ObjectId | None = None,
        status: str = "completed",
        kind: str = "ingest",
        errors: list[Row] | None = None,
        **changes: Any,
    ) -> Row:
        self._number += 1
        row = {
            "jobId": f"{kind}-{self._number:04}",
            "jobType": "batch_update",
            "sourceType": "transaction",
            "teamId": team,
            "status": status,
            "progress": {"total": documents, "processed": documents, "failed": 0, "percentage": 100.0},
            "startedAt": ended - 2 * MINUTE,
            "completedAt": ended if status in ("completed", "failed", "cancelled") else None,
            "estimatedCompletionAt": None,
            "results": {
                "documentsCreated": documents,
                "documentsUpdated": 0,
                "documentsSkipped": 0,
                "totalTokensUsed": tokens,
                "totalCost": usd,
            },
            "errors": errors or [],
            "workerId": None,
            "metadata": {"tags": [kind], "reason": "transactions all time", "runId": "0b1f", "runKey": None},
            "createdAt": ended - 2 * MINUTE,
            "updatedAt": ended,
            **changes,
        }
        self.database["embeddingjobs"].insert_one(row)
        return row

    def stats(self, day: datetime, *, documents: int, tokens: int, usd: float, team: ObjectId | None = None) -> None:
        self.database["embeddingstats"].insert_one(
            {
                "period": "daily",
                "startDate": day,
                "endDate": day + DAY,
                "teamId": team,
                "processing": {"documentsCreated": documents, "documentsUpdated": 0},
                "apiUsage": {"totalTokensUsed": tokens, "totalCost": usd},
                "createdAt": day + DAY,
            }
        )

    def ask(
        self,
        kind: Kind,
        at: datetime,
        calls: int,
        *,
        failed: int = 0,
        error: str = "429",
        usd: float = 0.0,
        texts: int = 0,
        reused: int = 0,
    ) -> None:
        """Write down requests of one minute; all of the money and of the texts is in the first."""
        meter = Meter()
        for place in range(calls):
            meter.count(
                kind,
                at=at,
                seconds=0.2,
                error=error if place < failed else None,
                tokens=round(usd / 0.15 * 1e6) if not place else 0,
                usd=0.0 if place else usd,
                texts=0 if place else texts,
                reused=0 if place else reused,
            )
        self.parts.vectors.add_measures({f"{kind}-{at.timestamp()}": one for one in meter.take()})

    def letter(
        self,
        code: str,
        reason: str,
        *,
        ago: timedelta,
        number: int = 1,
        source: str = "transaction",
        stage: str = "extract",
        record_id: object = None,
        status: str = "open",
    ) -> None:
        self.database["deadletters"].insert_many(
            [
                {
                    "sourceType": source,
                    "sourceId": ObjectId() if record_id is None else record_id,
                    "stage": stage,
                    "code": code,
                    "reason": reason,
                    "runId": "0b1f",
                    "time": self.now - ago - place * timedelta(seconds=1),
                    "status": status,
                    "attempts": 1,
                    "teamId": ACME,
                    "record": {"from_address": "a visitor's wallet", "email": "visitor@example.com"},
                }
                for place in range(number)
            ]
        )

    # -- backups -----------------------------------------------------------------------------------------------

    def backup(self, ago: timedelta, *, problems: tuple[str, ...] = (), verified: bool = True) -> str:
        """Write the catalogue's side of a backup: a manifest, and what reading it back found."""
        taken = (self.now - ago).astimezone(UTC)
        name = f"{taken:%Y%m%dT%H%M%SZ}-0a1b"
        object_name = part_name("vectordocuments", 0)
        documents = [bson.encode({"_id": number, "content": "a text"}) for number in range(1_000)]
        written = self.parts.backups.write_part(name, object_name, documents)
        part = Part(
            name=object_name,
            collection="vectordocuments",
            number=0,
            lower=None,
            upper=None,
            documents=len(documents),
            raw_bytes=sum(map(len, documents)),
            stored_bytes=written.stored_bytes,
            sha256=written.sha256,
            content_sha256=written.content_sha256,
            taken_at=_T,
        )
        vectors = CollectionBackup("vectordocuments", {}, [], len(documents), (part,))
        manifest = BackupManifest(
            id=name,
            classes=("daily",),
            began=taken,
            taken=taken,
            databases=(DatabaseBackup("store", self.database.name, "7.0.14", _T, (vectors,)),),
            code_version="1",
            packages={},
            settings={},
        )
        self.parts.backups.save_manifest(manifest)
        if verified:
            checked = Verification(
                self.parts.backups.manifest_sha256(name), taken + MINUTE, 1, len(documents), 500, False, problems
            )
            self.parts.backups.save_verification(name, checked)
        return name


_T = Timestamp(1, 1)


def hourly(back: int) -> int:
    """Return the documents of an hour, so many before this one: more by day than by night."""
    return round(420 + 260 * cos(back / 24 * 2 * pi)) + back * 37 % 70


def daily(back: int) -> int:
    """Return the documents of a day, so many before today: fewer at weekends."""
    return (6_200 if back % 7 in (1, 2) else 9_400) + back * 379 % 1_300


def at_work_for_a_month(scene: Monitored) -> None:
    """Fill all books; with these figures:

    - availability: 600 s failed, 10,740 s not looked at, of 30 days
    - documents: ``hourly`` in each of 24 hours; on earlier days ``daily``, by their statistics
    - cost: 2.00 dollars and up to 0.60 more on each of the 29 days before today (statistics), of which Acme has 1.20,
      the team whose name is markup 0.50; today 1.26 (requests). A job of a day with statistics counts no second time
    - dead letters: 22 and 3 and 1 open, one resolved
    - errors of the last day: 3 of requests (429), 1 of runs (source), 22 + 1 of records
    """
    scene.look_for_a_month()
    scene.fall_behind()
    scene.look_now()
    scene.name_teams()
    hour = scene.now.replace(minute=0, second=0, microsecond=0)
    for back in range(24):
        at = hour - back * HOUR
        scene.job(at, documents=hourly(back), tokens=30_000, usd=0.0045, team=ACME)
        scene.ask("search", at, 60 + 25 * (back % 5))
        scene.ask("http", at, 30)
    scene.ask("embed", scene.midnight, 84, failed=3, usd=1.26, texts=1_000)
    # A load's partitions did part of what it did.
    scene.job(hour, documents=9_999, tokens=9_999, usd=9.99, kind="partition")
    for back in range(1, 30):
        day = scene.midnight - back * DAY
        scene.stats(day, documents=daily(back), tokens=13_333_333 + 90_000 * (back % 7), usd=2.0 + 0.1 * (back % 7))
        scene.stats(day, documents=6_000, tokens=8_000_000, usd=1.2, team=ACME)
        scene.stats(day, documents=2_000, tokens=3_333_333, usd=0.5, team=MARKUP)
        scene.job(day + HOUR, documents=100, tokens=100, usd=7.0, team=NORTHWIND)
    failed = {"timestamp": scene.now - HOUR, "sourceId": None, "error": "gone", "errorCode": "source", "retryCount": 0}
    scene.job(scene.now - HOUR, status="failed", errors=[failed], kind="migrate")
    scene.job(
        scene.now - MINUTE,
        status="processing",
        kind="migrate",
        progress={"total": 871_781, "processed": 540_504, "failed": 22, "percentage": 62.0},
        estimatedCompletionAt=scene.now + 2 * HOUR,
    )
    reason = "value_eth is 'n/a', which is no amount"
    scene.letter("bad_amount", reason, ago=3 * HOUR, number=22)
    scene.letter("no_owner", "the contract contract_17 has no team", ago=6 * DAY, number=3)
    scene.letter(
        "bad_time",
        "startTime is <b>soon</b>, by visitor@example.com",
        ago=2 * HOUR,
        source="session",
        stage="validate",
        record_id="visitor@example.com",
    )
    scene.letter("bad_amount", reason, ago=40 * DAY, status="resolved")
    scene.alert(
        "queue",
        "warning",
        "Too many jobs wait",
        "128 jobs wait (limit 100). 3 runs of the Prefect server and 125 of embeddingjobs wait for their turn.",
        ago=42 * MINUTE,
    )
    scene.alert(
        "ingestion-lag",
        "warning",
        "Ingestion lags behind",
        "1,200 s behind (limit 900 s).",
        ago=9 * HOUR,
        lasted=31 * MINUTE,
    )
    scene.alert(
        "vectors-unreachable",
        "critical",
        "The vector store's MongoDB can't be reached",
        "MongoDB of CRYPTIQUE_VECTORS_URI does not answer while asking how it is.",
        ago=12 * DAY,
        lasted=10 * MINUTE,
    )
    for back in (0, 1, 2, 3):
        scene.backup(back * DAY + 5 * HOUR)
    scene.backup(4 * DAY + 5 * HOUR, problems=("a part is not what was written",))
    scene.backup(2 * HOUR, verified=False)
