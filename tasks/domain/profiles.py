"""Profile: what the records of a shard, a sample or a run are like, in figures that add up.

Every figure of a profile is a count, a smallest, a largest or a set of witnesses chosen by their ids alone, so that the
profile of a run is the merge of its shards' in whatever order they end, and survives a kill with their checkpoints.
All of it is counted over whole columns: a record costs about a microsecond.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.domain.columns import Columns
from tasks.domain.documents import Document

#: Records that are named beside a count: enough to look at, few enough for a message.
MAX_EXAMPLES = 5
#: Values of a column, or units, that are counted one by one; what more there are is counted together.
MAX_VALUES = 500
OTHERS, NO_UNIT = "(others)", "(no unit)"
#: About so many records of a run are its witnesses, and so many ids are kept of those it saw.
WITNESSES, IDS_KEPT = 512, 1_024
#: A factor of 1.33: a median is known that closely, and one of ten thousand records costs a few hundred counts.
BINS_PER_DECADE = 8
_LARGEST_KEPT = 3
#: A double has 632 decades: the number of its bin has its place below that of its column or unit.
_BIN_BITS = 14
_BIN_ZERO, _BIN_MASK = 1 << _BIN_BITS - 1, (1 << _BIN_BITS) - 1
_MS_PER_HOUR, _MS_PER_DAY, _HOURS = 3_600_000, 86_400_000, 24
_VERSION = 1
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")

#: Why a single record is suspicious: names of the masks that reading a shard gives.
MISSING, MALFORMED, SWAPPED, FAR = "missing", "malformed", "swapped", "far"

Bools = NDArray[np.bool_]
Value = TypeVar("Value")


@dataclass(slots=True)
class Tally:
    """How many records something is true of, and the ids of the first of them."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def add(self, count: int, ids: Iterable[str]) -> None:
        """Count more records; of all that were ever given, the ids that sort first are kept."""
        self.count += count
        self.examples = tuple(nsmallest(MAX_EXAMPLES, {*self.examples, *ids}))


@dataclass(slots=True)
class Sizes:
    """How large the values of one column, or the amounts of one unit, are: a histogram of their logarithms.

    ``bins`` counts positive values by eighths of a decade; ``largest`` are the largest with their records.
    """

    bins: dict[int, int] = field(default_factory=dict)
    zeros: int = 0
    negatives: int = 0
    largest: tuple[tuple[float, str], ...] = ()

    @property
    def positives(self) -> int:
        """Return how many values are above zero."""
        return sum(self.bins.values())

    @property
    def total(self) -> int:
        """Return how many values there are."""
        return self.positives + self.zeros + self.negatives

    def merge(self, other: Sizes) -> None:
        """Add the values of another."""
        for at, number in other.bins.items():
            self.bins[at] = self.bins.get(at, 0) + number
        self.zeros += other.zeros
        self.negatives += other.negatives
        self.largest = tuple(sorted({*self.largest, *other.largest}, key=_by_size)[:_LARGEST_KEPT])

    def median_decades(self) -> float | None:
        """Return the decimal logarithm of the median of the positive values, within a sixteenth; None without any."""
        half, passed = self.positives / 2, 0
        for at in sorted(self.bins):
            passed += self.bins[at]
            if passed >= half:
                return (at + 0.5) / BINS_PER_DECADE
        return None


def _by_size(pair: tuple[float, str]) -> tuple[float, str]:
    return (-pair[0], pair[1])


@dataclass(slots=True)
class Witness:
    """One key of a run: how many records say it, which (the first ones), and what the first of these says."""

    count: int
    ids: tuple[str, ...]
    values: dict[str, Any]

    def merge(self, other: Witness) -> None:
        """Add the records of another shard that have the same key."""
        self.count += other.count
        if other.ids[:1] < self.ids[:1]:
            self.values = other.values
        self.ids = tuple(nsmallest(MAX_EXAMPLES, {*self.ids, *other.ids}))


@dataclass(slots=True)
class Profile:
    """What some records of a source are like.

    ``records`` were looked at, ``refused`` ones (by reason code) could not be, ``unchanged`` ones were not, being
    stored as they are. ``teams`` counts the accepted, looked at or not. ``hours`` are those of the day in UTC,
    ``days`` count from 1970.

    ``witnesses`` are chosen by a hash of their key that is below ``share``: whatever the run, the same keys are chosen,
    so that what one record said then can be held against what it says now, and two records of one key meet however far
    apart they lie. ``seen`` are ids chosen in the same way, by the id, below ``seen_share``. ``documents`` are what the
    store held of the run's records when it was over.
    """

    source: str
    records: int = 0
    unchanged: int = 0
    missing: dict[str, Tally] = field(default_factory=dict)
    malformed: dict[str, Tally] = field(default_factory=dict)
    suspects: dict[str, Tally] = field(default_factory=dict)
    warned: dict[str, Tally] = field(default_factory=dict)
    refused: dict[str, Tally] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    amounts: dict[str, Sizes] = field(default_factory=dict)
    figures: dict[str, Sizes] = field(default_factory=dict)
    teams: dict[str, int] = field(default_factory=dict)
    hours: list[int] = field(default_factory=lambda: [0] * _HOURS)
    days: dict[int, int] = field(default_factory=dict)
    first_ms: int | None = None
    last_ms: int | None = None
    newest: tuple[str, ...] = ()
    share: float = 1.0
    witnesses: dict[str, Witness] = field(default_factory=dict)
    seen_share: float = 1.0
    seen: set[str] = field(default_factory=set)
    documents: int = 0

    @property
    def read(self) -> int:
        """Return how many records the source gave."""
        return self.records + self.unchanged + sum(tally.count for tally in self.refused.values())

    def merge(self, other: Profile) -> None:
        """Add the records of another shard."""
        self.records += other.records
        self.unchanged += other.unchanged
        self.documents += other.documents
        for name in ("missing", "malformed", "suspects", "warned", "refused"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, tally in theirs.items():
                mine.setdefault(key, Tally()).add(tally.count, tally.examples)
        for column, counts in other.kinds.items():
            self.kinds[column] = _cut(Counter(self.kinds.get(column, {})) + Counter(counts))
        for mine, theirs in ((self.amounts, other.amounts), (self.figures, other.figures)):
            for key, sizes in theirs.items():
                mine.setdefault(key, Sizes()).merge(sizes)
        self.amounts = _cut_sizes(self.amounts)
        for team, number in other.teams.items():
            self.teams[team] = self.teams.get(team, 0) + number
        self.hours = [one + two for one, two in zip(self.hours, other.hours, strict=True)]
        for day, number in other.days.items():
            self.days[day] = self.days.get(day, 0) + number
        self._merge_times(other)
        self._merge_witnesses(other)

    def _merge_times(self, other: Profile) -> None:
        if other.last_ms is not None:
            if self.last_ms is None or other.last_ms > self.last_ms:
                self.newest = other.newest
            elif other.last_ms == self.last_ms:
                self.newest = tuple(nsmallest(MAX_EXAMPLES, {*self.newest, *other.newest}))
        firsts = [moment for moment in (self.first_ms, other.first_ms) if moment is not None]
        lasts = [moment for moment in (self.last_ms, other.last_ms) if moment is not None]
        self.first_ms, self.last_ms = min(firsts, default=None), max(lasts, default=None)

    def _merge_witnesses(self, other: Profile) -> None:
        for key, witness in other.witnesses.items():
            mine = self.witnesses.get(key)
            if mine is None:
                self.witnesses[key] = Witness(witness.count, witness.ids, witness.values)
            else:
                mine.merge(witness)
        self.seen |= other.seen
        share, seen_share = min(self.share, other.share), min(self.seen_share, other.seen_share)
        # Together they are chosen by either share: what only the larger one chose goes.
        self.share, self.seen_share = max(self.share, other.share), max(self.seen_share, other.seen_share)
        self._thin(share, seen_share)

    def _thin(self, share: float, seen_share: float) -> None:
        """Keep the witnesses and the ids of shares no larger than these, halved until they are few."""
        self.share, self.witnesses = _thinned(self.witnesses, self.share, share, 2 * WITNESSES)
        seen = dict.fromkeys(self.seen)
        self.seen_share, seen = _thinned(seen, self.seen_share, seen_share, 2 * IDS_KEPT)
        self.seen = set(seen)

    def add_refused(self, code: str, ids: Sequence[str]) -> None:
        """Count records that could not be looked at, for one reason."""
        self.refused.setdefault(code, Tally()).add(len(ids), ids)
        self._see(ids)

    def add_unchanged(self, ids: Sequence[str], teams: Mapping[str, int]) -> None:
        """Count records that are stored as they are; ``teams`` says how many each team has of them."""
        self.unchanged += len(ids)
        for team, number in teams.items():
            self.teams[team] = self.teams.get(team, 0) + number
        self._see(ids)

    def _see(self, ids: Sequence[str]) -> None:
        if self.seen_share:
            self.seen.update(ids[at] for at in np.flatnonzero(_hashes_of(ids) < self.seen_share).tolist())
        self._thin(self.share, self.seen_share)

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values; numbers that are keys are text."""
        return {
            "version": _VERSION,
            "source": self.source,
            "records": self.records,
            "unchanged": self.unchanged,
            **{name: _tallies(getattr(self, name)) for name in _TALLIES},
            "kinds": self.kinds,
            "amounts": _size_lists(self.amounts),
            "figures": _size_lists(self.figures),
            "teams": self.teams,
            "hours": self.hours,
            "days": {str(day): number for day, number in self.days.items()},
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "newest": self.newest,
            "share": self.share,
            "witnesses": {key: [seen.count, seen.ids, seen.values] for key, seen in self.witnesses.items()},
            "seen_share": self.seen_share,
            "seen": sorted(self.seen),
            "documents": self.documents,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Profile:
        """Return the profile that ``to_record`` was called on."""
        return cls(
            source=record["source"],
            records=record["records"],
            unchanged=record["unchanged"],
            **{
                name: {key: Tally(count, tuple(ids)) for key, (count, ids) in record[name].items()} for name in _TALLIES
            },
            kinds={column: dict(counts) for column, counts in record["kinds"].items()},
            amounts=_sizes_of(record["amounts"]),
            figures=_sizes_of(record["figures"]),
            teams=dict(record["teams"]),
            hours=list(record["hours"]),
            days={int(day): number for day, number in record["days"].items()},
            first_ms=record["first_ms"],
            last_ms=record["last_ms"],
            newest=tuple(record["newest"]),
            share=record["share"],
            witnesses={
                key: Witness(count, tuple(ids), dict(values))
                for key, (count, ids, values) in record["witnesses"].items()
            },
            seen_share=record["seen_share"],
            seen=set(record["seen"]),
            documents=record["documents"],
        )

    def to_bytes(self) -> bytes:
        """Return it packed: one value for whoever carries it."""
        return zlib.compress(orjson.dumps(self.to_record()), 1)

    @classmethod
    def from_bytes(cls, packed: bytes) -> Profile | None:
        """Return the profile that ``to_bytes`` was called on, or None if other code packed it."""
        record = orjson.loads(zlib.decompress(packed))
        return cls.from_record(record) if record.get("version") == _VERSION else None


_TALLIES = ("missing", "malformed", "suspects", "warned", "refused")


def _tallies(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    return {key: [tally.count, tally.examples] for key, tally in tallies.items()}


def _size_lists(sizes: Mapping[str, Sizes]) -> dict[str, Any]:
    return {
        key: [{str(at): number for at, number in size.bins.items()}, size.zeros, size.negatives, size.largest]
        for key, size in sizes.items()
    }


def _sizes_of(lists: Mapping[str, Any]) -> dict[str, Sizes]:
    return {
        key: Sizes(
            {int(at): number for at, number in bins.items()},
            zeros,
            negatives,
            tuple((size, record_id) for size, record_id in largest),
        )
        for key, (bins, zeros, negatives, largest) in lists.items()
    }


def _cut(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of the commonest values, with the others' together."""
    if len(counts) <= MAX_VALUES:
        return dict(counts)
    common = sorted(counts.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))[: MAX_VALUES - 1]
    kept = dict(common)
    kept[OTHERS] = sum(counts.values()) - sum(kept.values())
    return kept


def _cut_sizes(amounts: dict[str, Sizes]) -> dict[str, Sizes]:
    if len(amounts) <= MAX_VALUES:
        return amounts
    kept = _cut({unit: sizes.total for unit, sizes in amounts.items()})
    others = Sizes()
    for unit, sizes in amounts.items():
        if unit == OTHERS or unit not in kept:
            others.merge(sizes)
    return {**{unit: sizes for unit, sizes in amounts.items() if unit in kept and unit != OTHERS}, OTHERS: others}


# -- choosing by hash -----------------------------------------------------------------------------------------


def share_for(planned: int | None) -> float:
    """Return the share of keys at which so many records have about ``WITNESSES``; of no plan there are none."""
    return _share_for(planned, WITNESSES)


def seen_share_for(planned: int | None) -> float:
    """Return the share of ids at which so many records leave about ``IDS_KEPT``; of no plan none are kept."""
    return _share_for(planned, IDS_KEPT)


def _share_for(planned: int | None, wanted: int) -> float:
    if planned is None:
        return 0.0
    return min(1.0, wanted / planned) if planned else 1.0


def hash_of(text: str) -> float:
    """Return a number from 0 up to 1 that stands for a key or an id; the same in every process."""
    return float(_hashes_of([text])[0])


def _hashes_of(texts: Sequence[str]) -> NDArray[np.float64]:
    return _mixed(np.fromiter(map(crc32, map(str.encode, texts)), dtype=np.uint64, count=len(texts)))


def _hashes(texts: pa.ChunkedArray) -> NDArray[np.float64]:
    values = pc.cast(texts, pa.large_binary()).to_pylist()
    return _mixed(np.fromiter(map(crc32, values), dtype=np.uint64, count=len(values)))


def _thinned(chosen: dict[str, Value], share: float, wanted: float, most: int) -> tuple[float, dict[str, Value]]:
    """Return what of the chosen is below a smaller share, and that share: halved until no more than ``most`` are."""
    while wanted < share or len(chosen) > most:
        share = wanted = wanted if wanted < share else share / 2
        kept = _hashes_of(list(chosen)) < share
        chosen = {text: value for (text, value), keep in zip(chosen.items(), kept.tolist(), strict=True) if keep}
    return share, chosen


def _mixed(sums: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Spread checksums evenly over 0 to 1: those of texts that differ in one place lie side by side."""
    with np.errstate(over="ignore"):
        mixed = sums + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


# -- from documents to columns --------------------------------------------------------------------------------


def observe(documents: Sequence[Document], columns: Columns) -> pa.Table:
    """Return what a profile reads of some documents, as the table that ``read_profile`` takes.

    A column is one of the facts, or of the metadata where no document has such a fact; the time ends the timeframe.
    """
    facts = [document.metadata.get("facts", {}) for document in documents]
    metadata = [document.metadata for document in documents]
    arrays = {
        columns.record_id: pa.array([document.source_id for document in documents], pa.large_string()),
        columns.key: pa.array([document.key for document in documents], pa.large_string()),
        columns.team_id: pa.array([document.team_id for document in documents], pa.large_string()),
    }
    if columns.time_ms:
        ends = [values["timeframe"]["end"] if "timeframe" in values else None for values in metadata]
        arrays[columns.time_ms] = pa.array(ends, pa.timestamp("ms", "UTC")).cast(pa.int64())
    for name in columns.texts:
        if name not in arrays:
            array = _text_array([fact.get(name) for fact in facts])
            if array.null_count == len(array):
                array = _text_array([own.get(name) for own in metadata])
            arrays[name] = array
    for name in columns.figures:
        arrays[name] = pa.array([_number(fact.get(name)) for fact in facts], pa.float64())
    return pa.table(arrays)


def _text_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.large_string())


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


# -- from columns to a profile --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """A shard's profile, with the rows behind each of its suspicions: a mask for each name and what it is about."""

    profile: Profile
    masks: dict[tuple[str, str], Bools]


def read_profile(
    table: pa.Table,
    columns: Columns,
    *,
    source: str,
    share: float = 1.0,
    seen_share: float = 1.0,
    ceilings: Mapping[str, float] | None = None,
) -> Reading:
    """Return the profile of a table's rows. A column that the table lacks counts as empty.

    ``ceilings`` maps more units to what no sound record exceeds; those of the columns come first.
    """
    profile = Profile(source, records=table.num_rows, share=share, seen_share=seen_share)
    reading = Reading(profile, {})
    if not table.num_rows:
        return reading
    rows = _Rows(table.combine_chunks(), columns, reading)
    rows.count_missing()
    rows.count_malformed()
    rows.count_kinds()
    rows.count_warnings()
    rows.count_times()
    rows.count_sizes({**(ceilings or {}), **columns.ceilings})
    rows.count_parties()
    rows.choose_witnesses()
    return reading


class _Rows:
    """The rows of one table while they are counted."""

    def __init__(self, table: pa.Table, columns: Columns, reading: Reading) -> None:
        self._table, self._columns = table, columns
        self._profile, self._masks = reading.profile, reading.masks
        self._ids = table.column(columns.record_id)

    def _column(self, name: str) -> pa.ChunkedArray | None:
        return self._table.column(name) if name in self._table.column_names else None

    def _ids_of(self, mask: Bools) -> list[str]:
        found: list[str] = self._ids.take(pa.array(np.flatnonzero(mask))).to_pylist()
        return found

    def _suspect(self, tallies: dict[str, Tally], name: str, about: str, mask: Bools) -> None:
        count = int(mask.sum())
        tally = tallies.setdefault(about, Tally())
        if count:
            tally.add(count, self._ids_of(mask))
            self._masks[name, about] = mask

    def count_missing(self) -> None:
        for name in dict.fromkeys((*self._columns.required, *self._columns.optional)):
            column = self._column(name)
            if column is None:
                mask = np.ones(self._table.num_rows, dtype=bool)
            elif pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
                mask = _bools(pc.equal(pc.fill_null(column, ""), ""))
            elif column.null_count:
                mask = _bools(pc.is_null(column))
            else:
                mask = np.zeros(0, dtype=bool)
            self._suspect(self._profile.missing, MISSING, name, mask)

    def count_malformed(self) -> None:
        for name, pattern in self._columns.formats.items():
            column = self._column(name)
            if column is not None:
                fits = pc.match_substring_regex(column, f"^(?:{pattern})$")
                mask = _bools(pc.fill_null(pc.invert(fits), False))
                self._suspect(self._profile.malformed, MALFORMED, name, mask)

    def count_kinds(self) -> None:
        for name in self._columns.kinds:
            column = self._column(name)
            if column is not None:
                self._profile.kinds[name] = _cut(_value_counts(column))
        teams = self._column(self._columns.team_id)
        if teams is not None:
            self._profile.teams = _value_counts(teams)

    def count_warnings(self) -> None:
        column = self._column(self._columns.warnings) if self._columns.warnings else None
        if column is None or column.null_count == len(column):
            return
        said = np.flatnonzero(_bools(pc.not_equal(pc.fill_null(column, ""), "")))
        texts = column.take(pa.array(said)).to_pylist()
        ids = self._ids.take(pa.array(said)).to_pylist()
        by_warning: dict[str, list[str]] = {}
        for text, record_id in zip(texts, ids, strict=True):
            # What stands in quotes is the value: the same warning is the same whatever it was about.
            for warning in set(_QUOTED.sub("…", text).split("; ")):
                by_warning.setdefault(warning[:80], []).append(record_id)
        for warning, warned in sorted(by_warning.items(), key=lambda item: -len(item[1]))[:MAX_VALUES]:
            self._profile.warned.setdefault(warning, Tally()).add(len(warned), warned)

    def count_times(self) -> None:
        column = self._column(self._columns.time_ms) if self._columns.time_ms else None
        if column is None or column.null_count == len(column):
            return
        times = pc.drop_null(column).to_numpy()
        profile = self._profile
        profile.hours = np.bincount(times // _MS_PER_HOUR % _HOURS, minlength=_HOURS).tolist()
        days, numbers = np.unique(times // _MS_PER_DAY, return_counts=True)
        profile.days = dict(zip(days.tolist(), numbers.tolist(), strict=True))
        profile.first_ms, profile.last_ms = int(times.min()), int(times.max())
        newest = _bools(pc.fill_null(pc.equal(column, profile.last_ms), False))
        profile.newest = tuple(nsmallest(MAX_EXAMPLES, self._ids_of(newest)))

    def count_sizes(self, ceilings: Mapping[str, float]) -> None:
        for name in self._columns.figures:
            column = self._column(name)
            if column is not None:
                sizes, present = _floats(column)
                every = np.zeros(len(sizes), dtype=np.int64)
                self._profile.figures.update(self._sizes(sizes, present, every, [name]))
        column = self._column(self._columns.amount) if self._columns.amount else None
        if column is None:
            return
        sizes, present = _floats(column)
        units = self._column(self._columns.unit) if self._columns.unit else None
        if units is None:
            codes, names = np.zeros(len(sizes), dtype=np.int64), [NO_UNIT]
        else:
            coded = pc.dictionary_encode(pc.fill_null(units, NO_UNIT)).combine_chunks()
            codes, names = coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()
        self._profile.amounts = _cut_sizes(self._sizes(sizes, present, codes, names))
        limits = np.array([ceilings.get(name, math.inf) for name in names])
        far = present & (sizes > limits[codes])
        for code in np.unique(codes[far]).tolist():
            self._suspect(self._profile.suspects, FAR, names[code], far & (codes == code))

    def _sizes(
        self, sizes: NDArray[np.float64], present: Bools, codes: NDArray[np.int64], names: list[str]
    ) -> dict[str, Sizes]:
        """Return the histogram of each name's values; ``codes`` says which name a row has."""
        found = {name: Sizes() for name in names}
        rows = np.flatnonzero(present & (sizes > 0))
        values, owners = sizes[rows], codes[rows]
        bins = np.floor(np.log10(values) * BINS_PER_DECADE).astype(np.int64)
        counted = np.unique((owners << _BIN_BITS) + bins + _BIN_ZERO, return_counts=True)
        for packed, number in zip(*(part.tolist() for part in counted), strict=True):
            found[names[packed >> _BIN_BITS]].bins[(packed & _BIN_MASK) - _BIN_ZERO] = number
        for what, mask in (("zeros", present & (sizes == 0)), ("negatives", present & (sizes < 0))):
            for code, number in enumerate(np.bincount(codes[mask], minlength=len(names)).tolist()):
                setattr(found[names[code]], what, number)
        order = np.lexsort((-values, owners))
        starts = np.flatnonzero(np.diff(owners[order], prepend=-1))
        for start in starts.tolist():
            top = order[start : start + _LARGEST_KEPT]
            top = top[owners[top] == owners[order[start]]]
            ids = self._ids.take(pa.array(rows[top])).to_pylist()
            found[names[int(owners[top[0]])]].largest = tuple(zip(values[top].tolist(), ids, strict=True))
        return found

    def count_parties(self) -> None:
        sender, recipient, contract = (
            self._column(name) if name else None
            for name in (self._columns.sender, self._columns.recipient, self._columns.contract)
        )
        if sender is None or contract is None or recipient is None:
            return
        sends, receives = (_bools(pc.fill_null(pc.equal(party, contract), False)) for party in (sender, recipient))
        assert self._columns.sender is not None
        self._suspect(self._profile.suspects, SWAPPED, self._columns.sender, sends & ~receives)

    def choose_witnesses(self) -> None:
        profile, columns = self._profile, self._columns
        chosen = self._ids.filter(pa.array(_hashes(self._ids) < profile.seen_share))
        profile.seen = set(chosen.to_pylist())
        rows = np.flatnonzero(_hashes(self._table.column(columns.key)) < profile.share)
        present = [name for name in columns.witnessed if name in self._table.column_names]
        few = self._table.select([columns.key, columns.record_id, *present]).take(pa.array(rows))
        for row in few.to_pylist():
            key, record_id = row.pop(columns.key), row.pop(columns.record_id)
            witness = Witness(1, (record_id,), row)
            if key in profile.witnesses:
                profile.witnesses[key].merge(witness)
            else:
                profile.witnesses[key] = witness
        profile._thin(profile.share, profile.seen_share)


def _bools(array: Any) -> Bools:
    """Return a column of bools without nulls as numpy's."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    found: Bools = array.to_numpy(zero_copy_only=False)
    return found


def _floats(column: pa.ChunkedArray) -> tuple[NDArray[np.float64], Bools]:
    """Return a column of numbers or of decimals as text, and where there is one."""
    if pa.types.is_large_string(column.type) or pa.types.is_string(column.type):
        column = pc.cast(pc.if_else(pc.equal(column, ""), None, column), pa.float64())
    values = pc.cast(column, pa.float64()).to_numpy()
    return values, np.isfinite(values)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(pc.drop_null(column))
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
