"""Alert: a limit is passed; which limits there are, and what readings say of each.

Every look goes over every rule, so an alert opens, stays and closes by what is seen and by nothing else. Where a look
could not tell, the alert stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tasks.domain.incidents import Severity
from tasks.domain.probes import Reading

AlertSeverity = Literal["critical", "warning", "info"]
_RUNBOOK = "deployments/runbook.md"
#: A reading older than this tells nothing of now.
STALE_AFTER = timedelta(minutes=11)
#: One look that fails may be an election or a lost packet.
_FAILURES_IN_A_ROW = 2
#: How long the processor must be busy before it is worth a line.
BUSY_FOR = timedelta(minutes=10)
OBJECTIVE = 0.999


@dataclass(frozen=True, slots=True)
class Alert:
    """A limit that is or was passed. ``ended`` is None while it is."""

    name: str
    severity: AlertSeverity
    title: str
    says: str
    probe: str
    began: datetime
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is told. Shares are 0 to 1, times are seconds.

    ``error_sample`` requests and ``dead_letter_sample`` records are needed before a share is one. ``window_s`` is over
    which requests are looked at. Without ``usd_per_day`` no cost is too high.
    """

    error_rate: float = 0.10
    error_sample: int = 20
    slow_s: float = 5.0
    window_s: float = 300.0
    memory: float = 0.80
    queue: int = 100
    ingest_lag_s: float = 15 * 60
    backup_age_s: float = 26 * 3_600
    dead_letters: float = 0.01
    dead_letter_sample: int = 100
    usd_per_day: float | None = None
    disk: float = 0.90
    cpu: float = 0.95
    replication_lag_s: float = 60.0
    connections: float = 0.80
    slow_operations: int = 5
    watch_silent_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Looks:
    """A span of time, in seconds, by what was seen in it: all vital parts answered, one did not, or nobody looked."""

    good_s: float
    bad_s: float
    unknown_s: float

    @classmethod
    def from_times(cls, looks: Iterable[tuple[float, int]], *, until: float, covers_s: float, since: float) -> Looks:
        """Return the span ``[since, until)`` by its looks: moments in order and whether a vital part failed.

        What a look saw holds until the next one, but for no longer than ``covers_s``.
        """
        good = bad = 0.0
        found = list(looks)
        ends = [*(at for at, _ in found[1:]), until]
        for (at, failed), after in zip(found, ends, strict=False):
            held = max(0.0, min(after - at, covers_s))
            good, bad = (good, bad + held) if failed else (good + held, bad)
        return cls(good, bad, max(0.0, until - since - good - bad))

    @property
    def availability(self) -> float | None:
        """Return the share of the time that was looked at in which all answered; None if nobody looked."""
        seen = self.good_s + self.bad_s
        return self.good_s / seen if seen else None

    def budget_left_s(self, objective: float = OBJECTIVE) -> float:
        """Return how long vital parts may still fail in a span of this length before the objective is missed."""
        return (1 - objective) * (self.good_s + self.bad_s + self.unknown_s) - self.bad_s


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a look says of one alert. ``passed`` is None where it can't tell; ``says`` holds what was measured."""

    name: str
    severity: AlertSeverity
    title: str
    probe: str
    passed: bool | None
    says: str = ""

    @property
    def told_as(self) -> Severity | None:
        """Return how a person is told of it; what is only worth a line in the log nobody is."""
        return None if self.severity == "info" else self.severity


def runbook_link(name: str, public_url: str | None) -> str:
    """Return where it is written what to do about an alert: an address, or a file of the project without one."""
    base = f"{public_url.rstrip('/')}/admin/runbook" if public_url else _RUNBOOK
    return f"{base}#alert-{name}"


def query_of(name: str) -> str:
    """Return the command that shows more of an alert."""
    return _QUERIES.get(name, "cryptique-rag health")


#: What a rule says: whether the limit is passed, or None, and in words what was measured.
Finding = tuple[bool | None, str]
Rule = Callable[[Reading, Sequence[Reading], Limits], Finding]


def judge(readings: Sequence[Reading], limits: Limits, *, now: datetime) -> list[Judgement]:
    """Return what the readings say of every alert. They are the oldest first, of half an hour and more."""
    by_probe: dict[str, list[Reading]] = {}
    for reading in readings:
        by_probe.setdefault(reading.probe, []).append(reading)
    judged = []
    for name, (probe, severity, title, rule) in _RULES.items():
        of_probe = by_probe.get(probe, [])
        passed, says = None, ""
        if of_probe and now - of_probe[-1].at <= STALE_AFTER:
            passed, says = rule(of_probe[-1], of_probe, limits)
        judged.append(Judgement(name, severity, title, probe, passed, says))
    return judged


def _unreachable(last: Reading, all_: Sequence[Reading], limits: Limits) -> Finding:
    if last.verdict != "failed":
        return False, last.says
    failed = [one.verdict == "failed" for one in all_[-_FAILURES_IN_A_ROW:]]
    return (True if len(failed) == _FAILURES_IN_A_ROW and all(failed) else None), last.says


def _figure(name: str, over: Callable[[Limits], float | None], words: str) -> Rule:
    """Return the rule that a figure is above a limit. ``words`` has ``{0}`` for the figure, ``{1}`` for the limit."""

    def rule(last: Reading, all_: Sequence[Reading], limits: Limits) -> Finding:
        limit = over(limits)
        if last.verdict == "unknown" or limit is None:
            return False, last.says
        value = last.figures.get(name)
        if last.verdict == "failed" or value is None:
            return None, last.says
        return value > limit, f"{words.format(value, limit)} {last.says}"

    return rule


def _error_rate(last: Reading, all_: Sequence[Reading], limits: Limits) -> Finding:
    if last.verdict == "failed":
        return None, last.says
    calls, rate = last.figures.get("calls", 0.0), last.figures.get("error_rate", 0.0)
    if calls < limits.error_sample:
        # Too few to be a share. That there are none any more is no proof that they would succeed.
        return (None if calls or rate else False), last.says
    return (
        rate > limits.error_rate,
        f"{rate:.0%} of {calls:,.0f} requests failed (limit {limits.error_rate:.0%}). {last.says}",
    )


def _busy(last: Reading, all_: Sequence[Reading], limits: Limits) -> Finding:
    window = [one for one in all_ if last.at - one.at <= BUSY_FOR and "used" in one.figures]
    if last.verdict != "ok" or not window or last.at - window[0].at < BUSY_FOR * 0.8:
        return (False if last.verdict == "ok" else None), last.says
    mean = sum(one.figures["used"] for one in window) / len(window)
    return mean > limits.cpu, f"{mean:.0%} of the processors were busy over ten minutes (limit {limits.cpu:.0%})."


_RULES: Mapping[str, tuple[str, AlertSeverity, str, Rule]] = {
    "source-unreachable": ("source", "critical", "The source's MongoDB can't be reached", _unreachable),
    "vectors-unreachable": ("vectors", "critical", "The vector store's MongoDB can't be reached", _unreachable),
    "prefect-unreachable": ("prefect", "critical", "The Prefect server can't be reached", _unreachable),
    "no-worker": ("workers", "critical", "No worker takes runs", _unreachable),
    "embedder-unreachable": ("embedder", "critical", "The embedder can't be reached", _unreachable),
    "backups-unreachable": ("backups", "warning", "The place of backups can't be reached", _unreachable),
    "watch-silent": ("watch", "critical", "Nobody watches between runs of monitor", _unreachable),
    "error-rate": ("requests", "critical", "Too many requests fail", _error_rate),
    "slow-responses": (
        "requests",
        "warning",
        "Responses are slow",
        _figure("p95_s", lambda limits: limits.slow_s, "95 % of responses took up to {0:.1f} s (limit {1:g} s)."),
    ),
    "memory": (
        "memory",
        "warning",
        "Memory runs short",
        _figure("used", lambda limits: limits.memory, "{0:.0%} of the limit is used (alert above {1:.0%})."),
    ),
    "queue": (
        "queue",
        "warning",
        "Too many jobs wait",
        _figure("waiting", lambda limits: limits.queue, "{0:,.0f} jobs wait (limit {1:,.0f})."),
    ),
    "ingestion-lag": (
        "ingest",
        "warning",
        "Ingestion lags behind",
        _figure("lag_s", lambda limits: limits.ingest_lag_s, "{0:,.0f} s behind (limit {1:,.0f} s)."),
    ),
    "no-backup": (
        "backups",
        "critical",
        "No good backup",
        _figure("age_s", lambda limits: limits.backup_age_s, "None for {0:,.0f} s (limit {1:,.0f} s)."),
    ),
    "dead-letters": (
        "letters",
        "warning",
        "A run refused too many records",
        _figure("share", lambda limits: limits.dead_letters, "{0:.1%} became dead letters (limit {1:.1%})."),
    ),
    "cost": (
        "spending",
        "critical",
        "The day's budget is spent",
        _figure("usd_today", lambda limits: limits.usd_per_day, "${0:,.4f} since midnight UTC (budget ${1:,.4f})."),
    ),
    "disk": (
        "disk",
        "critical",
        "A disk is almost full",
        _figure("used", lambda limits: limits.disk, "{0:.0%} is used (alert above {1:.0%})."),
    ),
    "cpu": ("cpu", "info", "The processors are busy", _busy),
    "replication-lag": (
        "vectors",
        "warning",
        "A replica lags behind",
        _figure("replication_lag_s", lambda limits: limits.replication_lag_s, "{0:,.0f} s behind (limit {1:,.0f} s)."),
    ),
    "connections": (
        "vectors",
        "warning",
        "MongoDB's connections run out",
        _figure("connections_used", lambda limits: limits.connections, "{0:.0%} are taken (alert above {1:.0%})."),
    ),
    "slow-operations": (
        "vectors",
        "warning",
        "MongoDB is slow",
        _figure("slow_operations", lambda limits: limits.slow_operations, "{0:,.0f} slow operations (limit {1:,.0f})."),
    ),
}
ALERT_NAMES = tuple(_RULES)
_QUERIES = {
    "no-backup": "cryptique-rag backups",
    "dead-letters": "cryptique-rag jobs",
    "queue": "cryptique-rag jobs",
    "ingestion-lag": "cryptique-rag jobs",
    "cost": "cryptique-rag jobs",
    "error-rate": "cryptique-rag jobs",
}
