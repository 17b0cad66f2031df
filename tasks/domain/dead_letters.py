"""DeadLetter: a refused record with its reason, kept until it is replayed or gone from the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import bson
from bson import ObjectId

from tasks.domain.errors import RecordError
from tasks.domain.personal import without_personal

#: The call data of one row can be 238,000 digits; a dead letter keeps what a person can read.
MAX_KEPT_CHARS, MAX_KEPT_ITEMS = 300, 20
#: How the codes of records begin that can be read but aren't trusted.
WITHHELD = "quarantined_"


def record_key(record_id: Any) -> bytes:
    """Return bytes that stand for an ``_id`` of any type: ids may be documents, which no set holds."""
    return record_id.binary if isinstance(record_id, ObjectId) else bson.encode({"_id": record_id})


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """``source`` names its source, ``source_id`` is the record's ``_id`` of any type, ``record`` an excerpt as BSON.

    ``team_id`` and ``holder_id`` are None where the record's owner could not be told.
    """

    source: str
    source_id: bytes
    stage: str
    code: str
    reason: str
    team_id: str | None
    holder_id: str | None
    record: bytes

    @property
    def record_id(self) -> Any:
        """Return the record's ``_id`` as the source has it."""
        return bson.decode(self.source_id)["_id"]

    @classmethod
    def from_error(
        cls,
        error: RecordError,
        *,
        source: str,
        stage: str,
        record: Mapping[str, Any],
        team_id: str | None = None,
        holder_id: str | None = None,
    ) -> DeadLetter:
        """Return the dead letter of a record that raised ``error`` in ``stage``. Long values are cut."""
        if holder_id is None:
            named = record.get("contractId") or record.get("siteId")
            holder_id = named if type(named) is str else None  # BSON's code is a kind of str
        return cls(
            source=source,
            source_id=bson.encode({"_id": record["_id"]}),
            stage=stage,
            code=error.code,
            reason=error.reason,
            team_id=team_id,
            holder_id=holder_id,
            record=bson.encode(excerpt(record)),
        )


def excerpt(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be kept and shown of a record: nothing personal, long values cut."""
    return {name: _shortened(value) for name, value in without_personal(record).items()}


def duplicate_letter(*, record_id: str, team_id: str, holder_id: str, key: str, twin: str, stage: str) -> DeadLetter:
    """Return the dead letter of a record whose document (``key``) another record, ``twin``, holds already."""
    error = RecordError(
        "duplicate_record",
        f"the source holds this twice: {key} stands in record {twin} too, which is the one that is "
        "stored; delete one of the two",
    )
    return DeadLetter.from_error(
        error,
        source=key.partition(":")[0],
        stage=stage,
        record={"_id": ObjectId(record_id), "holderId": holder_id, "key": key},
        team_id=team_id,
        holder_id=holder_id,
    )


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_KEPT_CHARS:
        return f"{value[:MAX_KEPT_CHARS]}… ({len(value):,} characters)"
    if isinstance(value, bytes) and len(value) > MAX_KEPT_CHARS:
        return f"{value[:MAX_KEPT_CHARS].hex()}… ({len(value):,} bytes)"
    if isinstance(value, Mapping):
        return {name: _shortened(value[name]) for name in islice(value, MAX_KEPT_ITEMS)}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:MAX_KEPT_ITEMS]]
    return value
