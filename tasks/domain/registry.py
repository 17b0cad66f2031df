"""The sources that the pipeline knows, by name. A new one is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable

from tasks.domain import granular_events, sessions, user_journeys
from tasks.domain.aggregates.records import AGGREGATES
from tasks.domain.analytics import ANALYTICS
from tasks.domain.campaigns import CAMPAIGNS
from tasks.domain.posted_texts import POSTED_TEXTS
from tasks.domain.smart_contracts import SMART_CONTRACTS
from tasks.domain.sources import Source
from tasks.domain.statistics import DAILY_STATS, HOURLY_STATS, MONTHLY_STATS, WEEKLY_STATS
from tasks.domain.transaction_documents import TRANSACTIONS
from tasks.domain.websites import WEBSITES

_SOURCES = {
    source.name: source
    for source in (
        TRANSACTIONS,
        AGGREGATES,
        ANALYTICS,
        HOURLY_STATS,
        DAILY_STATS,
        WEEKLY_STATS,
        MONTHLY_STATS,
        CAMPAIGNS,
        WEBSITES,
        SMART_CONTRACTS,
        POSTED_TEXTS,
    )
}
#: Those whose records lie in the vector store's database, and not in the application's.
OF_THE_STORE = frozenset({AGGREGATES.name, POSTED_TEXTS.name})
#: Sources that know users by pseudonyms: made with the key of these, and with the version that they then have.
_OF_USERS: dict[str, tuple[Callable[[bytes], Source], int]] = {
    "session": (sessions.make_session_source, sessions.DESCRIBER_VERSION),
    "granular_event": (granular_events.make_granular_event_source, granular_events.DESCRIBER_VERSION),
    "user_journey": (user_journeys.make_user_journey_source, user_journeys.DESCRIBER_VERSION),
}
#: What people call them, and their names, in the order in which they are loaded: what there is most of last.
PLURALS = {
    "websites": "website",
    "smart_contracts": "smart_contract",
    "campaigns": "campaign",
    "analytics": "analytics",
    "user_journeys": "user_journey",
    "texts": "text",
    "aggregates": "aggregate",
    "monthly_stats": "monthly_stats",
    "weekly_stats": "weekly_stats",
    "daily_stats": "daily_stats",
    "hourly_stats": "hourly_stats",
    "sessions": "session",
    "granular_events": "granular_event",
    "transactions": "transaction",
}


def find_source(name: str, pseudonym_key: bytes = b"") -> Source:
    """Return the source of this name. Raises ``TerminalError`` where it knows users and there is no key."""
    made = _OF_USERS.get(name)
    return _SOURCES[name] if made is None else made[0](pseudonym_key)


def source_collections() -> set[str]:
    """Return the application's collections that the sources are read from, and those that decide who owns a record."""
    # Only where they lie is asked: nothing is described with this key.
    made = (make(b"unused") for make, _ in _OF_USERS.values())
    read = {source.collection for source in (*_SOURCES.values(), *made) if source.name not in OF_THE_STORE}
    return read | {"smartcontracts", "teams", "websites"}


def plural_of(name: str) -> str:
    """Return what people call the records of this source."""
    return next(plural for plural, known in PLURALS.items() if known == name).replace("_", " ")


def describer_version(name: str) -> int:
    """Return the version that goes into the lineage of all that this source describes."""
    made = _OF_USERS.get(name)
    return _SOURCES[name].version if made is None else made[1]


assert set(PLURALS.values()) == _SOURCES.keys() | _OF_USERS.keys()
