"""Where the monitor writes down what it saw and said: a SQLite file, which no other server's loss takes away.

It outlives restarts, MongoDB and the Prefect server, and holds for all processes of a machine: the one that watches,
those that answer HTTP, and runs of the flow ``monitor``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.domain.alerts import Alert, Looks
from tasks.domain.errors import TransientError
from tasks.domain.probes import VITAL, Reading

Record = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (
    probe TEXT NOT NULL, at REAL NOT NULL, verdict TEXT NOT NULL, says TEXT NOT NULL, took_s REAL NOT NULL,
    figures TEXT NOT NULL, PRIMARY KEY (at, probe)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS readings_by_probe ON readings (probe, at);
CREATE TABLE IF NOT EXISTS incidents (
    cause TEXT PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alerts (
    name TEXT NOT NULL, severity TEXT NOT NULL, title TEXT NOT NULL, says TEXT NOT NULL, probe TEXT NOT NULL,
    began REAL NOT NULL, ended REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_open_alert ON alerts (name) WHERE ended IS NULL;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
_BUSY_S, _BUSY_PAUSE_S = 10.0, 0.02
#: Looks further apart than this leave a time in which nobody looked.
LOOK_COVERS = timedelta(minutes=6)


class MonitorBook:
    """Readings, alerts and the memory of what was said. Each call is a transaction; safe for threads and processes.

    Raises ``TransientError`` where the file can't be read or written, with the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "monitor.db"
        self._ready = False
        self._preparing = threading.Lock()

    def _prepare(self) -> None:
        """Make the file and its tables, where no thread of ours has looked yet. Of several processes one does."""
        with self._preparing:
            if self._ready:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as connection:
                _begin_to_log_ahead(connection)
                connection.executescript(_SCHEMA)
                connection.execute("INSERT OR IGNORE INTO notes VALUES ('begun', ?)", [time.time()])
            self._ready = True

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection within a transaction that is written when the block ends well."""
        try:
            if not self._ready:
                self._prepare()
            with closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as connection:
                # What was said must be known after a crash of the machine too, and there are few writes.
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise TransientError(f"the monitor's book {self.path.name} can't be used: {error}") from error

    # -- readings ---------------------------------------------------------------------------------------------

    def add_readings(self, readings: Sequence[Reading]) -> None:
        """Write readings down; one of the same probe and moment replaces the one that is there."""
        rows = [
            (one.probe, one.at.timestamp(), one.verdict, one.says, one.took_s, json.dumps(dict(one.figures)))
            for one in readings
        ]
        with self._opened() as connection:
            connection.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?, ?, ?)", rows)

    def read_readings(self, since: datetime, until: datetime | None = None, probe: str | None = None) -> list[Reading]:
        """Return the readings of ``[since, until)``, the oldest first, of one probe or of all."""
        query = (
            "SELECT * FROM readings WHERE at >= ? AND at < ?"
            + (" AND probe = ?" if probe else "")
            + " ORDER BY at, probe"
        )
        ends = until.timestamp() if until is not None else float("inf")
        with self._opened() as connection:
            found = connection.execute(query, [since.timestamp(), ends, *([probe] if probe else [])]).fetchall()
        return [_reading(row) for row in found]

    def read_latest(self) -> dict[str, Reading]:
        """Return the newest reading of each probe, whatever its age."""
        query = (
            "SELECT r.* FROM readings r JOIN (SELECT probe, max(at) AS at FROM readings GROUP BY probe) newest "
            "ON r.probe = newest.probe AND r.at = newest.at"
        )
        with self._opened() as connection:
            found = connection.execute(query).fetchall()
        return {row[0]: _reading(row) for row in found}

    def read_looks(self, since: datetime, until: datetime) -> list[tuple[float, int]]:
        """Return the moments of ``[since, until)`` at which vital parts were looked at, and whether one failed."""
        marks = ", ".join("?" * len(VITAL))
        query = (
            "SELECT at, max(verdict = 'failed') FROM readings "
            f"WHERE probe IN ({marks}) AND at >= ? AND at < ? GROUP BY at ORDER BY at"
        )
        with self._opened() as connection:
            return connection.execute(query, [*VITAL, since.timestamp(), until.timestamp()]).fetchall()

    def count_looks(self, since: datetime, until: datetime) -> Looks:
        """Return how long in ``[since, until)`` all vital parts answered, one did not, or nobody looked."""
        rows = self.read_looks(since, until)
        return Looks.from_times(
            rows, since=since.timestamp(), until=until.timestamp(), covers_s=LOOK_COVERS.total_seconds()
        )

    def read_figure(
        self, probe: str, figure: str, since: datetime, until: datetime, step: timedelta
    ) -> dict[datetime, float]:
        """Return the greatest value of a probe's figure in each step of ``[since, until)`` that has one.

        Steps are known by their beginnings, which are multiples of ``step`` since 1970.
        """
        step_s = step.total_seconds()
        query = (
            "SELECT CAST(at / :step AS INTEGER) * :step AS began, max(json_extract(figures, '$.' || :figure)) "
            "FROM readings WHERE probe = :probe AND at >= :since AND at < :until "
            "AND json_extract(figures, '$.' || :figure) IS NOT NULL GROUP BY began ORDER BY began"
        )
        wanted = {"since": since.timestamp(), "until": until.timestamp(), "probe": probe, "figure": figure}
        with self._opened() as connection:
            rows = connection.execute(query, {**wanted, "step": step_s}).fetchall()
        return {_moment(began): float(value) for began, value in rows}

    def prune(self, before: datetime) -> int:
        """Delete readings from before this moment, and alerts that ended before it; return how many."""
        moment = before.timestamp()
        with self._opened() as connection:
            gone = connection.execute("DELETE FROM readings WHERE at < ?", [moment]).rowcount
            gone += connection.execute("DELETE FROM alerts WHERE ended < ?", [moment]).rowcount
        return gone

    # -- alerts -----------------------------------------------------------------------------------------------

    def begin_alert(self, alert: Alert) -> bool:
        """Write down that an alert began; False if it is open already, whose words are then brought up to date."""
        row = (alert.name, alert.severity, alert.title, alert.says, alert.probe, alert.began.timestamp())
        with self._opened() as connection:
            known = connection.execute(
                "UPDATE alerts SET severity = ?, title = ?, says = ? WHERE name = ? AND ended IS NULL",
                [alert.severity, alert.title, alert.says, alert.name],
            ).rowcount
            if not known:
                connection.execute("INSERT INTO alerts VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        return not known

    def end_alert(self, name: str, at: datetime) -> Alert | None:
        """Write down that an alert is over and return it; None if it was not open."""
        with self._opened() as connection:
            row = connection.execute("SELECT * FROM alerts WHERE name = ? AND ended IS NULL", [name]).fetchone()
            if row is not None:
                connection.execute(
                    "UPDATE alerts SET ended = ? WHERE name = ? AND ended IS NULL", [at.timestamp(), name]
                )
        return None if row is None else _alert((*row[:-1], at.timestamp()))

    def read_alerts(self, since: datetime) -> list[Alert]:
        """Return the alerts that were open at any time since then, the newest first."""
        query = "SELECT * FROM alerts WHERE ended IS NULL OR ended >= ? ORDER BY began DESC, name"
        with self._opened() as connection:
            return [_alert(row) for row in connection.execute(query, [since.timestamp()]).fetchall()]

    def read_open_alerts(self) -> list[Alert]:
        """Return the alerts that are open, the newest first."""
        with self._opened() as connection:
            rows = connection.execute("SELECT * FROM alerts WHERE ended IS NULL ORDER BY began DESC, name").fetchall()
        return [_alert(row) for row in rows]

    # -- what was said: the book that tasks/alert.py writes in ---------------------------------------------------

    def find_incident(self, cause: str) -> Record | None:
        """Return what is remembered of a cause."""
        with self._opened() as connection:
            row = connection.execute("SELECT version, record FROM incidents WHERE cause = ?", [cause]).fetchone()
        return None if row is None else _memory(*row)

    def find_incidents(self) -> list[Record]:
        """Return what is remembered of every cause."""
        with self._opened() as connection:
            rows = connection.execute("SELECT version, record FROM incidents ORDER BY cause").fetchall()
        return [_memory(*row) for row in rows]

    def save_incident(self, row: Mapping[str, Any], *, instead_of: Mapping[str, Any] | None) -> bool:
        """Write what is remembered of a cause in the place of what was read; False if another was quicker."""
        record = json.dumps({name: value for name, value in row.items() if name != "version"}, default=_plain)
        with self._opened() as connection:
            if instead_of is None:
                written = connection.execute("INSERT OR IGNORE INTO incidents VALUES (?, 1, ?)", [row["_id"], record])
            else:
                version = instead_of["version"]
                written = connection.execute(
                    "UPDATE incidents SET version = ?, record = ? WHERE cause = ? AND version = ?",
                    [version + 1, record, row["_id"], version],
                )
            return written.rowcount == 1

    # -- when something was last done ---------------------------------------------------------------------------

    def note(self, name: str, at: datetime) -> None:
        """Write down when something was done last."""
        with self._opened() as connection:
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [name, at.timestamp()])

    def read_note(self, name: str) -> datetime | None:
        """Return when that was done last; None if never."""
        with self._opened() as connection:
            row = connection.execute("SELECT at FROM notes WHERE name = ?", [name]).fetchone()
        return None if row is None else _moment(row[0])

    def read_begun(self) -> datetime:
        """Return when this book was begun: before that nobody looked."""
        begun = self.read_note("begun")
        assert begun is not None
        return begun


def _begin_to_log_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the mode in which readers and a writer keep each other from nothing.

    For this switch alone SQLite does not wait: while another process is at it, it is refused at once.
    """
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _reading(row: tuple[Any, ...]) -> Reading:
    probe, at, verdict, says, took_s, figures = row
    return Reading(probe, _moment(at), verdict, says, took_s, json.loads(figures))


def _alert(row: tuple[Any, ...]) -> Alert:
    name, severity, title, says, probe, began, ended = row
    return Alert(name, severity, title, says, probe, _moment(began), None if ended is None else _moment(ended))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"$date": value.astimezone(UTC).isoformat()}
    raise TypeError(f"{type(value).__name__} can't be written to the monitor's book")


def _memory(version: int, record: str) -> Record:
    def revive(value: dict[str, Any]) -> Any:
        return datetime.fromisoformat(value["$date"]) if value.keys() == {"$date"} else value

    return {**json.loads(record, object_hook=revive), "version": version}
