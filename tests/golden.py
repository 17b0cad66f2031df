"""The golden set: every source as the project's generator makes it, with its dirt, and what can be read of it.

It is a sample of the source's own size (``deployments/sample.py``, ``deployments/sample_sites/``): visits from 26
February 2024 to June 2025, over a leap day and changes of the clocks, transactions from 2021 to May 2025. Nothing here
computes a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from deployments.sample import sample_contracts, sample_teams, sample_transactions, sample_websites
from deployments.sample_sites.loading import EVENTS
from deployments.sample_sites.sessions import sample_events, sample_sessions
from deployments.sample_sites.sites import sample_site_contracts, sample_site_teams, sample_site_websites
from deployments.sample_sites.totals import PERIODS, sample_analytics, sample_campaigns, sample_statistics
from deployments.sample_sites.visits import BRIDGE_ROWS, SESSIONS, sample_visits
from tasks.domain.aggregates.campaigns import TrackedCampaign, read_campaign
from tasks.domain.aggregates.visits import Visit, read_visit
from tasks.domain.campaigns import parse_campaign
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.sessions import parse_session
from tasks.domain.transactions import Transaction, parse_transaction

Record = dict[str, Any]

TRANSACTIONS = 6_000
#: After everything in the set: 15 January 2027.
NOW_MS = 1_800_000_000_000
#: Makes the pseudonyms of visitors.
KEY = b"golden" * 6
T = TypeVar("T")


@dataclass(frozen=True)
class Golden:
    """``records`` are those of each collection, in the order in which they were stored."""

    seed: int
    records: Mapping[str, list[Record]]

    @cached_property
    def owners(self) -> Owners:
        return Owners.from_records(*(self.records[name] for name in ("smartcontracts", "teams", "websites")))

    @cached_property
    def transactions(self) -> list[Transaction]:
        """Return the transactions that can be read."""
        parsed = _parsed(
            self.records["transactions"], lambda record: parse_transaction(record, self.owners, now_ms=NOW_MS)
        )
        return list(parsed)

    @cached_property
    def visits(self) -> list[Visit]:
        """Return the sessions that can be read."""
        records = self.records["sessions"]
        sessions = _parsed(records, lambda record: parse_session(record, self.owners, key=KEY, now_ms=NOW_MS))
        return [read_visit(session) for session in sessions]

    @cached_property
    def campaigns(self) -> list[TrackedCampaign]:
        """Return the campaigns that can be read."""

        def read(record: Record) -> TrackedCampaign:
            listed = record.get("sessions")
            return read_campaign(parse_campaign(record, self.owners, now_ms=NOW_MS), listed or ())

        return list(_parsed(self.records["campaigns"], read))


def make_golden(seed: int = 1, *, transactions: int = TRANSACTIONS, sessions: int = SESSIONS) -> Golden:
    """Return the set: the same for the same arguments, on every machine."""
    bridge = min(transactions, BRIDGE_ROWS)
    visits = tuple(sample_visits(sessions, seed=seed, transactions=bridge))
    records: dict[str, Iterable[Record]] = {
        "teams": [*sample_teams(), *sample_site_teams()],
        "websites": [*sample_websites(), *sample_site_websites()],
        "smartcontracts": [*sample_contracts(), *sample_site_contracts()],
        "transactions": sample_transactions(transactions, seed=seed),
        "sessions": sample_sessions(visits),
        "granularevents": sample_events(visits, EVENTS),
        "campaigns": sample_campaigns(visits, seed=seed, transactions=bridge),
        "analytics": sample_analytics(visits),
    }
    records |= {f"{period}stats": sample_statistics(period, visits) for period in PERIODS}
    return Golden(seed, {name: list(found) for name, found in records.items()})


def _parsed(records: Iterable[Record], parse: Callable[[Record], T]) -> Iterator[T]:
    for record in records:
        try:
            yield parse(record)
        except RecordError:
            # The pipeline keeps it as a dead letter, and no figure counts it.
            continue
