"""Observed records for tests: the table that a profile is made of, sound, and with the faults that a gate must see."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa

from tasks.domain.columns import Columns
from tasks.domain.profiles import Profile, read_profile

Row = dict[str, Any]

COLUMNS = Columns(
    time_ms="time_ms",
    amount="amount",
    unit="unit",
    figures=("gasUsed",),
    kinds=("status", "chain"),
    sender="from",
    recipient="to",
    contract="contractAddress",
    warnings="warnings",
    required=("chain", "from", "to", "time_ms", "amount"),
    optional=("status", "gasUsed"),
    formats={"from": "0x[0-9a-f]{40}", "to": "0x[0-9a-f]{40}"},
    ceilings={"ETH": 1e7},
)
NOW_MS = 1_753_000_000_000
_MONTH_S = 30 * 86_400
SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in ("record_id", "key", "team_id")),
        ("time_ms", pa.int64()),
        *((name, pa.large_string()) for name in ("amount", "unit", "status", "chain")),
        *((name, pa.large_string()) for name in ("from", "to", "contractAddress", "warnings")),
        ("gasUsed", pa.float64()),
    ]
)


def make_rows(number: int, *, seed: int = 1) -> list[Row]:
    """Return sound rows: two teams, two units, most of them in the afternoon. The same seed gives the same rows."""
    random = Random(seed)
    rows = []
    for at in range(number):
        moment = NOW_MS // 1_000 - random.randrange(_MONTH_S)
        hour = 13 + random.choice((0, 0, 0, 1, 1, 2, 5, 9))
        ether = random.random() < 0.6
        contract = f"0x{random.choice((11, 12, 13)):040x}"
        rows.append(
            {
                "record_id": f"{0x64C000000000 + at:012x}{random.getrandbits(48):012x}",
                "key": f"transaction:contract_{at % 7}:0x{random.getrandbits(256):064x}",
                "team_id": f"64a0{at % 2:020x}",
                "time_ms": (moment - moment % 86_400 + hour % 24 * 3_600 + random.randrange(3_600)) * 1_000,
                "amount": f"{random.lognormvariate(0, 2):.6f}" if ether else f"{random.lognormvariate(7, 1):.2f}",
                "unit": "ETH" if ether else "USDT",
                "status": random.choice(("success", "success", "success", "failed", None)),
                "chain": random.choice(("Ethereum", "Ethereum", "Polygon")),
                "from": f"0x{random.getrandbits(160):040x}",
                "to": contract,
                "contractAddress": contract,
                "warnings": None,
                "gasUsed": float(random.randrange(21_000, 400_000)),
            }
        )
    return rows


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Return the rows as a table."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def make_profile(rows: Sequence[Row], **choices: Any) -> Profile:
    """Return the profile of the rows."""
    return read_profile(to_table(rows), COLUMNS, source="transaction", **choices).profile


def with_nulls(rows: Sequence[Row], column: str = "from") -> list[Row]:
    """Return the rows with every fifth value of a column gone."""
    return [{**row, column: None} if at % 5 == 0 else row for at, row in enumerate(rows)]


def doubled(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as they are after their file was imported twice, under new ids."""
    again = [{**row, "record_id": f"65d{row['record_id'][3:]}"} for row in rows]
    return [*rows, *again]


def shifted(rows: Sequence[Row], hours: int = 5) -> list[Row]:
    """Return the rows with their times read in another time zone."""
    return [{**row, "time_ms": row["time_ms"] + hours * 3_600_000} for row in rows]


def scaled(rows: Sequence[Row], decades: int = 12) -> list[Row]:
    """Return the rows with amounts of which the decimals were forgotten."""
    return [{**row, "amount": f"{float(row['amount']) * 10**decades:.6f}"} for row in rows]


def truncated(rows: Sequence[Row]) -> list[Row]:
    """Return the first half of the rows."""
    return list(rows[: len(rows) // 2])


def swapped(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with senders and recipients exchanged."""
    return [{**row, "from": row["to"], "to": row["from"]} for row in rows]
