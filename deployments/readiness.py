"""Readiness: each promise that a machine can check here, with what proved it and when; and what could not be proved.

It reads alone: nothing is written, spent or told, unless a test message is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from blocks.backups import BackupStore
from blocks.monitor_book import MonitorBook
from blocks.prefect_server import PrefectServer
from blocks.upkeep import find_unexpired
from blocks.vector_store import VectorStore
from deployments.config_check import check_configuration
from deployments.register_blocks import PipelineBlocks
from deployments.settings import Settings
from deployments.work_pool import POOL
from tasks.domain.alerts import OBJECTIVE
from tasks.domain.backups import newest_good
from tasks.domain.errors import PipelineError, TerminalError
from tasks.domain.incidents import in_words

_DAY = timedelta(days=1)
_NIGHTLY = timedelta(hours=26)
_WEEKLY = timedelta(days=8)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of a promise: kept, broken, or (None) it could not be told. ``at`` is when that was seen or done."""

    promise: str
    kept: bool | None
    says: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class _Here:
    settings: Settings
    blocks: PipelineBlocks
    prefect: PrefectServer | None
    now: datetime

    @property
    def vectors(self) -> VectorStore:
        return self.blocks.vectors

    @property
    def backups(self) -> BackupStore:
        return self.blocks.backups

    @property
    def book(self) -> MonitorBook:
        return self.blocks.monitor.open_book()


Check = Callable[[_Here], Iterator[Proof]]


def prove(
    settings: Settings, blocks: PipelineBlocks, prefect: PrefectServer | None, *, send: bool = False
) -> list[Proof]:
    """Return every promise with its proof. With ``send`` the webhook gets a test message."""
    here = _Here(settings, blocks, prefect, datetime.now(UTC))
    proofs: list[Proof] = []
    for promise, check in _CHECKS.items():
        try:
            proofs += list(check(here))
        except PipelineError as error:
            proofs.append(Proof(promise, None, in_words(str(error)), here.now))
    proofs += _alerts(here, send=send)
    return proofs


def _configuration(here: _Here) -> Iterator[Proof]:
    problems = [f"{one.what}: {one.says}" for one in check_configuration() if one.problem]
    says = "; ".join(problems[:_SHOWN]) or f"nothing is wrong for {here.settings.cryptique_environment}"
    yield Proof("the configuration works", not problems, says, here.now)


def _owners(here: _Here) -> Iterator[Proof]:
    vectors = here.vectors.at()
    whole = vectors.count({})
    lost = vectors.count({"teamId": None, "siteId": None})
    if not whole:
        yield Proof("every vector has an owner", None, "the store is empty", here.now)
        return
    yield Proof("every vector has an owner", not lost, f"{lost:,} of {whole:,} have none", here.now)


def _store_is_source(here: _Here) -> Iterator[Proof]:
    promise = "the store holds what the source holds"
    found = here.vectors.find_jobs({"metadata.tags": "reconcile", "status": "completed"}, limit=1)
    if not found:
        yield Proof(promise, None, "reconcile has not run yet", here.now)
        return
    at = found[0]["completedAt"]
    late = here.now - at > _NIGHTLY
    progress = found[0]["progress"]
    says = f"reconcile went through {progress['processed']:,} records and mended what differed"
    yield Proof(promise, not late, says + (", longer ago than a night" if late else ""), at)


def _letters(here: _Here) -> Iterator[Proof]:
    vectors = here.vectors.at()
    number = vectors.count_open_letters({})
    whole = vectors.count({}) + number
    share = number / whole if whole else 0.0
    kept = None if not whole else share <= here.settings.limits.dead_letters
    yield Proof(
        "few records are refused", kept, f"{number:,} dead letters are open, {share:.2%} of what is known", here.now
    )


def _expiry(here: _Here) -> Iterator[Proof]:
    wrong = find_unexpired(here.vectors)
    yield Proof("what should expire does", not wrong, "; ".join(wrong[:_SHOWN]) or "all of it", here.now)


def _backup(here: _Here) -> Iterator[Proof]:
    stored = here.backups.list_backups()
    good = newest_good(stored)
    if good is None or good.manifest is None:
        yield Proof("a good backup of the last 26 hours", False, "there is none", here.now)
        return
    taken = good.manifest.taken
    yield Proof("a good backup of the last 26 hours", here.now - taken <= _NIGHTLY, good.id, taken)
    drills = [one.verification.checked_at for one in stored if one.verification is not None and one.verification.drill]
    last = max(drills, default=None)
    says = "the last whole restore" if last is not None else "none was restored whole yet"
    yield Proof(
        "a backup was restored whole within eight days",
        last is not None and here.now - last <= _WEEKLY,
        says,
        last or here.now,
    )


def _schedules(here: _Here) -> Iterator[Proof]:
    found = _server(here).read_schedules()
    off = sorted(name for name, active in found.items() if not active)
    says = f"off: {', '.join(off)}" if off else f"{len(found)} deployments run by schedule"
    yield Proof("schedules are on", bool(found) and not off, says, here.now)


def _worker(here: _Here) -> Iterator[Proof]:
    online, paused = _server(here).count_workers(POOL)
    says = f"{online} online{', the pool is paused' * paused}"
    yield Proof("a worker takes runs", online > 0 and not paused, says, here.now)


def _hidden(here: _Here) -> Iterator[Proof]:
    clear = _server(here).find_clear_secrets()
    says = f"readable in {', '.join(clear)}" if clear else "none can be read back from a block"
    yield Proof("secrets are hidden in Prefect", not clear, says, here.now)


def _server(here: _Here) -> PrefectServer:
    if here.prefect is None:
        raise TerminalError("no Prefect server is named, and none runs here")
    return here.prefect


def _availability(here: _Here) -> Iterator[Proof]:
    looks = here.book.count_looks(here.now - 30 * _DAY, here.now)
    share = looks.availability
    seen = (looks.good_s + looks.bad_s) / 86_400
    says = "nobody looked" if share is None else f"{share:.3%} of {seen:,.1f} days that were looked at"
    yield Proof(
        f"available for {OBJECTIVE:.1%} of 30 days", None if share is None else share >= OBJECTIVE, says, here.now
    )


def _alerts(here: _Here, *, send: bool) -> Iterator[Proof]:
    notifier = here.blocks.alerts
    if notifier is None:
        yield Proof("alerts arrive", False, "SLACK_WEBHOOK_URL is not set", here.now)
        return
    if not send:
        yield Proof("alerts arrive", None, "a webhook is set; --send posts a test message", here.now)
        return
    payload: dict[str, Any] = {"text": "Cryptique RAG: a test message of `cryptique-rag readiness`"}
    if notifier.kind == "discord":
        payload = {"content": payload["text"], "allowed_mentions": {"parse": []}}
    delivery = notifier.send(payload)
    yield Proof("alerts arrive", delivery.delivered, delivery.says, here.now)


_CHECKS: dict[str, Check] = {
    "the configuration works": _configuration,
    "every vector has an owner": _owners,
    "the store holds what the source holds": _store_is_source,
    "few records are refused": _letters,
    "what should expire does": _expiry,
    "a good backup of the last 26 hours": _backup,
    "schedules are on": _schedules,
    "a worker takes runs": _worker,
    "secrets are hidden in Prefect": _hidden,
    f"available for {OBJECTIVE:.1%} of 30 days": _availability,
}
