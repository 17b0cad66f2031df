"""Direct: questions with a way of their own to the answer, past the rules for figures.

A transaction by its hash, the journeys of visitors, what the application itself counted, when locks end, how often a
method was called, how many amounts lie within bounds. Each function says whether it answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.answers.asking import Span, Threshold, find_thresholds
from tasks.domain.answers.cases import MOST_ANSWERS, Case
from tasks.domain.answers.lexicon import FigureRule, Topic
from tasks.domain.answers.lookups import MOST_CITED, aware, is_first
from tasks.domain.answers.model import Found, RefusedError, Scope, Stored
from tasks.domain.answers.paths import read_path
from tasks.domain.answers.rules import paths_of
from tasks.domain.answers.values import said_method, within
from tasks.domain.retrieval.filters import AnyOf, Filter
from tasks.domain.retrieval.words import stem_of, words_of

_AFTER_DAYS = re.compile(
    r"\bafter (?P<days>\d+|one|two|three|seven|fourteen|thirty) days?\b|\bafter a (?P<week>week)\b"
)
_DAYS = {"one": 1, "two": 2, "three": 3, "seven": 7, "fourteen": 14, "thirty": 30}
_JOURNEYS = re.compile(r"\bjourneys?\b")
LOCK_ENDS = re.compile(r"\bwhen\b.*\block\w*\b.*\b(?:end|ends|expire\w*|unlock\w*|run out|free)\b")
_BANDS = {(None, "0.1"): "under0_1", ("0.1", "1"): "from0_1To1", ("1", "10"): "from1To10", ("10", None): "over10"}
#: Kinds of calls whose names are words of other questions, too.
_KINDS_ARE_WORDS = frozenset({"other", "transfer"})
_OF_A_TRANSACTION = (
    ("from", r"\bwho\b|\bsender\b|\bsent by\b|\bfrom whom\b|\bwhich wallet\b"),
    ("to", r"\breceiv|\brecipient\b|\bto whom\b"),
    ("amount", r"\bhow much\b(?! gas)|\bamount\b|\bvalue\b|\bmoved?\b"),
    ("unit", r"\bhow much\b(?! gas)|\bamount\b|\bvalue\b|\bmoved?\b"),
    ("status", r"\bdone\b|\bsucceed|\bsuccess|\bfail|\bstatus\b|\bgo through\b|\brevert|\bpending\b"),
    ("gasUsed", r"\bgas\b"),
    ("method", r"\bmethod\b|\bfunction\b|\bcall(?:ed)?\b"),
    ("blockNumber", r"\bblock\b"),
    ("chain", r"\bchain\b|\bnetwork\b"),
    ("contractName", r"\bcontract\b"),
    ("time", r"\bwhen\b|\bwhat time\b|\bdate\b"),
)
_OF_AN_HOUR = (
    ("pageViews", r"\bpages?\b|\bviews?\b"),
    ("visitors", r"\bvisit|\bpeople\b|\bpages?\b"),
    ("web3Users", r"\bweb3\b"),
    ("walletsConnected", r"\bconnect"),
)

_COUNTS = re.compile(r"how (?:many|often)|number of|count")


def answer_transaction(case: Case) -> bool:
    """Return facts of the transaction whose hash, or the beginning of it, the question names."""
    wanted = [one for one in case.understood.where.any_of if one.field in ("hash", "short")]
    if not wanted:
        return False
    said = case.asked.question.lower()
    reads = [path for path, words in _OF_A_TRANSACTION if re.search(words, said)]
    if not reads and not case.strong:
        return False
    begun = re.findall(r"0x[0-9a-f]{6,64}", said)
    rows = [
        row
        for row in case.lookup.library.find(
            Filter((AnyOf("source", ("transaction",)), AnyOf("aggregate", ("no",)), *wanted)), 50
        )
        if is_first(row) and any(row["metadata"]["facts"].get("txHash", "").startswith(one) for one in begun)
    ]
    if not rows:
        if any(re.fullmatch(r"0x[0-9a-f]{64}", one) for one in begun):
            raise RefusedError("no transaction with that hash is known here", "the hash of one that is")
        return False
    if len({row["metadata"]["facts"]["txHash"] for row in rows}) > 1:
        raise RefusedError(f"{len(rows)} transactions begin like that", "more of the hash")
    for row in rows[:MOST_ANSWERS]:
        facts = row["metadata"]["facts"]
        scope = Scope("transaction", f"transaction {facts['txHash'][:10]}…")
        start = (row["metadata"].get("timeframe") or {}).get("start")
        when = "at an unknown time" if start is None else f"{aware(start):%Y-%m-%d %H:%M} UTC"
        case.found.take(
            Found(scope, {**facts, "time": when}, (row,), when), reads or [path for path, _ in _OF_A_TRANSACTION]
        )
    return True


def answer_journeys(case: Case) -> bool:
    """Tell how many visitors' journeys there were, or how many ended with a connected wallet."""
    said = case.asked.said
    if not _JOURNEYS.search(said) or not case.strong:
        return False
    case.refuse_strangers(())
    ended = re.search(r"connect|convert", said) is not None
    for scope in case.scopes("funnel"):
        for span in case.times:
            rows = case.lookup.records("user_journey", scope, span)
            told = [("journeys", rows)]
            if ended:
                # The application says it twice, and not always the same: both are told.
                told = [
                    ("journeys of segment converter", _with(rows, "segment", "converter")),
                    ("journeys with a connected wallet", _with(rows, "converted", True)),
                ]
            for name, some in told:
                found = Found(scope, {}, tuple(some[:MOST_CITED]), case.lookup.window(span), len(some))
                case.found.say(found, name, len(some), "journeys")
            if len({len(some) for _, some in told}) > 1:
                case.found.notes["the application's segments and its flag for a connected wallet disagree"] = None
    return True


def answer_application(case: Case, topic: Topic | None) -> bool:
    """Return what the application itself counted: an hour of a website, or who came back after some days."""
    said = case.asked.said
    after = _AFTER_DAYS.search(said)
    traffic = (AnyOf("source", ("analytics",)), AnyOf("category", ("traffic",)), AnyOf("aggregate", ("no",)))
    if after is not None and re.search(r"came|come|return|retain|retention|back", said):
        days = 7 if after["week"] else _DAYS.get(after["days"]) or int(after["days"])
        case.refuse_strangers(())
        for scope in case.scopes("visits"):
            for row in case.lookup.library.find(Filter((*traffic, AnyOf("tag", ("totals",)), *scope.records)), 50):
                found = Found(scope, row["metadata"]["facts"], (row,), "since it is tracked")
                case.found.take(found, [f"retention[day={days}].percent", f"retention[day={days}].count"])
        if not case.found.figures:
            raise RefusedError(f"who came back after {days} days is not kept", "1, 7, 14 or 30 days")
        return True
    spans = case.asked.spans
    if topic in ("visits", None) and len(spans) == 1 and spans[0].start is not None and spans[0].end is not None:
        start, seconds = spans[0].start, (spans[0].end - spans[0].start).total_seconds()
        if seconds == 3600 and spans[0].period is None:
            day, hour = Calendar(case.asked.zone).place(round(start.timestamp() * 1000))
            label = AnyOf("facts.period", (f"{day:%Y-%m-%d}T{hour:02}",))
            reads = [path for path, words in _OF_AN_HOUR if re.search(words, said)]
            for scope in case.scopes("visits") if reads else ():
                for row in case.lookup.library.find(Filter((*traffic, label, *scope.records)), 50):
                    facts = row["metadata"]["facts"]
                    if facts.get("timezone") in (None, case.asked.zone):
                        case.found.take(Found(scope, facts, (row,), case.lookup.window(spans[0])), reads)
            if case.found.figures:
                return True
    return False


def answer_lock_ends(case: Case) -> bool:
    """Tell when locks end, each with its length in days; those whose end is not known are counted."""
    case.refuse_strangers(())
    for scope in case.scopes("staking"):
        for span in case.times:
            rows = case.lookup.records("transaction", scope, span, AnyOf("facts.stakingType", ("create_lock",)))
            case.lookup.refuse_outside("transactions", scope, span, rows)
            done = [row for row in rows if row["metadata"]["facts"].get("status") not in ("failed", "pending")]
            known = [row for row in done if "unlockTime" in row["metadata"]["facts"]]
            ends = sorted(
                (aware(row["metadata"]["facts"]["unlockTime"]), row["metadata"]["facts"].get("lockDays"))
                for row in known
            )
            entries = [{"unlockTime": end, "lockDays": days} for end, days in ends]
            found = Found(scope, {}, tuple(known[:MOST_CITED]), case.lookup.window(span), len(known))
            case.found.say(found, "locks end", entries, "unlockTime")
            if len(done) > len(known):
                case.found.notes[f"of {len(done) - len(known)} more the end is not known"] = None
    return True


def answer_method(case: Case, rules: Sequence[FigureRule]) -> bool:
    """Return how often a method or a kind of call was made, by its name and by its selector where it has no name."""
    said = case.asked.said
    if not _COUNTS.search(said) or any(rule.alone for rule in rules):
        return False
    stems = set(words_of(said))
    for scope in case.scopes("transactions"):
        for span in case.times:
            whole = case.lookup.document("transactions", scope, span) or case.lookup.count("transactions", scope, span)
            kinds = [entry["category"] for entry in whole.facts["figures"].get("categories", ())]
            kind = next((one for one in kinds if stem_of(one) in stems and one not in _KINDS_ARE_WORDS), None)
            methods = {entry["method"] for entry in whole.facts["figures"].get("topMethods", ())}
            method = said_method(methods, stems, said)
            if method is not None:
                case.refuse_strangers(())
                rows = case.lookup.records("transaction", scope, span)
                selectors = {
                    facts["selector"]
                    for row in rows
                    if (facts := row["metadata"]["facts"]).get("method") == method and "selector" in facts
                }
                made = [
                    row
                    for row in rows
                    if (facts := row["metadata"]["facts"]).get("method") == method
                    or ("method" not in facts and facts.get("selector") in selectors)
                ]
                number = len(
                    {(row["metadata"]["facts"].get("chain"), row["metadata"]["facts"]["txHash"]) for row in made}
                )
                counted = replace(whole, cited=tuple(made[:MOST_CITED]), counted=len(made))
                case.found.say(counted, f"calls of {method}", number, "method")
            elif kind is not None:
                case.refuse_strangers(())
                for counted_as, name in (
                    ("transactions", f"{kind} transactions"),
                    ("failed", f"failed {kind} transactions"),
                ):
                    path = f"figures.categories[category={kind}].{counted_as}"
                    case.found.say(whole, name, read_path(whole.facts, path), path)
    return bool(case.found.figures)


def answer_threshold(case: Case) -> bool:
    """Tell how many amounts lie within bounds: by the size bands where they are theirs, else counted."""
    said = case.asked.said
    bounds = find_thresholds(said)
    if not bounds or re.search(r"\bgas\b", said) or not _COUNTS.search(said):
        return False
    case.refuse_strangers(())
    for scope in case.scopes("transactions"):
        for span in case.times:
            found = case.lookup.document("transactions", scope, span) or case.lookup.count("transactions", scope, span)
            path = paths_of(case.asked, FigureRule("transactions", ("figures.volumes[{unit}]",), ()), found)[0]
            if path.endswith("[*]"):
                raise RefusedError("amounts of different units are not counted together", "the unit, such as ETH")
            for one in bounds:
                _within(case, found, scope, span, path, one)
            if re.search(r"\bzero\b|\bnothing\b", said):
                case.found.take(found, [f"{path}.zeros"])
    return True


def _within(case: Case, found: Found, scope: Scope, span: Span, path: str, bounds: Threshold) -> None:
    band = _BANDS.get((bounds.low, bounds.high))
    if band is not None:
        case.found.take(found, [f"{path}.sizes.{band}"])
        return
    unit = path.partition("unit=")[2].rstrip("]")
    here = case.lookup.count("transactions", scope, span, within(bounds, unit))
    case.found.take(replace(here, scope=replace(here.scope, name=found.scope.name)), ["figures.transactions"])


def _with(rows: Sequence[Stored], fact: str, value: object) -> list[Stored]:
    return [row for row in rows if row["metadata"]["facts"].get(fact) == value]
