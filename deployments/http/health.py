"""Health: whether the process lives, whether it can do its work, and what each probe found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from blocks.code_version import read_code_version
from deployments.http.parts import HttpParts, within
from tasks.domain.alerts import STALE_AFTER
from tasks.domain.errors import PipelineError
from tasks.domain.probes import Reading

#: Whoever asks whether we are ready waits no longer.
_READY_WITHIN_S = 2.0
_LOOK_HOLDS_S = 1.0


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether requests can be answered, by part: ``ok`` or what is wrong."""

    status: Literal["ready", "not ready"]
    parts: dict[str, str]


class Probed(BaseModel):
    """What a probe found. A reading that is ``stale`` tells nothing of now."""

    verdict: Literal["ok", "failed", "unknown", "stale"]
    says: str
    at: datetime
    age_s: float
    took_s: float
    figures: dict[str, float]


class OpenAlert(BaseModel):
    """A limit that is passed."""

    name: str
    severity: str
    title: str
    says: str
    began: datetime


class Details(BaseModel):
    """Everything that the monitor knows; ``problem`` says why it may know nothing."""

    status: Literal["ok", "warning", "critical", "unknown"]
    version: str
    started: datetime
    probes: dict[str, Probed]
    alerts: list[OpenAlert]
    problem: str | None = None


def make_routes(parts: HttpParts, require_admin: Callable[[Request], None]) -> APIRouter:
    """Return the routes of health."""
    routes = APIRouter(prefix="/health", tags=["health"])
    started = datetime.now(UTC)

    @routes.head("/live", include_in_schema=False)
    @routes.get("/live")
    async def live() -> Live:
        """Answer without touching anything else."""
        return Live()

    look = _OneLook(parts)

    @routes.head("/ready", include_in_schema=False)
    @routes.get("/ready", responses={503: {"model": Ready}})
    def ready(response: Response) -> Ready:
        """Say whether the vector store answers: without it nothing can be searched."""
        found = {"vectors": look.said()}
        well = all(said == "ok" for said in found.values())
        response.status_code = 200 if well else 503
        return Ready(status="ready" if well else "not ready", parts=found)

    @routes.get("/details", dependencies=[Depends(require_admin)])
    def details() -> Details:
        """Say what each probe found last, and which alerts are open."""
        return read_details(parts, started=started, now=datetime.now(UTC))

    return routes


class _OneLook:
    """One look at the store for all who ask within a second: anybody may, and a store that hangs takes its time."""

    def __init__(self, parts: HttpParts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._seen: tuple[float, str] = (-_LOOK_HOLDS_S, "")

    def said(self) -> str:
        """Return what the look found; whoever comes during one has what the one before found, if there was one."""
        at, said = self._seen
        if time.monotonic() - at < _LOOK_HOLDS_S:
            return said
        if not self._lock.acquire(blocking=not said):
            return said
        try:
            at, said = self._seen
            if time.monotonic() - at >= _LOOK_HOLDS_S:
                said = _said(self._parts)
                self._seen = (time.monotonic(), said)
            return said
        finally:
            self._lock.release()


def _said(parts: HttpParts) -> str:
    try:
        within(_READY_WITHIN_S, parts.vectors.check)
    except PipelineError:
        return "MongoDB does not answer"
    return "ok"


def read_details(parts: HttpParts, *, started: datetime, now: datetime) -> Details:
    """Return what the monitor knows; what it hasn't looked at lately is stale, whatever it was."""
    version = read_code_version()
    try:
        readings, alerts = parts.book.read_latest(), parts.book.read_open_alerts()
    except PipelineError as error:
        return Details(status="unknown", version=version, started=started, probes={}, alerts=[], problem=str(error))
    probes = {name: _probed(reading, now) for name, reading in readings.items()}
    shown = [
        OpenAlert(name=one.name, severity=one.severity, title=one.title, says=one.says, began=one.began)
        for one in alerts
    ]
    status: Literal["ok", "warning", "critical", "unknown"] = "ok"
    if not probes or all(one.verdict == "stale" for one in probes.values()):
        status = "unknown"
    elif any(one.severity == "critical" for one in alerts):
        status = "critical"
    elif alerts or any(one.verdict == "failed" for one in probes.values()):
        status = "warning"
    problem = (
        "nobody looks: no `cryptique-rag serve` watches and no run of monitor was lately"
        if status == "unknown"
        else None
    )
    return Details(status=status, version=version, started=started, probes=probes, alerts=shown, problem=problem)


def _probed(reading: Reading, now: datetime) -> Probed:
    age = now - reading.at
    values: dict[str, Any] = {
        "says": reading.says,
        "at": reading.at,
        "age_s": round(age.total_seconds(), 1),
        "took_s": round(reading.took_s, 3),
        "figures": dict(reading.figures),
    }
    return Probed(verdict="stale" if age > STALE_AFTER else reading.verdict, **values)
