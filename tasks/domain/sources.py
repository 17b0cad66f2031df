"""Source: one kind of record, from where it lies to what it is described as. Stages know sources by this alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from bson import ObjectId

from tasks.domain.columns import Columns
from tasks.domain.documents import Document
from tasks.domain.owners import Holder, Owners

Record = Mapping[str, Any]
Criteria = dict[str, Any]
_ID_BYTES = 12


def of_sites(owners: Owners, team_ids: Collection[str], holder_ids: Collection[str]) -> Criteria:
    """Return the MongoDB filter of records that name their website by ``siteId``: those of these teams and websites."""
    chosen = [
        site.site_id
        for site in owners.by_site_id.values()
        if (not team_ids or site.team_id in team_ids) and (not holder_ids or site.site_id in holder_ids)
    ]
    return {"siteId": {"$in": chosen}}


@dataclass(frozen=True, slots=True)
class Source:
    """What the stages need to know of one kind of record. All functions are pure, and raise ``RecordError``.

    - ``name`` names it in parameters, positions and dead letters, and begins the key of each of its documents;
      ``source_type`` is that of its vector documents.
    - ``fields`` are all that parsing reads of a record of ``collection``; nothing else is fetched.
    - ``version`` goes into every vector's lineage: raise it whenever a text or a fact changes for the same record.
      The next run then writes what differs, and embeds only the texts that really changed.
    - ``time_field`` is what a window bounds and ``read_time`` what it holds, in epoch milliseconds, or None where a
      record has no time or one that can't be read.
    - ``find_holder`` returns the contract or the website through which a record has its team; ``owned_by`` returns the
      filter of the records of these teams and holders, where empty collections mean all.
    - ``describe`` returns what a record is stored as; its third argument is the run's start in epoch milliseconds,
      the "now" of every rule about time.
    - ``seal`` stands for what else decides the text, such as the key of pseudonyms: with another one every record is
      described again.
    - ``forgets`` says that the source keeps a record for a while only: one that is no longer there was not deleted, and
      what is stored of it stays.
    - ``split`` makes records of one record of the collection, where it holds several (a list of journeys, a ring of
      snapshots); each has an ``_id`` of its own, the one that it was stored with or a ``derived_id``.
    - ``columns`` say which of a document's facts play which part in judging a run (``tasks/domain/profiles.py``);
      without any, its records are counted, per team too, and nothing else is said of them.
    """

    name: str
    source_type: str
    collection: str
    fields: tuple[str, ...]
    version: int
    find_holder: Callable[[Record, Owners], Holder]
    describe: Callable[[Record, Owners, int], Document]
    time_field: str | None
    read_time: Callable[[Record], int | None]
    split: Callable[[Record], Iterator[dict[str, Any]]] | None = None
    seal: str = ""
    forgets: bool = False
    owned_by: Callable[[Owners, Collection[str], Collection[str]], Criteria] = of_sites
    columns: Columns = field(default_factory=Columns)


def derived_id(*parts: object) -> ObjectId:
    """Return the ``_id`` of what has none of its own: equal parts give the same one."""
    return ObjectId(blake2b("\0".join(map(str, parts)).encode(), digest_size=_ID_BYTES).digest())
