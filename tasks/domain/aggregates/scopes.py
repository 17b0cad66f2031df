"""Scope: whom figures are about; and the keys of what is stored of them, partial figures and documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from typing import Any, Literal

from bson import ObjectId

from tasks.domain.aggregates.periods import Period
from tasks.domain.documents import make_key

#: A contract, a team on one chain, a whole team, a website, a campaign of a website.
ScopeKind = Literal["contract", "chain", "team", "site", "campaign"]
#: What partial figures are made from: transactions, visits, and transactions of wallets that a website knows.
PartialTopic = Literal["transactions", "visits", "moves"]
#: What documents tell.
Topic = Literal["transactions", "staking", "visits", "funnel", "campaign"]

#: The chain of transactions that name none, whose contract names none either.
UNKNOWN_CHAIN = "unknown"
#: The day of rows that have no time: they count towards all time, and towards no other period.
UNDATED = "undated"
UTC_ZONE = "UTC"
#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same figures.
AGGREGATES_VERSION = 1
_ID_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Scope:
    """``holder_id`` is the contract's, the website's or the team's id; ``part`` names its chain or its campaign."""

    kind: ScopeKind
    holder_id: str
    part: str = ""

    @classmethod
    def contract(cls, contract_id: str) -> Scope:
        """Return the scope of one contract."""
        return cls("contract", contract_id)

    @classmethod
    def chain(cls, team_id: str, chain: str | None) -> Scope:
        """Return the scope of all contracts of a team on one chain."""
        return cls("chain", team_id, chain or UNKNOWN_CHAIN)

    @classmethod
    def team(cls, team_id: str) -> Scope:
        """Return the scope of a whole team."""
        return cls("team", team_id)

    @classmethod
    def site(cls, site_id: str) -> Scope:
        """Return the scope of one website."""
        return cls("site", site_id)

    @classmethod
    def campaign(cls, site_id: str, campaign_id: str) -> Scope:
        """Return the scope of a campaign, named by its record's ``_id``."""
        return cls("campaign", site_id, campaign_id)

    @property
    def part_words(self) -> tuple[str, ...]:
        """Return what tells its keys from those of its holder."""
        return (f"{self.kind}={self.part}",) if self.part else ()


@dataclass(frozen=True, slots=True)
class PartialKey:
    """Names the partial figures of one day (None: of rows without a time) of one scope, on one time zone's clocks."""

    topic: PartialTopic
    scope: Scope
    day: date | None
    zone: str = UTC_ZONE

    @property
    def text(self) -> str:
        """Return it as one text, for an ``_id``: no two keys share one."""
        day = UNDATED if self.day is None else self.day.isoformat()
        return make_key(self.topic, self.scope.holder_id, self.scope.kind, self.scope.part, day, self.zone)


@dataclass(frozen=True, slots=True)
class AggregateKey:
    """Names the document of one topic, scope and period."""

    topic: Topic
    scope: Scope
    period: Period
    zone: str = UTC_ZONE

    @property
    def text(self) -> str:
        """Return the document's key: ``aggregate:<holder>:transactions:month:2025-06``, then its chain, its zone."""
        zone = () if self.zone == UTC_ZONE else (f"zone={self.zone}",)
        period = self.period
        parts = (self.topic, period.level, period.label, *self.scope.part_words, *zone)
        return make_key("aggregate", self.scope.holder_id, *parts)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], holder_id: str, zone: str) -> AggregateKey:
        """Return the key of the document that has these facts."""
        part = facts.get("chain") or facts.get("campaignId") or ""
        return cls(facts["topic"], Scope(facts["scope"], holder_id, part), Period.from_label(facts["label"]), zone)


def record_id(key: str) -> ObjectId:
    """Return the ``_id`` of the record with this document key.

    Its time is 1970, so these ids lie together, before those of all records that somebody made: a shard of another
    source holds none of them.
    """
    return ObjectId(bytes(4) + blake2b(key.encode(), digest_size=_ID_HASH_BYTES).digest())
