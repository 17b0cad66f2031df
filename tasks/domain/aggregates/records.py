"""Aggregate records: documents of figures as they lie in ``ragaggregates``, from where they are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any

import bson
from bson import ObjectId

from tasks.domain.aggregates.scopes import AGGREGATES_VERSION, record_id
from tasks.domain.collections import AGGREGATES as COLLECTION
from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.figures import read_moment_ms
from tasks.domain.owners import Holder, Owners, Site
from tasks.domain.sources import Criteria, Record, Source

_DIGEST_BYTES = 16
_OF_TEAMS = frozenset({"team", "chain"})


def to_record(document: Document, zone: str, now: datetime) -> dict[str, Any]:
    """Return the record of a document. Its ``_id`` comes from the document's key, its ``digest`` from all but ``now``.

    Raises ``bson.errors.InvalidId`` for a team that is no ObjectId.
    """
    record: dict[str, Any] = {
        "_id": record_id(document.key),
        "key": document.key,
        "sourceType": document.source_type,
        "holderId": document.holder_id,
        "teamId": ObjectId(document.team_id),
        "siteId": document.site_id,
        "content": document.content,
        "summary": document.summary,
        "metadata": document.metadata,
        "zone": zone,
    }
    digest = blake2b(bson.encode(record), digest_size=_DIGEST_BYTES).hexdigest()
    return {**record, "digest": digest, "updatedAt": now}


def from_record(record: Mapping[str, Any]) -> Document:
    """Return the document that the record was made of."""
    return Document(
        source_type=record["sourceType"],
        source_id=str(record["_id"]),
        key=record["key"],
        holder_id=record["holderId"],
        team_id=str(record["teamId"]),
        site_id=record["siteId"],
        content=record["content"],
        summary=record["summary"],
        metadata=dict(record["metadata"]),
    )


def _find_holder(record: Record, owners: Owners) -> Holder:
    """Return whom the figures are about. Raises ``RecordError`` where that has another team by now, or none."""
    holder_id, team_id = record["holderId"], str(record["teamId"])
    scope = record["metadata"]["facts"]["scope"]
    if scope in _OF_TEAMS:
        return Site(holder_id, None, None, team_id)
    found: Holder | None = (owners.by_contract_id if scope == "contract" else owners.by_site_id).get(holder_id)
    if found is None or found.owner_error is not None or found.team_id != team_id:
        raise RecordError(
            "owner_changed",
            f"the figures of {holder_id[:60]} are those of team {team_id}, which it no longer belongs to: "
            "`cryptique-rag aggregate` makes them again for the team that it has now",
        )
    return found


def _describe(record: Record, owners: Owners, now_ms: int) -> Document:
    _find_holder(record, owners)
    return from_record(record)


def _read_time(record: Record) -> int | None:
    return read_moment_ms(record["metadata"].get("timeframe", {}).get("start"))


def _owned_by(owners: Owners, team_ids: Collection[str], holder_ids: Collection[str]) -> Criteria:
    chosen: Criteria = {}
    if team_ids:
        chosen["teamId"] = {"$in": [ObjectId(team_id) for team_id in team_ids]}
    if holder_ids:
        chosen["holderId"] = {"$in": list(holder_ids)}
    return chosen


#: Its records lie in the vector store's database: who reads them says so (``Parts.of_source``).
AGGREGATES = Source(
    name="aggregate",
    source_type="analytics",
    collection=COLLECTION,
    fields=("key", "sourceType", "holderId", "teamId", "siteId", "content", "summary", "metadata"),
    version=AGGREGATES_VERSION,
    find_holder=_find_holder,
    describe=_describe,
    time_field="metadata.timeframe.start",
    read_time=_read_time,
    owned_by=_owned_by,
)
