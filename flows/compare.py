"""Compare: every record of a source, described anew, with what is stored of it, one range of the source at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from prefect import task

from blocks.mongo import MongoSource
from blocks.records import Records, open_records
from blocks.vector_store import VectorStore
from flows.blocks import Parts
from flows.load import describe, plan_shards
from flows.progress import Progress
from flows.report import Announcer
from flows.stages import extract_arguments, whole
from tasks.chunk import DescribedChunk
from tasks.domain.batches import batched
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.differences import Differences, Move, Place, day_of
from tasks.domain.documents import holder_of
from tasks.domain.owners import Owners
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run
from tasks.domain.shards import ShardRange
from tasks.domain.sources import Source
from tasks.extract import extract_shard
from tasks.policy import STAGE

Document = Mapping[str, Any]

_LOOKUP_RECORDS = 1_000
_LOOKED_AT = ("siteId", "metadata.timeframe.start", "ownerLost")
#: What made a record a dead letter may be a date or a text that can't be read.
_AS_THE_SOURCE: CodecOptions[Document] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)


def compare_source(run: Run, parts: Parts, shard_rows: int) -> Differences:
    """Return what differs between the run's source and its vectors. Reads only; memory holds a shard, and no ids but
    of what differs.
    """
    shards = plan_shards.with_options(retries=parts.retries)(parts.source, whole(parts.owners), run.scope, shard_rows)
    found = Differences()
    progress = Progress(sum(shard.planned for shard in shards))
    announcer = Announcer("reconcile", progress)
    looking = replace(run, thorough=False)  # counting a record's documents is enough to find that it has too many
    try:
        for planned in shards or [ShardRange(0, None, None, 0)]:
            shard = extract_shard(whole(looking), planned, *extract_arguments(parts), look_at_all=True)
            chunks, letters = describe(looking, shard, parts)
            found.merge(
                compare_shard(
                    planned,
                    whole(chunks),
                    whole(letters),
                    run.scope.source,
                    parts.source,
                    whole(parts.owners),
                    parts.vectors,
                )
            )
            progress.done += shard.read
            announcer.tell()
    finally:
        parts.store.drop_run(run.key)  # the shards of the comparison have the numbers of the batches that follow
    announcer.finish()
    return found


@task(name="compare", task_run_name="compare {shard.number}", **STAGE)
def compare_shard(
    shard: ShardRange,
    chunks: Sequence[DescribedChunk],
    letters: Sequence[DeadLetter],
    name: str,
    source: MongoSource,
    owners: Owners,
    vectors: VectorStore,
) -> Differences:
    """Return what differs between a range of the source with this name, described, and what is stored of it."""
    records = open_records(source, name)
    comparison = _Comparison(records, owners, vectors, _made_by(chunks), _refused_by(letters, records.kind))
    # One shard of a small source spans the ids of all the others.
    alone = (shard.lower, shard.upper) == (None, None)
    comparison.look(Counter(vectors.read_source_ids(shard, of=name if alone or not records.are_in_order else None)))
    comparison.look_at_letters()
    return comparison.found


@dataclass(slots=True)
class _Made:
    """What a record makes now: how many documents, one of them whole, and whether any is new or changed."""

    place: Place
    body: bytes
    documents: int = 0
    is_new: bool = False
    is_changed: bool = False

    def is_elsewhere(self, document: Document) -> bool:
        """Return whether a stored document is for others than the record belongs to now."""
        body = bson.decode(self.body)
        return _owner_of(document) != (self.place.team_id, self.place.holder_id, body["siteId"])


@dataclass(slots=True)
class _Refused:
    """A record that makes nothing now, and why."""

    record_id: Any
    place: Place
    code: str

    def is_elsewhere(self, document: Document) -> bool:
        """Return whether a stored document is for others than the record belongs to now, or for others than nobody."""
        return _owner_of(document)[:2] != (self.place.team_id, self.place.holder_id)


def _made_by(chunks: Iterable[DescribedChunk]) -> dict[ObjectId, _Made]:
    made: dict[ObjectId, _Made] = {}
    for chunk in chunks:
        record_id = ObjectId(chunk.record_id)
        one = made.get(record_id)
        if one is None:
            # Its time is in the document that it makes, and need not be read from the source again.
            day = _day_of_document(bson.decode(chunk.body))
            one = made[record_id] = _Made(Place(chunk.team_id, chunk.holder_id, day), chunk.body)
        one.documents += 1
        one.is_new |= chunk.verdict == Verdict.NEW
        one.is_changed |= chunk.verdict != Verdict.UNCHANGED
    return made


def _refused_by(letters: Iterable[DeadLetter], kind: Source) -> dict[bytes, _Refused]:
    """Return the refused records by their ``record_key``."""
    refused: dict[bytes, _Refused] = {}
    for letter in letters:
        record_id = letter.record_id
        place = Place(letter.team_id, letter.holder_id, _day_of_letter(letter, kind))
        refused[record_key(record_id)] = _Refused(record_id, place, letter.code)
    return refused


def _day_of_letter(letter: DeadLetter, kind: Source) -> str | None:
    return day_of(kind.read_time(bson.decode(letter.record, _AS_THE_SOURCE)))


def _day_of_document(document: Document) -> str | None:
    return day_of(((document.get("metadata") or {}).get("timeframe") or {}).get("start"))


def _owner_of(document: Document) -> tuple[str, str, str]:
    return str(document["teamId"]), holder_of(document["documentId"]), document["siteId"]


@dataclass(slots=True)
class _Comparison:
    """One range of a source, beside what is stored of it."""

    records: Records
    owners: Owners
    vectors: VectorStore
    made: Mapping[ObjectId, _Made]
    refused: Mapping[bytes, _Refused]
    found: Differences = field(default_factory=Differences)
    differing: set[bytes] = field(default_factory=set)

    @property
    def _name(self) -> str:
        return self.records.kind.name

    def look(self, stored: Mapping[ObjectId, int]) -> None:
        """Compare every record with how many documents are stored of each id, by whatever source."""
        for record_id, made in self.made.items():
            tally = self.found.at(made.place)
            tally.in_source += 1
            if record_id not in stored:
                self._add("missing", record_id, made.place)
            elif not self._is_suspect(record_id, stored[record_id]):
                tally.stored += 1
        for refused in self.refused.values():
            tally = self.found.at(refused.place)
            tally.in_source += 1
            tally.dead_lettered += 1
            self.found.refused[refused.code] += 1
        # Other sources have documents in the same collection: what looks wrong is looked at once more, by source.
        suspects = [record_id for record_id, count in stored.items() if self._is_suspect(record_id, count)]
        strangers = [record_id for record_id in suspects if self._is_stranger(record_id)]
        # One that was added since the range was read has its vectors by right.
        alive = self.records.find_existing(strangers)
        for some in batched(suspects, _LOOKUP_RECORDS):
            documents: dict[ObjectId, list[Document]] = {}
            for document in self.vectors.find_documents(self._name, some, more=_LOOKED_AT):
                documents.setdefault(document["sourceId"], []).append(document)
            for record_id in some:
                own = documents.get(record_id, [])
                if not self._is_stranger(record_id):
                    self._judge(record_id, own)
                elif own and record_key(record_id) not in alive:
                    self._judge_stranger(record_id, own)

    def look_at_letters(self) -> None:
        """Find the refused records without an open dead letter, and the others with one."""
        known: set[bytes] = set()
        others = {record_id.binary: (record_id, made.place) for record_id, made in self.made.items()}
        if self.vectors.has_dead_letters():
            ids = [*(one.record_id for one in self.refused.values()), *self.made]
            for some in batched(ids, _LOOKUP_RECORDS):
                known |= self.vectors.find_dead_letter_keys(self._name, some)
        wrong = {key: (one.record_id, one.place) for key, one in self.refused.items() if key not in known}
        wrong |= {key: one for key, one in others.items() if key in known}
        for key, (record_id, place) in wrong.items():
            if key not in self.differing:
                self._add("unaccounted", record_id, place)

    def _is_stranger(self, record_id: ObjectId) -> bool:
        return record_id not in self.made and record_id.binary not in self.refused

    def _is_suspect(self, record_id: ObjectId, count: int) -> bool:
        made = self.made.get(record_id)
        return made is None or made.is_changed or count != made.documents

    def _add(self, kind: str, record_id: Any, place: Place) -> None:
        self.differing.add(record_key(record_id))
        self.found.add(kind, record_id, place)
        self.found.to_mend.extend([record_id])

    def _judge(self, record_id: ObjectId, documents: Sequence[Document]) -> None:
        """Say what is wrong with a record that the source holds; ``documents`` are what is stored of it."""
        now: _Made | _Refused = self.made.get(record_id) or self.refused[record_id.binary]
        elsewhere = [document for document in documents if now.is_elsewhere(document)]
        at_home = len(documents) > len(elsewhere)
        if documents:
            self.found.at(now.place if at_home else _stored_at(elsewhere[0])).stored += 1
        kind = None
        if isinstance(now, _Refused):
            kind = ("moved" if elsewhere else "doubled") if documents else None
        elif elsewhere and now.is_changed:
            kind = "moved"
        elif now.is_new:
            kind = "missing"
        elif now.is_changed:
            kind = "stale"
        elif len(documents) > now.documents:
            kind = "doubled"
        if kind is None:
            return
        self._add(kind, record_id, now.place)
        if kind == "moved":
            self._move(elsewhere[0], now.place.team_id, now.place.holder_id)

    def _judge_stranger(self, record_id: ObjectId, documents: Sequence[Document]) -> None:
        """Say what is wrong with documents whose record is gone from the source."""
        place = _stored_at(documents[0])
        if not self.records.kind.forgets:
            self.found.at(place).stored += 1
            self.found.add("orphaned", record_id, place)
            self.found.orphans.extend([record_id])
            return
        holder = self.owners.find_holder(holder_of(documents[0]["documentId"]))
        if holder is None:
            is_kept_right = all(document.get("ownerLost") for document in documents)
        else:
            right = (holder.team_id, holder.site_id)
            is_kept_right = all(
                (str(document["teamId"]), document["siteId"]) == right and not document.get("ownerLost")
                for document in documents
            )
        if holder is not None or not is_kept_right:
            self.found.at(place).stored += 1
        if is_kept_right:
            return
        team_id = None if holder is None else holder.team_id
        now = Place(team_id, place.holder_id, place.day)
        self.found.add("moved", record_id, now)
        self.found.kept.extend([record_id])
        self._move(documents[0], team_id, place.holder_id)

    def _move(self, document: Document, team_id: str | None, holder_id: str | None) -> None:
        from_team, from_holder, _ = _owner_of(document)
        self.found.add_move(Move(from_team, from_holder, team_id, holder_id))


def _stored_at(document: Document) -> Place:
    team_id, holder_id, _ = _owner_of(document)
    return Place(team_id, holder_id, _day_of_document(document))
