"""The proof: what an undisturbed run stores, and what must hold beside it at every moment and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from tasks.domain.dead_letters import record_key
from tests.end_to_end.pipeline import OF_THE_RUN, Pipeline, comparable
from tests.loopback.gemini import LoopbackGemini

Record = dict[str, Any]
#: The text that proves that the embedder answers: asked once a process, of no record.
CHECK = "transaction"
_ID_BYTES = 12
_SHOWN = 3


class ChaosError(AssertionError):
    """What must not be."""


@dataclass(frozen=True, slots=True)
class Share:
    """What an undisturbed run made of one shard: hashes by document id, stored records, refused records.

    ``texts`` are those that no other shard has.
    """

    hashes: dict[str, tuple[bytes, bytes]]
    stored: frozenset[ObjectId]
    refused: frozenset[bytes]
    texts: frozenset[str]


class Undisturbed:
    """What a run without any trouble stored of the source."""

    def __init__(self, pipeline: Pipeline, *, shard_rows: int) -> None:
        self.documents = comparable(pipeline.documents())
        self.letters = letters_of(pipeline)
        self.indexes = indexes_of(pipeline)
        ids = pipeline.transactions.find({}, {"_id": 1}).sort("_id", 1)
        self._number = {record_key(row["_id"]): place // shard_rows for place, row in enumerate(ids)}
        shards_of: dict[str, set[int]] = {}
        for row in self.documents.values():
            shards_of.setdefault(row["content"], set()).add(self._of(row["sourceId"]))
        self.texts = frozenset(shards_of)
        #: Texts that several shards have: whichever comes first pays, the others find it.
        self.common_texts = sum(len(shards) > 1 for shards in shards_of.values())
        self.shards = {number: self._share(number, shards_of) for number in set(self._number.values())}

    def _of(self, record_id: Any) -> int:
        return self._number[record_key(record_id)]

    def _share(self, number: int, shards_of: dict[str, set[int]]) -> Share:
        rows = [row for row in self.documents.values() if self._of(row["sourceId"]) == number]
        return Share(
            {row["documentId"]: (row["contentHash"], row["rowHash"]) for row in rows},
            frozenset(row["sourceId"] for row in rows),
            frozenset(key for key, row in self.letters.items() if self._of(row["sourceId"]) == number),
            frozenset(text for text, shards in shards_of.items() if shards == {number}),
        )


def letters_of(pipeline: Pipeline) -> dict[bytes, Record]:
    """Return the dead letters by record, without what a shard that is done again may change."""
    of_the_run = ("_id", "runId", "time", "firstSeen", "attempts")
    return {record_key(row["sourceId"]): _without(row, of_the_run) for row in pipeline.letters()}


def indexes_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the keys of the indexes of the documents by name."""
    return {name: index["key"] for name, index in pipeline.store["vectordocuments"].index_information().items()}


def _without(row: Record, names: Iterable[str]) -> Record:
    return {name: value for name, value in row.items() if name not in names}


class Proof:
    """Looks at a store while a run fills it. Every look raises ``ChaosError`` if anything is as it must not be."""

    def __init__(self, undisturbed: Undisturbed, pipeline: Pipeline, gemini: LoopbackGemini) -> None:
        self._undisturbed, self._pipeline, self._gemini = undisturbed, pipeline, gemini
        #: How often each text of a finished shard had been embedded when its checkpoint was first seen.
        self._paid: dict[int, dict[str, int]] = {}
        self.run_keys: set[str] = set()
        self.looks = 0

    @property
    def finished(self) -> int:
        """Return how many shards were seen to be finished."""
        return len(self._paid)

    def look(self) -> None:
        """Hold every checkpoint against the data that it promises, and the texts of its shard against what was paid."""
        self.looks += 1
        store = _majority(self._pipeline.store)
        # A process that is killed right behind the end of its run is followed by a run of its own.
        completed = store["embeddingjobs"].find_one({"status": "completed"}) is not None
        # Checkpoints first: what they promise was written before them.
        checkpoints = list(store["ragcheckpoints"].find({}, {"shard": 1, "recordIds": 1, "runKey": 1}))
        rows = store["vectordocuments"].find({}, {"_id": 0, "documentId": 1, "contentHash": 1, "rowHash": 1})
        stored = {row["documentId"]: (row["contentHash"], row["rowHash"]) for row in rows}
        letters = {record_key(row["sourceId"]) for row in store["deadletters"].find({"status": "open"})}
        for checkpoint in checkpoints:
            number, promised = checkpoint["shard"], bytes(checkpoint["recordIds"])
            share = self._undisturbed.shards[number]
            said = {ObjectId(promised[at : at + _ID_BYTES]) for at in range(0, len(promised), _ID_BYTES)}
            _require(said == share.stored, f"the checkpoint of shard {number} names other records")
            missing = [key for key, hashes in share.hashes.items() if stored.get(key) != hashes]
            _require(not missing, f"the checkpoint of shard {number} is ahead of {len(missing)} documents", missing)
            _require(share.refused <= letters, f"the checkpoint of shard {number} is ahead of its dead letters")
            if not completed:
                self.run_keys.add(checkpoint["runKey"])
            self._paid.setdefault(number, {text: self._gemini.embedded[text] for text in share.texts})
        self._require_paid_once_finished()

    def _require_paid_once_finished(self) -> None:
        for number, paid in self._paid.items():
            again = [text for text, times in paid.items() if self._gemini.embedded[text] != times]
            _require(not again, f"{len(again)} texts of shard {number} were embedded after its checkpoint", again)

    def conclude(self) -> None:
        """Hold the store, its books and the folder after the last run against those of the undisturbed one."""
        self._require_paid_once_finished()
        pipeline, expected = self._pipeline, self._undisturbed
        found = comparable(pipeline.documents())
        _require(
            found.keys() == expected.documents.keys(),
            "other documents are stored",
            found.keys() ^ expected.documents.keys(),
        )
        other = [key for key, row in found.items() if row != expected.documents[key]]
        _require(not other, f"{len(other)} documents differ in more than {', '.join(OF_THE_RUN)}", other)
        letters = letters_of(pipeline)
        _require(letters == expected.letters, "dead letters differ", letters.keys() ^ expected.letters.keys())
        _require(indexes_of(pipeline) == expected.indexes, "indexes differ")
        # One that was killed before it had a plan had done nothing: it is closed, and the next run begins anew.
        planned = [job for job in pipeline.jobs() if job["progress"]["total"]]
        unended = [job["jobId"] for job in planned if job["status"] != "completed"]
        _require(not unended, "jobs are not completed", unended)
        _require(pipeline.store["ragcheckpoints"].count_documents({}) == 0, "checkpoints are left")
        position = pipeline.position()
        _require(position is not None and "operationTime" in position, "where to follow the source is not put down")
        left = [str(path) for path in files_in(pipeline.home / "shards")]
        _require(not left, "files are left in the shard folder", left)
        (spending,) = pipeline.store["ragstore"].find({"_id": {"$regex": "^spending:"}})
        sent = sum(times for text, times in self._gemini.embedded.items() if text != CHECK)
        _require(spending["texts"] >= sent, f"{spending['texts']} texts are counted, {sent} were paid")


def files_in(folder: Path) -> list[Path]:
    """Return the files under a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


# -- what was paid twice ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """One process of the run: the first request that it may have made, and how it ended."""

    first_request: int
    ended: str = "running"


@dataclass(frozen=True, slots=True)
class PaidTwice:
    """Texts that were paid again: their replies were under way when their process ended."""

    texts: int
    requests: int
    by_end: dict[str, int]
    most_requests_of_a_process: int


def account(gemini: LoopbackGemini, lives: list[Life], *, at_once: int) -> PaidTwice:
    """Return what was paid again, and why. Raises ``ChaosError`` where a process's end does not explain it.

    A process has ``at_once`` replies at most that are answered and not yet kept: no more may be lost with it.
    """
    starts = [life.first_request for life in lives]
    paid: dict[str, list[tuple[int, int]]] = {}
    for request in sorted(gemini.requests, key=lambda request: request.index):
        if request.status == 200:
            life = sum(start <= request.index for start in starts) - 1
            for text in request.texts:
                if text != CHECK:
                    paid.setdefault(text, []).append((life, request.index))
    again = {text: times for text, times in paid.items() if len(times) > 1}
    within = [text for text, times in again.items() if len({life for life, _ in times}) < len(times)]
    _require(not within, f"{len(within)} texts were embedded twice by one process", within)
    lost: dict[int, set[int]] = {}
    by_end: Counter[str] = Counter()
    for times in again.values():
        for life, index in times[:-1]:
            lost.setdefault(life, set()).add(index)
            by_end[lives[life].ended] += 1
    most = max((len(requests) for requests in lost.values()), default=0)
    _require(most <= at_once, f"{most} replies were lost with one process, of at most {at_once} under way")
    return PaidTwice(sum(by_end.values()), sum(map(len, lost.values())), dict(by_end), most)


def _majority(database: Database[Record]) -> Database[Record]:
    return database.with_options(read_concern=ReadConcern("majority"))


def _require(holds: bool, words: str, examples: Iterable[object] = ()) -> None:
    if not holds:
        shown = "; ".join(str(example)[:200] for _, example in zip(range(_SHOWN), examples, strict=False))
        raise ChaosError(f"{words}: {shown}" if shown else words)
