"""Measures: the figures of a profile that rules bound, alone and held against the last good run's profile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from bson import ObjectId

from tasks.domain.columns import Columns
from tasks.domain.dead_letters import WITHHELD, DeadLetter
from tasks.domain.errors import RecordError
from tasks.domain.owners import OWNER_CODES
from tasks.domain.profiles import MAX_EXAMPLES, Profile, Reading, Sizes, Tally, Witness, hash_of
from tasks.domain.verdicts import Action, Finding, Judgement, Measure, judge_alone, shard_rules

ALL = "all"
_MS_PER_DAY, _MINUTES_PER_DAY = 86_400_000, 1_440
#: An importer's mistake moves times by whole quarters of an hour, as time zones do.
_ZONE_MINUTES = 15
#: A thousand times the largest amount of a unit that was ever seen is no payment.
_FAR_BEYOND = 1_000
#: Of a unit with fewer amounts the largest says little.
_KNOWN_UNIT = 20
#: A value's share where it doesn't occur at all: keeps logarithms finite.
_RARE = 1e-4
#: A profile of less than this share of a run's records doesn't stand for its source.
_REPRESENTATIVE = 0.5


@dataclass(frozen=True, slots=True)
class Reach:
    """What a run was about: ``whole`` sources only may be compared in number. ``now_ms`` is when it began.

    Of a source that ``forgets`` records are gone by right.
    """

    whole: bool
    now_ms: int
    forgets: bool = False


def is_representative(profile: Profile, reach: Reach) -> bool:
    """Return whether the records that were looked at stand for the whole source."""
    return reach.whole and profile.records >= profile.read * _REPRESENTATIVE


def ceilings_of(before: Profile | None) -> dict[str, float]:
    """Return per unit what no amount of a sound run exceeds, by the last good one."""
    if before is None:
        return {}
    return {
        unit: sizes.largest[0][0] * _FAR_BEYOND
        for unit, sizes in before.amounts.items()
        if sizes.positives >= _KNOWN_UNIT and sizes.largest
    }


def next_baseline(
    profile: Profile, before: Profile | None, reach: Reach, *, again: Profile | None = None
) -> Profile | None:
    """Return what later runs are held against after a good one, or None where it tells nothing about its source.

    Of a whole source of which most was stored already, how many there are is known from this run, and what they are
    like from the last one that looked at them. ``again`` is as in ``measure_sample``.
    """
    if not reach.whole:
        return before
    if before is None or is_representative(profile, reach):
        return profile
    carried = Profile.from_record(before.to_record())
    carried.refused, carried.teams, carried.documents = profile.refused, profile.teams, profile.documents
    carried.seen, carried.seen_share = set(profile.seen), profile.seen_share
    # What makes up the number, below zero where the source shrank.
    carried.unchanged = profile.read - carried.records - sum(tally.count for tally in profile.refused.values())
    if again is not None:
        there = {key: seen for key, seen in carried.witnesses.items() if seen.ids[0] in again.seen}
        carried.witnesses = there
    carried.witnesses.update({key: seen for key, seen in profile.witnesses.items() if hash_of(key) < carried.share})
    if profile.last_ms is not None and profile.last_ms > (carried.last_ms or profile.last_ms - 1):
        carried.last_ms, carried.newest = profile.last_ms, profile.newest
    return carried


def measure_alone(profile: Profile, columns: Columns) -> list[Measure]:
    """Return the measures of any records that need nothing to compare with."""
    return [*_refused(profile), *_shape(profile, columns), *_doubled(profile)]


def measure_run(
    profile: Profile,
    before: Profile | None,
    columns: Columns,
    reach: Reach,
    *,
    read: int,
    again: Profile | None = None,
) -> list[Measure]:
    """Return the measures of a whole run. ``read`` is how many records its manifest counts.

    ``again`` is as in ``measure_sample``.
    """
    found = [*_volume(profile, before, reach, read=read), *_times(profile, before, columns, reach)]
    found += measure_alone(profile, columns)
    if before is not None:
        if reach.whole and not reach.forgets:
            share = min(profile.seen_share, before.seen_share)
            asked = {record for record in before.seen if hash_of(record) < share}
            found.append(_lost(asked, profile.seen))
        found += _drift(profile, before, columns)
        found += _again(profile.witnesses, before.witnesses, columns)
        found.append(_doubled_since(profile, before, again))
    return found


def measure_so_far(
    profile: Profile, before: Profile | None, columns: Columns, *, again: Profile | None = None
) -> list[Measure]:
    """Return what can be measured while a run goes on."""
    found = measure_alone(profile, columns)
    if before is not None:
        found.append(_doubled_since(profile, before, again))
    return found


def measure_sample(
    sample: Profile,
    before: Profile | None,
    columns: Columns,
    reach: Reach,
    *,
    planned: int,
    again: Profile | None = None,
) -> list[Measure]:
    """Return what can be measured before anything is spent.

    ``sample`` is the profile of some records from all over the source, of which ``planned`` are to be read; ``again``
    that of the last good run's witnesses (``ids_to_read_again``), read once more.
    """
    found = measure_alone(sample, columns)
    if reach.whole:
        found += _numbers(planned, before, reach)
    if before is not None:
        found += [*_scales(sample, before)]
        if again is not None:
            if reach.whole and not reach.forgets:
                found.append(_lost(set(ids_to_read_again(before)), again.seen))
            found.append(_doubled_since(sample, before, again))
            found += _again(again.witnesses, before.witnesses, columns)
    return found


def ids_to_read_again(before: Profile) -> list[str]:
    """Return the records of the last good run whose values are known: one of each witness, in order."""
    return sorted(witness.ids[0] for witness in before.witnesses.values())


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds after a run, as reconciling counted it. Records, but for ``documents``.

    ``differences`` are what must not be, in words; ``lost`` are ids of records that have no vectors and should.
    """

    in_source: int
    stored: int
    refused: int
    arrived: int
    orphaned: int
    documents: int
    differences: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def measure_target(stored: Stored, before: Profile | None) -> list[Measure]:
    """Return the measures of the store after a whole run."""
    without = max(0, stored.in_source - stored.stored - stored.refused - stored.arrived)
    source = stored.in_source
    found = [
        Measure(
            "target_incomplete",
            ALL,
            without,
            source,
            f"{without:,} of {source:,} records of the source have neither vectors nor a reason",
            stored.lost,
        ),
        Measure(
            "target_differs",
            ALL,
            len(stored.differences),
            source,
            f"{len(stored.differences)} differences: {'; '.join(stored.differences[:MAX_EXAMPLES]) or 'none'}",
            stored.lost,
        ),
        Measure("target_orphaned", ALL, stored.orphaned, source, f"{stored.orphaned:,} stored records are gone"),
        Measure(
            "target_arrived",
            ALL,
            _share(stored.arrived, source),
            source,
            f"{stored.arrived:,} of {source:,} records arrived while the run was reading",
        ),
    ]
    if before is not None and before.documents:
        gone = max(0.0, 1 - stored.documents / before.documents)
        words = f"the store holds {stored.documents:,} documents, where it held {before.documents:,}"
        found.append(Measure("target_fewer", ALL, gone, before.documents, words))
    return found


# -- one shard ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Triage:
    """What becomes of a shard's rows: the shard's judgement, and the finding for each row that is withheld."""

    judgement: Judgement
    withheld: dict[int, Finding]


def triage(reading: Reading, columns: Columns, about: str, *, accept: Collection[str] = ()) -> Triage:
    """Return which rows of a shard are withheld, in microseconds a row: those behind findings that quarantine.

    ``accept`` names findings that a person means.
    """
    measures = measure_alone(reading.profile, columns)
    judgement = judge_alone(about, measures, shard_rules()).accepting(accept)
    withheld: dict[int, Finding] = {}
    for finding in judgement.worst(Action.QUARANTINE):
        mask = reading.masks.get((finding.name, finding.about))
        if mask is not None:
            withheld.update((row, finding) for row in np.flatnonzero(mask).tolist() if row not in withheld)
    return Triage(judgement, withheld)


def find_suspects(reading: Reading, columns: Columns, *, accept: Collection[str] = ()) -> dict[int, Finding]:
    """Return the rows that a quarantine would withhold, however few they are, each with what is wrong with it.

    One that was withheld before is withheld as long as it is among them: a few that are left of many are no better.
    """
    rules = {rule.name: rule for rule in shard_rules() if Action.QUARANTINE in rule.bounds}
    suspects: dict[int, Finding] = {}
    for measure in measure_alone(reading.profile, columns):
        mask = reading.masks.get((measure.name, measure.about))
        if mask is None or measure.name not in rules:
            continue
        finding = Finding.of(measure, rules[measure.name], Action.QUARANTINE)
        if finding.is_among(accept):
            continue
        suspects.update((row, finding) for row in np.flatnonzero(mask).tolist() if row not in suspects)
    return suspects


def withhold(table: pa.Table, withheld: Mapping[int, Finding], *, source: str) -> tuple[pa.Table, list[DeadLetter]]:
    """Return a table of ``DescribedRecord`` without the rows that are withheld, and a dead letter for each of these."""
    if not withheld:
        return table, []
    letters = []
    for row in sorted(withheld):
        finding = withheld[row]
        described = {name: table.column(name)[row].as_py() for name in ("record_id", "team_id", "holder_id", "key")}
        reason = (
            f"withheld, because {finding.words} ({finding.about}): {finding.advice}, then replay it, or accept "
            f"{finding.name}:{finding.about}"
        )
        letters.append(
            DeadLetter.from_error(
                RecordError(f"{WITHHELD}{finding.name}", reason),
                source=source,
                stage="validate",
                record={"_id": ObjectId(described["record_id"]), "key": described["key"]},
                team_id=described["team_id"],
                holder_id=described["holder_id"],
            )
        )
    kept = np.ones(table.num_rows, dtype=bool)
    kept[list(withheld)] = False
    return table.filter(pa.array(kept)), letters


# -- how many -------------------------------------------------------------------------------------------------


def _volume(profile: Profile, before: Profile | None, reach: Reach, *, read: int) -> Iterator[Measure]:
    gap = abs(read - profile.read)
    yield Measure(
        "unaccounted",
        ALL,
        gap,
        max(read, 1),
        f"{read:,} records were read, of which {profile.records:,} were looked at, "
        f"{profile.read - profile.records - profile.unchanged:,} refused and {profile.unchanged:,} stored already",
    )
    if reach.whole:
        yield from _numbers(read, before, reach)
        if before is not None:
            yield from _teams(profile, before)


def _numbers(read: int, before: Profile | None, reach: Reach) -> Iterator[Measure]:
    known = _first(before.seen) if before is not None else ()
    if before is None or not before.read:
        yield Measure("nothing", ALL, read, read, f"the source holds {read:,} records")
        return
    words = f"the source holds {read:,} records; the last good run read {before.read:,}"
    yield Measure("empty", ALL, read, read, words, known)
    change = read / before.read - 1
    words = f"the source holds {read:,} records, where the last good run read {before.read:,}"
    yield Measure("fewer", ALL, max(0.0, -change), before.read, words, known if change < 0 else ())
    yield Measure("more", ALL, max(0.0, change), before.read, words)


def _teams(profile: Profile, before: Profile) -> Iterator[Measure]:
    for team, number in sorted(before.teams.items()):
        now = profile.teams.get(team, 0)
        words = f"team {team} has {now:,} records, where it had {number:,}"
        yield Measure("team_fewer", team, max(0.0, 1 - now / number), number, words)


def _lost(asked: Collection[str], found: Collection[str]) -> Measure:
    lost = set(asked) - set(found)
    words = f"{len(lost):,} of {len(asked):,} records of the last good run that were looked for are gone"
    return Measure("lost", ALL, _share(len(lost), len(asked)), len(asked), words, _first(lost))


def _times(profile: Profile, before: Profile | None, columns: Columns, reach: Reach) -> Iterator[Measure]:
    if profile.last_ms is None:
        return
    if columns.fresh_days is not None:
        days = (reach.now_ms - profile.last_ms) / _MS_PER_DAY
        words = f"the newest record looked at is {days:,.1f} days old"
        yield Measure("stale", ALL, max(0.0, days), profile.records, words, profile.newest)
    if before is not None and before.last_ms is not None and is_representative(profile, reach):
        days = (before.last_ms - profile.last_ms) / _MS_PER_DAY
        words = f"the newest record is {days:,.1f} days older than that of the last good run"
        yield Measure("rewound", ALL, max(0.0, days), profile.records, words, (*before.newest, *profile.newest))


# -- what the records are like --------------------------------------------------------------------------------


def _refused(profile: Profile) -> Iterator[Measure]:
    read = profile.read
    for name, owners in (("refused", False), ("orphaned", True)):
        tallies = {code: tally for code, tally in profile.refused.items() if (code in OWNER_CODES) == owners}
        together = Tally()
        for code, tally in sorted(tallies.items()):
            together.add(tally.count, tally.examples)
            words = f"{tally.count:,} of {read:,} records are refused for {code}"
            yield Measure(name, code, _share(tally.count, read), read, words, tally.examples)
        if len(tallies) != 1:  # one reason alone is all of it
            words = f"{together.count:,} of {read:,} records are refused" + (", having no owner" if owners else "")
            yield Measure(name, ALL, _share(together.count, read), read, words, together.examples)


def _shape(profile: Profile, columns: Columns) -> Iterator[Measure]:
    total = profile.records
    for name in columns.required:
        tally = profile.missing.get(name, Tally())
        yield _tallied("missing", name, tally, total, f"have no {name}")
    for name in columns.formats:
        tally = profile.malformed.get(name, Tally())
        yield _tallied("malformed", name, tally, total, f"have a {name} of another format")
    if columns.sender and columns.contract:
        tally = profile.suspects.get(columns.sender, Tally())
        yield _tallied("swapped", columns.sender, tally, total, "name their contract as the sender")
    for unit, sizes in sorted(profile.amounts.items()):
        if unit in profile.suspects:
            words = f"move more {unit} than is ever moved"
            yield _tallied("far", unit, profile.suspects[unit], sizes.total, words)


def _tallied(name: str, about: str, tally: Tally, of: int, words: str) -> Measure:
    said = f"{tally.count:,} of {of:,} records {words}"
    return Measure(name, about, _share(tally.count, of), of, said, tally.examples)


def _doubled(profile: Profile) -> Iterator[Measure]:
    twins = [witness for witness in profile.witnesses.values() if witness.count > 1]
    number = len(profile.witnesses)
    examples = tuple(record for witness in sorted(twins, key=lambda twin: twin.ids)[:2] for record in witness.ids[:2])
    words = f"{len(twins):,} of {number:,} records that were followed stand in the source more than once"
    yield Measure("doubled", ALL, _share(len(twins), number), number, words, examples)


def _doubled_since(profile: Profile, before: Profile, again: Profile | None) -> Measure:
    """Return how many records the last good run followed under another id, which is there still.

    What is stored as it is has no witness: of a file that is imported again only the second copy is looked at.
    """
    followed = [
        (before.witnesses[key], witness) for key, witness in profile.witnesses.items() if key in before.witnesses
    ]
    number = sum(hash_of(key) < before.share for key in profile.witnesses)
    twins = [
        (was, witness)
        for was, witness in followed
        if not {*was.ids} & {*witness.ids} and (again is None or was.ids[0] in again.seen)
    ]
    pairs = sorted((was.ids[0], witness.ids[0]) for was, witness in twins)[:2]
    words = f"{len(twins):,} of {number:,} records that were followed stand in the source under another id already"
    return Measure("doubled", "earlier records", _share(len(twins), number), number, words, tuple(sum(pairs, ())))


# -- against the last good run --------------------------------------------------------------------------------


def _drift(profile: Profile, before: Profile, columns: Columns) -> Iterator[Measure]:
    fewest = min(profile.records, before.records)
    if fewest:
        for name in dict.fromkeys((*columns.required, *columns.optional)):
            tally, was = profile.missing.get(name, Tally()), before.missing.get(name, Tally())
            now, then = _share(tally.count, profile.records), _share(was.count, before.records)
            words = f"{100 * now:.1f} % of the records have no {name}, where {100 * then:.1f} % had none"
            yield Measure("missing_more", name, max(0.0, now - then), fewest, words, tally.examples)
        for name, tally in sorted(profile.warned.items()):
            was = before.warned.get(name, Tally())
            now, then = _share(tally.count, profile.records), _share(was.count, before.records)
            words = f"of {100 * now:.1f} % of the records parsing says: {name}; it was {100 * then:.1f} %"
            yield Measure("warned", name, max(0.0, now - then), fewest, words, tally.examples)
    yield from _scales(profile, before)
    for name in columns.kinds:
        counts, were = profile.kinds.get(name, {}), before.kinds.get(name, {})
        number = min(sum(counts.values()), sum(were.values()))
        if number:
            index, moved = _stability(counts, were)
            words = f"the values of {name} are spread otherwise than they were, {moved} most of all"
            yield Measure("kinds", name, index, number, words)
    if sum(profile.hours) and sum(before.hours):
        gain, hours = _shift(profile.hours, before.hours)
        words = (
            f"the hours of the day are those of the last good run {hours:+d} h, in {100 * gain:.0f} % of the records"
        )
        if columns.time_ms:
            yield Measure("hour_shift", columns.time_ms, gain, sum(profile.hours), words, profile.newest)


def _scales(profile: Profile, before: Profile) -> Iterator[Measure]:
    pairs: list[tuple[str, Sizes, Sizes]] = [
        (name, sizes, before.figures[name]) for name, sizes in profile.figures.items() if name in before.figures
    ]
    pairs += [(unit, sizes, before.amounts[unit]) for unit, sizes in profile.amounts.items() if unit in before.amounts]
    for name, sizes, were in pairs:
        now, then = sizes.median_decades(), were.median_decades()
        if now is not None and then is not None:
            of = min(sizes.positives, were.positives)
            words = f"the median of {name} is 10^{now:.1f}, where it was 10^{then:.1f}"
            yield Measure("scale", name, abs(now - then), of, words, tuple(record for _, record in sizes.largest))


def _stability(counts: Mapping[str, int], were: Mapping[str, int]) -> tuple[float, str]:
    """Return the population stability index of two distributions, and the value that moved most. 0.25 is a lot."""
    total, before = sum(counts.values()), sum(were.values())
    parts = {}
    for value in {*counts, *were}:
        now, then = max(_RARE, counts.get(value, 0) / total), max(_RARE, were.get(value, 0) / before)
        parts[value] = (now - then) * math.log(now / then)
    return sum(parts.values()), max(sorted(parts), key=lambda value: parts[value])


def _shift(hours: list[int], were: list[int]) -> tuple[float, int]:
    """Return by how much turning the day makes two distributions of hours more alike, and by how many hours.

    The first is the share of records that lie in another hour than they would if nothing were turned.
    """
    now, then = (np.array(counts) / sum(counts) for counts in (hours, were))
    apart = [float(np.abs(now - np.roll(then, turn)).sum()) / 2 for turn in range(len(hours))]
    turn = int(np.argmin(apart))
    return apart[0] - apart[turn], turn - len(hours) if turn > len(hours) // 2 else turn


def _again(now: Mapping[str, Witness], before: Mapping[str, Witness], columns: Columns) -> Iterator[Measure]:
    """Return what became of the records that both runs followed."""
    both = [(now[key], before[key]) for key in sorted(now.keys() & before.keys())]
    time, amount, sender, recipient = columns.time_ms, columns.amount, columns.sender, columns.recipient
    if time:
        timed = [pair for pair in both if None not in _values(pair, time)]
        moved = ((witness, _zone_minutes(*_values((witness, was), time))) for witness, was in timed)
        words = "{count:,} of {of:,} records that were followed moved in time by {what:+g} h"
        yield _alike("moved", time, moved, len(timed), words, lambda minutes: minutes / 60)
    if amount:
        counted = [pair for pair in both if None not in _values(pair, amount)]
        scaled = ((witness, _decades(*_values((witness, was), amount))) for witness, was in counted)
        words = "{count:,} of {of:,} records that were followed have their amount times 10^{what:d}"
        yield _alike("scaled", amount, scaled, len(counted), words, int)
    if sender and recipient:
        exchanged = [
            witness
            for witness, was in both
            if witness.values.get(sender) != witness.values.get(recipient)
            and witness.values.get(sender) == was.values.get(recipient)
            and witness.values.get(recipient) == was.values.get(sender)
        ]
        words = (
            f"{len(exchanged):,} of {len(both):,} records that were followed have {sender} and {recipient} exchanged"
        )
        yield _followed("exchanged", sender, exchanged, len(both), words)
    for name in columns.required:
        had = [pair for pair in both if pair[1].values.get(name) not in (None, "")]
        emptied = [witness for witness, _ in had if witness.values.get(name) in (None, "")]
        words = f"{len(emptied):,} of {len(had):,} records that were followed have lost their {name}"
        yield _followed("emptied", name, emptied, len(had), words)


def _alike(name: str, about: str, changes: Iterable[tuple[Witness, int]], of: int, words: str, shown: Any) -> Measure:
    """Return how many records changed in the way that is commonest: a mistake does the same to all it touches."""
    changed = [(witness, change) for witness, change in changes if change]
    what = Counter(change for _, change in changed).most_common(1)[0][0] if changed else 0
    same = [witness for witness, change in changed if change == what]
    return _followed(name, about, same, of, words.format(count=len(same), of=of, what=shown(what)))


def _followed(name: str, about: str, witnesses: list[Witness], of: int, words: str) -> Measure:
    return Measure(name, about, _share(len(witnesses), of), of, words, _first(seen.ids[0] for seen in witnesses))


def _values(pair: tuple[Witness, Witness], column: str) -> tuple[Any, Any]:
    return pair[0].values.get(column), pair[1].values.get(column)


def _zone_minutes(now_ms: int, before_ms: int) -> int:
    """Return the difference in minutes where it is one between time zones, else 0."""
    minutes, rest = divmod(now_ms - before_ms, 60_000)
    return 0 if rest or minutes % _ZONE_MINUTES or abs(minutes) > _MINUTES_PER_DAY else int(minutes)


def _decades(now: str, before: str) -> int:
    """Return the whole power of ten between two amounts, else 0."""
    try:
        one, two = float(now), float(before)
        exponent = math.log10(one / two)
    except (ValueError, ZeroDivisionError):
        return 0
    return round(exponent) if math.isclose(exponent, round(exponent), abs_tol=1e-9) else 0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _first(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(ids)[:MAX_EXAMPLES])
