"""Real transactions: the project's figures against plain aggregations that MongoDB computes over the raw collection."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from bson import ObjectId
from bson.codec_options import DatetimeConversion
from pymongo import ASCENDING, MongoClient
from pymongo.database import Database

from tasks.domain.actions import find_action
from tasks.domain.aggregates.figures import staking_figures, transaction_figures
from tasks.domain.aggregates.newcomers import count_newcomers, newcomers_in
from tasks.domain.aggregates.periods import LEVELS, Calendar, Period
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.storage import decode_partial, encode_partial
from tasks.domain.aggregates.transactions import TransactionDays, TransactionFigures
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.transactions import parse_transaction
from tests.builders import NOW_MS
from tests.conftest import read_extended_json
from tests.contracts import plain_aggregations as plain

Records = list[dict[str, Any]]
#: A zone west of Greenwich with summer time, and one east of it whose clocks are at a quarter past.
STAKERS = ("lockingWallets", "withdrawingWallets")
FAR_ZONES = ("America/New_York", "Asia/Kathmandu")
#: Amounts as the source's producers write them, and how each counts: in digits, or not at all.
DIRTY_AMOUNTS = (
    "0.05",
    "5e-7",
    "1.5E+3",
    "12.5 BEP20",
    "1,234.5 ABC",
    "1,234,567.000000000000000001 USDT",
    "0 ERC20",
    "0 BEP20",
    "0 ETH",
    "0 MATIC",
    "0 ARB",
    "0 ABC",
    "",
    None,
    "<0.0001",
    "< 0.0001 ABC",
    "0.1",
    "0.099999999999999999",
    "1",
    "10",
    "10.000000000000000001",
    " 7.25 ",
    # More digits than Decimal128 has, on both sides of the point.
    "31415926535897932384626433832795028841971.693993751058209749445923078164062862089986 ABC",
    str(2**256 - 1) + " ABC",
    str(2**256) + " ABC",
    "100000000001",
    "0,015",
    "-3.2",
    "NaN",
    "call me",
)


def fill(database: Database[dict[str, Any]], shared_data: Path, transactions: Records) -> None:
    for name in ("smartcontracts", "teams", "websites"):
        database[name].insert_many(read_extended_json(shared_data / f"{name}.jsonl"))
    database["smartcontracts"].create_index([("contractId", ASCENDING)])
    database["transactions"].insert_many(transactions)
    # The vocabulary is the project's own: MongoDB is told what a method of a contract is called, and counts itself.
    names = {record["contractId"]: record.get("name") for record in database["smartcontracts"].find()}
    methods = {
        (method, record["contractId"])
        for record in database["transactions"].find({}, {"method_name": 1, "functionName": 1, "contractId": 1})
        for method in (str(record.get(field) or "").partition("(")[0] for field in ("method_name", "functionName"))
        if method and record.get("contractId") in names
    }
    database["vocabulary"].insert_many(
        {"method": method, "contractId": holder, "category": find_action(method, names[holder]).category}
        for method, holder in sorted(methods)
    )
    database["vocabulary"].create_index([("method", ASCENDING)])
    database["transactions"].aggregate(plain.reading(NOW_MS))


@pytest.fixture(scope="module")
def client(mongo_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        mongo_uri, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
    ) as client:
        yield client


def made_database(client: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    name = f"real_{uuid4().hex[:12]}"
    yield client[name]
    client.drop_database(name)


def real_transactions(shared_data: Path) -> Records:
    return [
        record
        for name in ("transactions.sample.jsonl.gz", "staking.synthetic.jsonl")
        for record in read_extended_json(shared_data / name)
    ]


@pytest.fixture(scope="module")
def real(client: MongoClient[dict[str, Any]], shared_data: Path) -> Iterator[Database[dict[str, Any]]]:
    """The real transactions as they are."""
    for database in made_database(client):
        fill(database, shared_data, real_transactions(shared_data))
        yield database


@pytest.fixture(scope="module")
def dirty(client: MongoClient[dict[str, Any]], shared_data: Path) -> Iterator[Database[dict[str, Any]]]:
    """Some real transactions, each tenth stored twice, with every dirty row and every dirty amount there is."""
    records = real_transactions(shared_data)[::7]
    twice = [{**record, "_id": ObjectId(b"\xff" * 8 + bytes(record["_id"].binary[:4]))} for record in records[::10]]
    messy = [
        line["doc"]
        for line in read_extended_json(shared_data / "messy.jsonl")
        # A double has no exact digits in an aggregation: $toString and $toDecimal round it.
        if line["storable"] == "ok" and not isinstance(line["doc"].get("value_eth"), float)
    ]
    amounts = [
        {**records[place * 3], "_id": ObjectId(), "tx_hash": f"0x{place:064x}", "tx_type": kind, "value_eth": amount}
        for place, (amount, kind) in enumerate(
            itertools.product(DIRTY_AMOUNTS, ("Contract Interaction", "ABC Transfer", "Transfer"))
        )
    ]
    known = {record["_id"] for record in records}
    for number, record in enumerate(messy):
        if record["_id"] in known:
            record["_id"] = ObjectId(f"{number:024x}")
        known.add(record["_id"])
    for database in made_database(client):
        fill(database, shared_data, [*records, *twice, *messy, *amounts])
        yield database


def computed(
    database: Database[dict[str, Any]], zone: str
) -> tuple[dict[PartialKey, TransactionFigures], dict[Any, str]]:
    """Return the project's days, as they come back from the store, and why records were refused."""
    owners = Owners.from_records(*(database[name].find() for name in ("smartcontracts", "teams", "websites")))
    days = TransactionDays(Calendar(zone))
    refused: dict[Any, str] = {}
    for record in database["transactions"].find():
        try:
            days.add(parse_transaction(record, owners, now_ms=NOW_MS))
        except RecordError as error:
            refused[record["_id"]] = error.code
    found = {
        key: decode_partial("transactions", encode_partial("transactions", figures)) for key, figures in days.finish()
    }
    return found, refused


def by_period(days: dict[PartialKey, TransactionFigures]) -> dict[plain.Key, dict[str, Any]]:
    """Return the project's figures of every scope and period."""
    scopes: dict[Scope, list[tuple[Any, TransactionFigures]]] = {}
    for key, figures in days.items():
        teams = [Scope.team(key.scope.holder_id)] if key.scope.kind == "chain" else []
        for scope in (key.scope, *teams):
            scopes.setdefault(scope, []).append((key.day, figures))
    found: dict[plain.Key, dict[str, Any]] = {}
    for scope, parts in scopes.items():
        newcomers = count_newcomers((day, figures.senders) for day, figures in parts if day is not None)
        periods: dict[Period, list[TransactionFigures]] = {}
        for day, figures in parts:
            for level in LEVELS:
                if day is not None or level == "all":
                    periods.setdefault(Period.of(level, day or Period.from_label("all").first), []).append(figures)
        for period, mine in periods.items():
            whole = TransactionFigures.merged(mine)
            ever = period.level == "all"
            facts = transaction_figures(whole, new_wallets=None if ever else newcomers_in(newcomers, period))
            # Who locked and withdrew is held against the naive computation alone (tests/unit/aggregates).
            staked = staking_figures(whole)
            facts["staking"] = {name: figure for name, figure in staked.items() if name not in STAKERS}
            first = None if ever else period.first.isoformat()
            found[scope.kind, scope.holder_id, scope.part, period.level, first] = facts
    return found


def text(value: Decimal) -> str:
    shown = format(value, "f")
    return (shown.rstrip("0").rstrip(".") if "." in shown else shown) or "0"


def scaled(number: int, places: int) -> str:
    """Return a whole number with the point moved, without zeros at its end."""
    sign, digits = ("-" if number < 0 else ""), f"{abs(number):0{places + 1}}"
    return sign + f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")


def volumes(units: Records) -> Records:
    return [
        {
            "unit": unit["_id"]["unit"][:200],
            "amount": scaled(*plain.number_of([unit[f"limb{place}"] for place in range(plain.DECIMAL_LIMBS)])),
            **{name: unit[name] for name in ("amounts", "zeros", "below", "unlimited", "notMoved")},
            "largest": None if unit["largest"] is None else scaled(int(unit["largest"]), plain.SIDE),
            "sizes": {name: unit[name] for name in ("under0_1", "from0_1To1", "from1To10", "over10")},
        }
        for unit in units[:50]
    ]


def lengths(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    entries = list(entries)
    known = sorted(entry["days"] for entry in entries if entry["days"] is not None)
    limits = (0, 30, 90, 180, 365, 730, 1460, 10**9)
    names = (
        "under30Days",
        "from30To90Days",
        "from90To180Days",
        "from180To365Days",
        "from1To2Years",
        "from2To4Years",
        "from4Years",
    )
    return {
        "known": len(known),
        "unknown": len(entries) - len(known),
        "shortest": known[0] if known else None,
        "longest": known[-1] if known else None,
        "average": text(round(Decimal(sum(known)) / len(known), 2)) if known else None,
        "median": text(Decimal(median(known))) if known else None,
        "bands": {
            name: sum(low <= days < high for days in known)
            for name, (low, high) in zip(names, itertools.pairwise(limits), strict=True)
        },
    }


def stakes(found: Records) -> dict[str, Any]:
    kinds = (*plain.STAKING_NAMES, "unknown")
    facts = []
    for stake in found:
        locked, withdrawn = (
            plain.word_of([stake[f"{name}{place}"] for place in range(plain.WORD_LIMBS)])
            for name in ("locked", "withdrawn")
        )
        unknown = stake["lockedUnknown"] + stake["withdrawnUnknown"]
        facts.append(
            {
                "contractId": stake["_id"]["contractId"],
                "calls": {kind: stake[kind] for kind in sorted(kinds) if stake[kind]},
                "notDone": stake["notDone"],
                "locked": scaled(locked, 18),
                "lockedAmounts": stake["lockedKnown"],
                "lockedUnknown": stake["lockedUnknown"],
                "withdrawn": scaled(withdrawn, 18),
                "withdrawnAmounts": stake["withdrawnKnown"],
                "withdrawnUnknown": stake["withdrawnUnknown"],
                "withdrawnEarly": stake["withdraw_early"],
                "net": None if unknown else scaled(locked - withdrawn, 18),
                "netOfKnown": scaled(locked - withdrawn, 18),
                "lockDays": lengths(stake["lockDays"]),
                "extendedDays": lengths(stake["extendedDays"]),
            }
        )
    facts.sort(key=lambda stake: (-sum(stake["calls"].values()), stake["contractId"]))
    return {
        "calls": sum(sum(stake["calls"].values()) for stake in facts),
        "notDone": sum(stake["notDone"] for stake in facts),
        "contracts": len(facts),
        "stakes": facts[:50],
    }


def answered(database: Database[dict[str, Any]], zone: str) -> dict[plain.Key, dict[str, Any]]:
    """Return the figures of every scope and period as MongoDB's aggregations find them."""
    database["read"].aggregate(plain.counting(zone))
    wholes = plain.answers(database, plain.WHOLE)
    categories, methods, senders, recipients, new, moved, calls = (
        plain.answers(database, pipeline)
        for pipeline in (
            plain.CATEGORIES,
            plain.METHODS,
            plain.SENDERS,
            plain.RECIPIENTS,
            plain.NEWCOMERS,
            plain.VOLUMES,
            plain.STAKES,
        )
    )
    none: dict[str, Any] = {"distinct": 0, "repeated": 0, "top": []}
    found: dict[plain.Key, dict[str, Any]] = {}
    for key, whole in wholes.items():
        hours = [whole[f"hour{hour}"] for hour in range(24)]
        units = moved.get(key, {"units": []})["units"]
        mine = senders.get(key, none)
        facts = {
            **{name: whole[name] for name in ("transactions", "succeeded", "failed", "pending", "statusUnknown")},
            "undated": whole["undated"],
            "wallets": mine["distinct"],
            "repeatWallets": mine["repeated"],
            "topWallets": mine["top"],
            "recipients": recipients.get(key, none)["distinct"],
            "topRecipients": recipients.get(key, none)["top"],
            "categories": categories[key]["categories"],
            "methods": methods.get(key, none)["distinct"],
            "topMethods": [{**one, "method": one["method"][:200]} for one in methods.get(key, none)["top"]],
            "units": len(units),
            "volumes": volumes(units),
            "gas": {
                "total": text(Decimal(whole["gasTotal"])),
                "known": whole["gasKnown"],
                "average": None if whole["gasAverage"] is None else text(Decimal(whole["gasAverage"])),
                "largest": None if whole["gasLargest"] is None else str(whole["gasLargest"]),
            },
            "hours": hours,
            "busiestHours": sorted((hour for hour in range(24) if hours[hour]), key=lambda hour: (-hours[hour], hour))[
                :3
            ],
            "weekdays": [whole[f"weekday{day}"] for day in range(1, 8)],
            "staking": stakes(calls.get(key, {"stakes": []})["stakes"]),
        }
        if key[3] != "all":
            newcomers = new.get(key, {"wallets": 0})["wallets"]
            facts |= {"newWallets": newcomers, "returningWallets": mine["distinct"] - newcomers}
        found[key] = facts
    return found


def differences(
    project: dict[plain.Key, dict[str, Any]], mongo: dict[plain.Key, dict[str, Any]]
) -> list[tuple[plain.Key, str, Any, Any]]:
    return [
        (key, name, project.get(key, {}).get(name), mongo.get(key, {}).get(name))
        for key in sorted(project.keys() | mongo.keys(), key=repr)
        for name in sorted(project.get(key, {}).keys() | mongo.get(key, {}).keys())
        if project.get(key, {}).get(name) != mongo.get(key, {}).get(name)
    ]


@pytest.mark.parametrize("zone", ["UTC", *(pytest.param(zone, marks=pytest.mark.long) for zone in FAR_ZONES)])
def test_every_figure_of_real_transactions_is_that_of_plain_aggregations(
    real: Database[dict[str, Any]], zone: str
) -> None:
    days, refused = computed(real, zone)
    project, mongo = by_period(days), answered(real, zone)
    assert not refused
    assert {key[0] for key in mongo} == {"contract", "chain", "team"}
    assert {key[3] for key in mongo} == set(LEVELS)
    assert sum(figures["transactions"] for key, figures in mongo.items() if key[0::3][:2] == ("contract", "all")) == (
        real["transactions"].estimated_document_count()
    )
    assert differences(project, mongo)[:5] == []


def test_dirty_and_doubled_rows_count_as_the_plain_aggregations_count_them(dirty: Database[dict[str, Any]]) -> None:
    days, refused = computed(dirty, "UTC")
    mongo_refused = {record["_id"] for record in dirty["read"].find({"refused": {"$ne": None}}, {"_id": 1})}
    assert mongo_refused == set(refused)
    assert sum(figures.doubled for key, figures in days.items() if key.scope.kind == "contract") > 100
    assert differences(by_period(days), answered(dirty, "UTC"))[:5] == []
