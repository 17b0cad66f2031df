"""Search index: the documents of one generation in mapped files and a tail in memory, following what is written.

It stands in for a server's own vector search: ``choose``, ``nearest`` and ``by_words`` over segments that never change.
A change makes a new small segment and takes the document's old place out of the living; small ones are merged, beside
the thread that follows, which takes the outcome over. What is searched is always one view, so an answer is of one
moment.

Several processes may have it open. One of them holds the lock and writes; the others read its files and follow the
store themselves. A crash loses nothing: files are named by a manifest that is replaced at once, with the position in
the store's change stream that they represent, and what came after it is read again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

import numpy as np
from bson import ObjectId, json_util

from blocks.vector_store import VectorStore
from tasks.domain.errors import HistoryLostError, PipelineError
from tasks.domain.retrieval.entries import Entry, make_entry, state_of
from tasks.domain.retrieval.segments import SEGMENT_VERSION, Segment
from tasks.domain.retrieval.views import LivingSegment, SegmentsView
from tasks.domain.rows import read_vector
from tasks.domain.vectors import Matrix

_LOGGER = logging.getLogger("cryptique.search")
#: A first load is cut so: memory holds so many documents with their words.
_BUILD_ROWS = 8_192
#: So many documents in memory, or so many seconds, and they are written down.
_FLUSH_ROWS, _FLUSH_S = 4_096, 60.0
#: Segments smaller than this are merged, eight at a time, into one of at most the second.
_SMALL_ROWS, _LARGE_ROWS, _MERGED = 65_536, 147_456, 8
#: A segment of which less is alive is written anew.
_ALIVE_SHARE = 0.5
_WAIT_S = 0.2
_RETRY_S = 1.0
#: A server that keeps no history is compared so often.
_COMPARE_S = 10.0
_BATCH = 1_000
_MANIFEST, _LOCK = "manifest.json", "lock"


@dataclass(frozen=True, eq=False)
class _Held(LivingSegment):
    """A segment in a view. One in memory has its entries, and no name."""

    name: str | None = None
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, eq=False)
class IndexView(SegmentsView):
    """The index as it was at one moment."""

    parts: tuple[_Held, ...] = ()


@dataclass(slots=True)
class Progress:
    """How far a build is: ``done`` of ``total`` documents. ``followed_at`` is when the store was last heard of."""

    done: int = 0
    total: int = 0
    read: int = 0
    followed_at: float = field(default_factory=time.monotonic)


class _Merge:
    """A merge in a thread of its own: of what ``chosen`` held at its beginning, into a folder that nobody knows yet."""

    def __init__(self, chosen: Sequence[_Held], folder: Path) -> None:
        self.chosen, self.folder = tuple(chosen), folder
        self.made: Segment | None = None
        #: Until it is whole, nothing may take the place of what it merges.
        self.failure: Exception | None = InterruptedError("it did not end")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="search-merge", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Return whether there is an outcome, or a failure."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Leave it, and wait until nothing is written any more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.made = _merged(self.chosen, self.folder, self._stopped.is_set)
            self.failure = None
        except (OSError, ValueError, MemoryError) as error:
            self.failure = error


class SearchIndex:
    """The index of one generation, in a folder. One thread changes it, any may search ``view``."""

    def __init__(self, vectors: VectorStore, folder: Path, *, dimensions: int) -> None:
        """``vectors`` is the store at the generation; ``dimensions`` are those of its vectors: others are left out."""
        self._vectors, self._folder, self._dimensions = vectors, folder, dimensions
        self.view = IndexView(vectors.generation_name)
        self.progress = Progress()
        self._position: dict[str, Any] = {}
        self._saved: Mapping[str, Any] = {}
        self._lock_file: TextIO | None = None
        self._flushed_at = time.monotonic()
        self._whole = False
        self._merges_beside = False
        self._merge: _Merge | None = None

    # -- opening ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open what is on the disk, or build it, and take over what was written since. Errors are the store's.

        Where another process is building it, waits for that.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            writes = self._take_lock()
            if self._read_manifest():
                break
            if writes:
                self._build()
                break
            time.sleep(_RETRY_S)
        self.catch_up()

    def catch_up(self) -> None:
        """Take over all that was written until now."""
        for changed in self._changes(lambda: False):
            if not changed or not self._position:
                return

    def follow(self, stopped: threading.Event) -> None:
        """Take over what is written, within a second of it, until ``stopped``; what fails is tried again."""
        self._merges_beside = True
        try:
            while not stopped.is_set():
                try:
                    for _ in self._changes(stopped.is_set):
                        self._take_merged()
                        self._keep_house()
                except PipelineError as error:
                    _LOGGER.warning("the search index does not hear of the store, and tries again: %s", error)
                    stopped.wait(_RETRY_S)
                except OSError as error:
                    _LOGGER.error("the search index can't be written, and is kept in memory: %s", error)
                    self._flushed_at = time.monotonic()
                    stopped.wait(_RETRY_S)
        finally:
            self._merges_beside = False
            if self._merge is not None:
                self._merge.stop()
                self._merge = None

    def close(self) -> None:
        """Write down what is in memory, if this process may, and give the lock back."""
        if self._lock_file is not None:
            try:
                self._flush(merge=False)
            except OSError as error:
                _LOGGER.warning("the search index is not written down: %s; its changes are read again", error)
            self._lock_file.close()
            self._lock_file = None

    @property
    def behind_s(self) -> float:
        """Return for how many seconds nothing was heard of the store."""
        return time.monotonic() - self.progress.followed_at

    def _take_lock(self) -> bool:
        if self._lock_file is None:
            file = (self._folder / _LOCK).open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._lock_file = file
        return True

    # -- changes ---------------------------------------------------------------------------------------------------

    def _changes(self, stop: Callable[[], bool]) -> Iterable[bool]:
        """Take over changes; yield after each look at the store whether there were any."""
        while not stop():
            if not self._whole:
                # What is written while it is compared comes after this moment; until all is done, neither counts.
                moment = self._now()
                changed = self._compare()
                self._position, self._whole = moment, True
                yield changed
            if not self._position:
                # A server without history: what differs is looked for again and again.
                yield self._compare()
                self.progress.followed_at = time.monotonic()
                deadline = time.monotonic() + _COMPARE_S
                while time.monotonic() < deadline and not stop():
                    time.sleep(_WAIT_S)
                continue
            try:
                batches = self._vectors.follow_changes(
                    self._vectors.vectors_name, self._position, batch_records=_BATCH, stop=stop, wait_s=_WAIT_S
                )
                for batch in batches:
                    if batch.ids:
                        self._apply([one for one in batch.ids if isinstance(one, ObjectId)])
                    self._position = batch.position or self._position
                    self.progress.followed_at = time.monotonic()
                    yield bool(batch.ids)
            except HistoryLostError as error:
                _LOGGER.warning("%s: the search index is compared with the store", error)
                self._whole = False

    def _now(self) -> dict[str, Any]:
        moment = self._vectors.read_operation_time()
        return {} if moment is None else {"operationTime": moment}

    def _apply(self, ids: Sequence[ObjectId]) -> None:
        rows: dict[ObjectId, Mapping[str, Any]] = {}
        for batch in self._vectors.read_index_rows(ids):
            rows |= {row["_id"]: row for row in batch}
        self.progress.read += len(rows)
        states = {row_id: state_of(row) for row_id, row in rows.items()}
        wanted = np.array([one.binary for one in ids], dtype="S12")
        parts = list(self.view.parts)
        unchanged: set[ObjectId] = set()
        for place, held in enumerate(parts):
            positions = held.segment.find_rows(wanted)
            dead = []
            for row_id, position in zip(ids, positions, strict=True):
                if position < 0 or not held.alive[position]:
                    continue
                if states.get(row_id) == int(held.segment.states[position]):
                    unchanged.add(row_id)
                else:
                    dead.append(int(position))
            if dead:
                alive = held.alive.copy()
                alive[dead] = False
                parts[place] = replace(held, alive=alive)
        new = [row for row_id, row in rows.items() if row_id not in unchanged]
        self._publish(parts, new)

    def _publish(self, parts: Sequence[_Held], new: Sequence[Mapping[str, Any]]) -> None:
        """Show these parts, and the new rows in a segment of their own; neighbours in memory are merged by size."""
        on_disk = [one for one in parts if one.name is not None]
        tail = [one for one in parts if one.name is None and one.living]
        made = self._in_memory(new)
        if made is not None:
            tail.append(made)
        while len(tail) > 1 and tail[-2].living <= 2 * tail[-1].living:
            tail[-2:] = [_together(tail[-2:])]
        self.view = replace(self.view, parts=(*on_disk, *tail))

    def _in_memory(self, rows: Sequence[Mapping[str, Any]]) -> _Held | None:
        entries, vectors = [], []
        for row in rows:
            try:
                vector, entry = read_vector(row["embedding"]), make_entry(row)
            except (KeyError, TypeError, ValueError) as error:
                _LOGGER.warning("%s can't be searched: %r", row.get("documentId", row["_id"]), error)
                continue
            if len(vector) != self._dimensions:
                _LOGGER.warning("%s has %d dimensions, and can't be searched", row["documentId"], len(vector))
                continue
            # What is no number, or has no direction, would stand at the head of every ranking.
            if not 0 < float(vector @ vector) < np.inf:
                _LOGGER.warning("%s has a vector without a direction, and can't be searched", row["documentId"])
                continue
            entries.append(entry)
            vectors.append(vector)
        return _held(entries, np.stack(vectors)) if entries else None

    def _compare(self) -> bool:
        """Take over what differs between the index and the store, by what each document is stored as."""
        seen = [np.zeros(len(one.alive), dtype=np.bool_) for one in self.view.parts]
        differing: list[ObjectId] = []
        parts = self.view.parts
        for batch in self._vectors.read_index_states():
            wanted = np.array([row["_id"].binary for row in batch], dtype="S12")
            states = np.array([state_of(row) for row in batch], dtype=np.uint64)
            same = np.zeros(len(batch), dtype=np.bool_)
            for held, mine in zip(parts, seen, strict=True):
                positions = held.segment.find_rows(wanted)
                here = (positions >= 0) & held.alive[positions]
                equal = here & (held.segment.states[positions] == states)
                mine[positions[equal]] = True
                same |= equal
            differing.extend(row["_id"] for row, one in zip(batch, same, strict=True) if not one)
        gone = any(bool((held.alive & ~mine).any()) for held, mine in zip(parts, seen, strict=True))
        if gone:
            self._publish([replace(one, alive=one.alive & mine) for one, mine in zip(parts, seen, strict=True)], [])
        for start in range(0, len(differing), _BATCH):
            self._apply(differing[start : start + _BATCH])
            self._keep_house()
        return gone or bool(differing)

    # -- files -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Read the whole store. What is written meanwhile is taken over from the moment at which this began."""
        position = self._now()
        self.view = IndexView(self._vectors.generation_name)
        self.progress.done, self.progress.total = 0, self._vectors.measure()[0]
        for batch in self._vectors.read_index_rows(batch_rows=_BUILD_ROWS):
            held = self._in_memory(batch)
            self.progress.done += len(batch)
            self.progress.read += len(batch)
            if held is not None:
                self.view = replace(self.view, parts=(*self.view.parts, self._saved_segment(held)))
                self._merge_small()
        # Each segment costs each question some calls: a store that was read at once is in as few as can be.
        self._merge_small(least=2)
        self._position, self._whole = position, True
        self._write_manifest()

    def _keep_house(self) -> None:
        """Write down what gathers in memory; where another process does that, read again what it wrote."""
        tail = sum(one.living for one in self.view.parts if one.name is None)
        since = time.monotonic() - self._flushed_at
        if tail < _FLUSH_ROWS and since < _FLUSH_S:
            return
        if self._lock_file is not None:
            self._flush()
        elif self._take_lock():
            # Who wrote until now may have merged what this process has open: its files count.
            self._adopt()
            self._flush()
        elif tail >= 2 * _FLUSH_ROWS:
            self._adopt()
        self._flushed_at = time.monotonic()

    def _flush(self, *, merge: bool = True) -> None:
        tail = [one for one in self.view.parts if one.name is None and one.living]
        on_disk = [one for one in self.view.parts if one.name is not None]
        # What another process has merged, or somebody has deleted, is open here, and is written again.
        on_disk = [one if (self._folder / str(one.name)).is_dir() else self._saved_segment(one) for one in on_disk]
        if tail:
            on_disk.append(self._saved_segment(_together(tail)))
        self.view = replace(self.view, parts=tuple(on_disk))
        if merge and self._merges_beside:
            self._begin_merge()
        elif merge:
            self._merge_small()
        self._write_manifest()
        self._flushed_at = time.monotonic()

    def _saved_segment(self, held: _Held) -> _Held:
        name = self._new_name()
        held.segment.save(self._folder / name)
        return _Held(Segment.open(self._folder / name), held.alive, name)

    @staticmethod
    def _new_name() -> str:
        """Return a name that no segment ever had: a process that still has an old one open knows it by its name."""
        return f"segment-{time.time_ns():x}-{os.urandom(4).hex()}"

    def _to_merge(self, least: int) -> list[_Held]:
        """Return the segments that are to become one: ``least`` small ones or more, or one of which most is dead."""
        on_disk = [one for one in self.view.parts if one.name is not None]
        small = sorted((one for one in on_disk if one.living < _SMALL_ROWS), key=lambda one: one.living)
        if len(small) < least:
            return [one for one in on_disk if one.living < _ALIVE_SHARE * len(one.alive)][:1]
        chosen: list[_Held] = []
        for one in small:
            if sum(each.living for each in chosen) + one.living <= _LARGE_ROWS:
                chosen.append(one)
        return chosen

    def _merge_small(self, least: int | None = None) -> None:
        """Merge what is to be merged, here and now."""
        while chosen := self._to_merge(least or _MERGED):
            folder = self._folder / self._new_name()
            self._replace_by(chosen, _merged(chosen, folder, lambda: False), folder.name)

    def _begin_merge(self) -> None:
        if self._merge is None and (chosen := self._to_merge(_MERGED)):
            self._merge = _Merge(chosen, self._folder / self._new_name())

    def _take_merged(self) -> None:
        """Show what a merge has made, if it is done, and begin the next. Raises ``OSError`` where it failed."""
        merge = self._merge
        if merge is None or not merge.is_done:
            return
        self._merge = None
        if merge.failure is not None:
            raise OSError(f"segments were not merged: {merge.failure!r}") from merge.failure
        # What was written again meanwhile, because its files were gone, is merged when its turn comes.
        if {one.name for one in merge.chosen} <= {one.name for one in self.view.parts}:
            self._replace_by(merge.chosen, merge.made, merge.folder.name)
        self._begin_merge()
        self._write_manifest()

    def _replace_by(self, chosen: Sequence[_Held], made: Segment | None, name: str) -> None:
        """Show a merged segment instead of those it was made of; what has died of them since is dead in it."""
        before = {one.name: one for one in chosen}
        parts = [one for one in self.view.parts if one.name not in before]
        if made is not None:
            alive = np.ones(len(made), dtype=np.bool_)
            for now in self.view.parts:
                if now.name in before:
                    dead = before[now.name].alive & ~now.alive
                    alive[made.find_rows(now.segment.row_ids[dead])] = False
            parts.insert(0, _Held(made, alive, name))
        self.view = replace(self.view, parts=tuple(parts))

    def _write_manifest(self) -> None:
        """Replace the manifest, and delete what no manifest names any more."""
        stamp = f"{time.time_ns():x}"
        segments = []
        for one in self.view.parts:
            if one.name is None:
                continue
            file, packed = None, np.packbits(one.alive).tobytes()
            if one.living < len(one.alive):
                file = f"alive-{one.name}-{stamp}.bin"
                _write_file(self._folder / file, packed)
            segments.append({"name": one.name, "alive": file, "crc": crc32(packed)})
        made = {
            "version": SEGMENT_VERSION,
            "dimensions": self._dimensions,
            "collection": self._vectors.identify(self._vectors.vectors_name),
            "position": self._position,
            "whole": self._whole,
            "segments": segments,
        }
        partial = self._folder / f"{_MANIFEST}.partial"
        _write_file(partial, json_util.dumps(made).encode())
        partial.rename(self._folder / _MANIFEST)
        _sync(self._folder)
        self._saved = made
        kept = {_MANIFEST, _LOCK, *(one["name"] for one in segments), *(one["alive"] for one in segments)}
        if self._merge is not None:
            kept.add(self._merge.folder.name)
        for path in self._folder.iterdir():
            if path.name not in kept:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _read_manifest(self) -> bool:
        """Open what the manifest names; return whether that could be done."""
        try:
            made = json_util.loads((self._folder / _MANIFEST).read_text("utf-8"))
            if made["version"] != SEGMENT_VERSION or made["dimensions"] != self._dimensions:
                return False
            known = {one.name: one.segment for one in self.view.parts if one.name is not None}
            parts = []
            for one in made["segments"]:
                segment = known.get(one["name"]) or Segment.open(self._folder / one["name"])
                alive = np.ones(len(segment), dtype=np.bool_)
                if one["alive"] is not None:
                    packed = (self._folder / one["alive"]).read_bytes()
                    if crc32(packed) != one["crc"]:
                        raise ValueError(f"{one['alive']} is not as it was written")
                    alive = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(segment)).astype(np.bool_)
                parts.append(_Held(segment, alive, one["name"]))
            position, whole, collection = dict(made["position"]), bool(made["whole"]), made["collection"]
        except FileNotFoundError as error:
            if (self._folder / _MANIFEST).exists():
                _LOGGER.error("the search index has lost %s, and is made anew", error.filename)
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOGGER.error("the search index can't be read, and is made anew: %s", error)
            return False
        same = collection == self._vectors.identify(self._vectors.vectors_name)
        self.view = replace(self.view, parts=tuple(parts))
        self._saved = made
        # Another collection of the name, after a restore, has a history of its own.
        self._position, self._whole = position, same and whole
        return True

    def _adopt(self) -> None:
        """Begin again from what another process has written, and show it once all that was shown before is in it."""
        try:
            written = json.loads((self._folder / _MANIFEST).read_text("utf-8"))
        except (OSError, ValueError):
            return
        if written == json.loads(json_util.dumps(self._saved)):
            return
        fresh = SearchIndex(self._vectors, self._folder, dimensions=self._dimensions)
        fresh.view, fresh.progress = self.view, self.progress
        with suppress(PipelineError):
            if fresh._read_manifest():
                fresh.catch_up()
                self.view, self._saved = fresh.view, fresh._saved
                self._position, self._whole = fresh._position, fresh._whole


def _merged(chosen: Sequence[_Held], folder: Path, stopped: Callable[[], bool]) -> Segment | None:
    """Return the living of several segments as one in a new folder, or None where none lives."""
    living = [(one.segment, one.alive) for one in chosen if one.living]
    return Segment.merge(living, folder, stopped=stopped) if living else None


def _held(entries: Sequence[Entry], vectors: Matrix) -> _Held:
    segment = Segment.build(entries, vectors)
    in_order = tuple(sorted(entries, key=lambda one: one.document_id))
    return _Held(segment, np.ones(len(segment), dtype=np.bool_), None, in_order)


def _together(parts: Sequence[_Held]) -> _Held:
    """Return the living documents of segments in memory as one."""
    entries = [entry for one in parts for entry, alive in zip(one.entries, one.alive, strict=True) if alive]
    return _held(entries, np.concatenate([one.segment.vectors[one.alive] for one in parts]))


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
