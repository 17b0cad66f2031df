"""Segment: entries and vectors that are searched together, in arrays that lie in memory or in mapped files.

Documents stand in the order of their ids: of equal scores the first positions are the smaller ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from tasks.domain.retrieval.entries import CATALOGUE, Entry
from tasks.domain.retrieval.filters import NUMBER_FIELDS, Filter
from tasks.domain.retrieval.nearness import Codes, Part, Positions, Scores, make_codes
from tasks.domain.vectors import Matrix

#: BM25 as Lucene has it.
K1, B = 1.2, 0.75
#: Raise it when what a segment's files hold changes: an index of another version is built anew.
SEGMENT_VERSION = 2

Mask = NDArray[np.bool_]
#: Values of the fields of ``CATALOGUE``, by team: field, team, values.
Catalogue = dict[str, dict[str, list[str]]]
_WORD_PREFIX = "\0"
_META = "segment.json"
_UNCHECKED = frozenset({"vectors", "signs", "finer"})
#: So many vectors are copied at once.
_PIECE = 8_192
#: One is looked up in a list as quickly as so many of the list are read.
_FEW = 8


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """How many documents of the asked tenant there are, how long they are together, and how many have each word."""

    documents: int
    length: int
    having: Mapping[str, int]

    def __add__(self, other: WordStatistics) -> WordStatistics:
        """Return those of two segments together."""
        words = {*self.having, *other.having}
        having = {word: self.having.get(word, 0) + other.having.get(word, 0) for word in words}
        return WordStatistics(self.documents + other.documents, self.length + other.length, having)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Arrays with a row, or a value, for each document; none of them ever changes.

    ``vectors`` are L2-normalised float32; ``signs``, ``finer`` and ``scales`` are their codes. ``numbers`` has a row of
    values for each of ``NUMBER_FIELDS``, NaN for none. ``lengths`` counts words. ``folds`` hashes what folds documents
    together, ``states`` what a document is stored as. ``row_ids`` are twelve bytes each, and ``id_order`` puts them in
    order. The id at a position is ``ids[id_starts[position]:id_starts[position + 1]]``.

    Of the inverted index ``terms`` are sorted hashes of words and of exact terms; the documents that have the i-th
    are ``postings[term_starts[i]:term_starts[i + 1]]``, each so many times as ``counts`` says.
    """

    vectors: Matrix
    signs: NDArray[np.uint8]
    finer: NDArray[np.uint8]
    scales: NDArray[np.float32]
    numbers: NDArray[np.float64]
    lengths: NDArray[np.uint16]
    folds: NDArray[np.uint64]
    states: NDArray[np.uint64]
    row_ids: NDArray[np.bytes_]
    id_order: NDArray[np.uint32]
    ids: NDArray[np.uint8]
    id_starts: NDArray[np.int64]
    terms: NDArray[np.uint64]
    term_starts: NDArray[np.int64]
    postings: NDArray[np.uint32]
    counts: NDArray[np.uint8]
    catalogue: Catalogue = field(default_factory=dict)

    # -- made ------------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, entries: Sequence[Entry], vectors: Matrix) -> Segment:
        """Return the segment of these entries; ``vectors`` has a row for each, in their order."""
        order = sorted(range(len(entries)), key=lambda place: entries[place].document_id)
        entries = [entries[place] for place in order]
        numbers = np.full((len(NUMBER_FIELDS), len(entries)), np.nan)
        for position, entry in enumerate(entries):
            for row, name in enumerate(NUMBER_FIELDS):
                if name in entry.numbers:
                    numbers[row, position] = entry.numbers[name]
        sorted_vectors: Matrix = vectors if order == list(range(len(order))) else vectors[order]
        codes = make_codes(sorted_vectors)
        row_ids, id_order = _row_ids([entry.row_id.binary for entry in entries])
        ids, id_starts = _texts([entry.document_id for entry in entries])
        terms, term_starts, postings, counts = _inverted(entries)
        return cls(
            vectors=sorted_vectors,
            signs=codes.signs,
            finer=codes.finer,
            scales=codes.scales,
            numbers=numbers,
            lengths=np.array([min(65_535, len(entry.words)) for entry in entries], dtype=np.uint16),
            folds=np.array([hash_of(entry.fold) for entry in entries], dtype=np.uint64),
            states=np.array([entry.state for entry in entries], dtype=np.uint64),
            row_ids=row_ids,
            id_order=id_order,
            ids=ids,
            id_starts=id_starts,
            terms=terms,
            term_starts=term_starts,
            postings=postings,
            counts=counts,
            catalogue=_catalogue(entries),
        )

    @classmethod
    def merge(
        cls, parts: Sequence[tuple[Segment, Mask]], folder: Path, *, stopped: Callable[[], bool] = lambda: False
    ) -> Segment:
        """Write the documents that are alive in several segments as one into a new folder, and return it mapped.

        Vectors go from file to file in pieces: memory holds the other arrays, some 400 bytes a document. Raises
        ``InterruptedError`` once it is ``stopped``, and leaves what it has written.
        """
        order = sorted(
            (segment.document_id(int(position)), number, int(position))
            for number, (segment, alive) in enumerate(parts)
            for position in np.flatnonzero(alive)
        )
        numbers = np.array([number for _, number, _ in order], dtype=np.int64)
        positions = np.array([position for _, _, position in order], dtype=np.int64)
        keys, postings, counts = [], [], []
        for number, (segment, alive) in enumerate(parts):
            moved = np.zeros(len(alive), dtype=np.uint32)
            moved[positions[numbers == number]] = np.flatnonzero(numbers == number)
            kept = alive[segment.postings]
            keys.append(np.repeat(segment.terms, np.diff(segment.term_starts))[kept])
            postings.append(moved[segment.postings[kept]])
            counts.append(segment.counts[kept])
        terms, term_starts, all_postings, all_counts = _sorted_postings(
            np.concatenate(keys), np.concatenate(postings), np.concatenate(counts)
        )
        catalogue: Catalogue = {}
        for segment, _ in parts:
            for name, teams in segment.catalogue.items():
                for team, values in teams.items():
                    known = catalogue.setdefault(name, {}).setdefault(team, [])
                    known[:] = sorted({*known, *values})

        def gathered(name: str, rows: slice = slice(None), *, axis: int = 0) -> NDArray[Any]:
            arrays = [getattr(segment, name) for segment, _ in parts]
            shape = list(arrays[0].shape)
            shape[axis] = len(positions[rows])
            together = np.empty(shape, dtype=arrays[0].dtype)
            for number, array in enumerate(arrays):
                here = np.flatnonzero(numbers[rows] == number)
                there = positions[rows][here]
                if axis:
                    together[:, here] = array[:, there]
                else:
                    together[here] = array[there]
            return together

        row_ids, id_order = _row_ids(gathered("row_ids"))
        ids, id_starts = _texts([document_id for document_id, _, _ in order])
        small: dict[str, NDArray[Any]] = {
            "scales": gathered("scales"),
            "numbers": gathered("numbers", axis=1),
            "lengths": gathered("lengths"),
            "folds": gathered("folds"),
            "states": gathered("states"),
            "row_ids": row_ids,
            "id_order": id_order,
            "ids": ids,
            "id_starts": id_starts,
            "terms": terms,
            "term_starts": term_starts,
            "postings": all_postings,
            "counts": all_counts,
        }

        def in_pieces(name: str) -> Iterator[NDArray[Any]]:
            for start in range(0, len(order), _PIECE):
                if stopped():
                    raise InterruptedError
                yield gathered(name, slice(start, start + _PIECE))

        big = {name: in_pieces(name) for name in ("vectors", "signs", "finer")}
        first = parts[0][0]
        shapes = {
            name: (array.dtype, (len(order), array.shape[1]))
            for name, array in (("vectors", first.vectors), ("signs", first.signs), ("finer", first.finer))
        }
        _write(folder, small, big, shapes, catalogue)
        return cls.open(folder)

    # -- kept ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the segment into a folder that is not there yet; it is all on the disk when this returns."""
        arrays = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "catalogue"}
        _write(folder, arrays, {}, {}, self.catalogue)

    @classmethod
    def open(cls, folder: Path) -> Segment:
        """Return a segment that was saved, mapped from its files.

        Raises ``ValueError`` or ``OSError`` where a file is missing, damaged or of another version. Of vectors and
        their codes, which are most of it, only the length is looked at.
        """
        meta = json.loads((folder / _META).read_text("utf-8"))
        if meta.get("version") != SEGMENT_VERSION:
            raise ValueError(f"{folder.name} is of version {meta.get('version')}, and not {SEGMENT_VERSION}")
        arrays: dict[str, Any] = {}
        for name, made in meta["arrays"].items():
            file, dtype, shape = folder / f"{name}.bin", np.dtype(made["dtype"]), tuple(made["shape"])
            if file.stat().st_size != dtype.itemsize * int(np.prod(shape)):
                raise ValueError(f"{folder.name}/{file.name} is not as long as it was written")
            # What is empty can't be mapped. As plain arrays, because each slice of a memmap runs Python.
            arrays[name] = (
                np.asarray(np.memmap(file, dtype, "r", shape=shape)) if np.prod(shape) else np.empty(shape, dtype)
            )
            # Another bit in a vector changes a score a little; in the rest it would change who sees what.
            if name not in _UNCHECKED and crc32(np.ascontiguousarray(arrays[name]).data) != made["crc"]:
                raise ValueError(f"{folder.name}/{file.name} is not as it was written")
        return cls(**arrays, catalogue=meta["catalogue"])

    # -- asked -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.lengths)

    def document_id(self, position: int) -> str:
        """Return the id of the document at a position."""
        return self.ids[self.id_starts[position] : self.id_starts[position + 1]].tobytes().decode()

    def row_id(self, position: int) -> ObjectId:
        """Return the ``_id`` of the document at a position."""
        # NumPy leaves zeros at the end of bytes out.
        return ObjectId(bytes(self.row_ids[position]).ljust(12, b"\0"))

    def find_rows(self, row_ids: NDArray[np.bytes_]) -> Positions:
        """Return the position of each document by its ``_id`` as twelve bytes, -1 for one that is not here."""
        place = np.minimum(np.searchsorted(self.row_ids, row_ids, sorter=self.id_order), len(self) - 1)
        positions = self.id_order[place].astype(np.int64)
        return np.where(self.row_ids[positions] == row_ids, positions, -1)

    def having(self, term: str) -> NDArray[np.uint32]:
        """Return the positions of the documents that have an exact term."""
        return self.postings[self._place(hash_of(term))]

    def choose(self, where: Filter, among: Mask) -> Mask:
        """Return which of these documents fit; the same mask where there is nothing to ask for."""
        if not where.any_of and not where.between:
            return among
        chosen = among.copy()
        for one in where.any_of:
            having = np.zeros(len(chosen), dtype=np.bool_)
            for term in one.terms():
                having[self.having(term)] = True
            chosen &= ~having if one.negated else having
        for bound in where.between:
            values = self.numbers[NUMBER_FIELDS.index(bound.field)]
            # What is missing is NaN, and compares as False.
            chosen &= values > bound.low if bound.above else values >= bound.low
            chosen &= values < bound.high if bound.below else values <= bound.high
        return chosen

    def part(self, chosen: Mask) -> Part:
        """Return the chosen vectors, to find the nearest of several segments together."""
        count = int(np.count_nonzero(chosen))
        codes = Codes(self.signs, self.finer, self.scales)
        return Part(self.vectors, codes, None if count == len(self) else np.flatnonzero(chosen))

    def word_statistics(self, words: Iterable[str], seen: Mask) -> WordStatistics:
        """Return what BM25 needs to know of the documents that the tenant may see, and of no others."""
        places = np.flatnonzero(seen)
        everything = len(places) == len(seen)
        having = {}
        for word in set(words):
            postings = self.postings[self._place(hash_of(_WORD_PREFIX + word))]
            having[word] = len(postings) if everything else len(_common(postings, seen, places))
        length = self.lengths if everything else self.lengths[places]
        return WordStatistics(len(places), int(length.sum(dtype=np.int64)), having)

    def by_words(self, chosen: Mask, weights: Mapping[str, float], known: WordStatistics) -> tuple[Positions, Scores]:
        """Return the chosen documents that have one of the words, with their BM25 scores; ``weights`` multiply them."""
        scores = np.zeros(len(chosen), dtype=np.float32)
        places = np.flatnonzero(chosen)
        average = known.length / max(1, known.documents)
        for word, weight in weights.items():
            having = known.having.get(word, 0)
            place = self._place(hash_of(_WORD_PREFIX + word))
            postings, counts = self.postings[place], self.counts[place]
            if not having or not len(postings):
                continue
            if len(places) < len(chosen):
                common = _common(postings, chosen, places)
                postings, counts = postings[common], counts[common]
            count = counts.astype(np.float32)
            long = self.lengths[postings].astype(np.float32)
            rarity = float(np.log1p((known.documents - having + 0.5) / (having + 0.5)))
            norm = np.float32(K1 * (1 - B)) + np.float32(K1 * B / average) * long
            scores[postings] += np.float32(weight * rarity * (K1 + 1)) * count / (count + norm)
        found = np.flatnonzero(scores > 0)
        return found, scores[found]

    def _place(self, key: int) -> slice:
        place = int(np.searchsorted(self.terms, np.uint64(key)))
        if place == len(self.terms) or int(self.terms[place]) != key:
            return slice(0, 0)
        return slice(int(self.term_starts[place]), int(self.term_starts[place + 1]))


def _common(postings: NDArray[np.uint32], chosen: Mask, places: Positions) -> Positions:
    """Return where in an ascending list of documents the chosen ones stand; ``places`` are those of the mask."""
    if len(places) * _FEW < len(postings):
        # Each of a few is looked up in a long list, which then need not be read.
        where: Positions = np.searchsorted(postings, places.astype(np.uint32))
        where = where[: np.searchsorted(where, len(postings))]
        found: Positions = where[postings[where] == places[: len(where)]]
        return found
    return np.flatnonzero(chosen[postings])


@lru_cache(maxsize=262_144)
def hash_of(text: str) -> int:
    """Return 64 bits that stand for a text, on every machine the same."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _write(
    folder: Path,
    arrays: Mapping[str, NDArray[Any]],
    pieces: Mapping[str, Iterable[NDArray[Any]]],
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    catalogue: Catalogue,
) -> None:
    folder.mkdir(parents=True)
    known = {name: (array.dtype, array.shape) for name, array in arrays.items()} | dict(shapes)
    sums = dict.fromkeys(known, 0)
    for name, parts in [*((name, (array,)) for name, array in arrays.items()), *pieces.items()]:
        with (folder / f"{name}.bin").open("wb") as file:
            for part in parts:
                content = np.ascontiguousarray(part).data
                file.write(content)
                sums[name] = crc32(content, sums[name])
            file.flush()
            os.fsync(file.fileno())
    meta = {
        "version": SEGMENT_VERSION,
        "arrays": {
            name: {"dtype": dtype.str, "shape": list(shape), "crc": sums[name]}
            for name, (dtype, shape) in known.items()
        },
        "catalogue": catalogue,
    }
    with (folder / _META).open("w", encoding="utf-8") as meta_file:
        json.dump(meta, meta_file)
        meta_file.flush()
        os.fsync(meta_file.fileno())


def _row_ids(row_ids: Sequence[bytes] | NDArray[np.bytes_]) -> tuple[NDArray[np.bytes_], NDArray[np.uint32]]:
    found = np.array(row_ids, dtype="S12")
    return found, np.argsort(found, kind="stable").astype(np.uint32)


def _texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), starts


def _inverted(
    entries: Sequence[Entry],
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint8]]:
    keys: list[int] = []
    positions: list[int] = []
    counts: list[int] = []
    for position, entry in enumerate(entries):
        found = {hash_of(term): 1 for term in entry.terms}
        for word in entry.words:
            key = hash_of(_WORD_PREFIX + word)
            found[key] = min(255, found.get(key, 0) + 1)
        keys.extend(found)
        counts.extend(found.values())
        positions.extend([position] * len(found))
    return _sorted_postings(
        np.array(keys, dtype=np.uint64), np.array(positions, dtype=np.uint32), np.array(counts, dtype=np.uint8)
    )


def _sorted_postings(
    keys: NDArray[np.uint64], positions: NDArray[np.uint32], counts: NDArray[np.uint8]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint8]]:
    order = np.lexsort((positions, keys))
    keys = keys[order]
    terms, first = np.unique(keys, return_index=True)
    return terms, np.append(first, len(keys)).astype(np.int64), positions[order], counts[order]


def _catalogue(entries: Iterable[Entry]) -> Catalogue:
    found: dict[str, dict[str, set[str]]] = {name: {} for name in CATALOGUE}
    for entry in entries:
        team = ""
        values: list[tuple[str, str]] = []
        for term in entry.terms:
            name, _, value = term.partition("=")
            if name == "team":
                team = value
            elif name in found:
                values.append((name, value))
        for name, value in values:
            found[name].setdefault(team, set()).add(value)
    return {name: {team: sorted(values) for team, values in teams.items()} for name, teams in found.items()}
