"""Dirt of sixty kinds beside real rows: each ends as a right vector document or as a dead letter with its reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.errors import InvalidBSON, InvalidStringData
from pymongo import MongoClient

from tests.conftest import read_extended_json
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline

#: Dirty record -> the code of its dead letter, or what its stored document must hold, by path. An absent fact is None.
OUTCOMES: dict[str, str | dict[str, Any]] = {
    "m01": {"timeframe": None, "facts.method": "multicall"},
    "m02": {"facts.to": None, "facts.allowance": "unlimited"},
    "m03": {"facts.gasUsed": None, "facts.status": None, "facts.stakingAmount": "0.000000001719251781"},
    "m04": "contract_missing",
    "m05": "contract_unknown",
    "m06": {"facts.amount": "10009.68940745", "facts.unit": "SNT"},
    "m07": "tx_hash_missing",
    "m08": {"facts.to": None, "facts.method": None, "facts.tokenSymbol": None},
    "m09": "tx_hash_missing",
    "m10": "tx_hash_missing",
    "m11": {"facts.blockNumber": 17673467},
    "m12": {"facts.blockNumber": 15366159},
    "m13": {"facts.blockNumber": None, "warns": "block_number"},
    "m14": {"facts.gasUsed": 104464},
    "m15": {"facts.gasUsed": None, "warns": "gas_used"},
    "m16": {"facts.gasUsed": None, "warns": "gas_used"},
    "m17": {"facts.gasUsed": None, "warns": "gas_used"},
    "m18": {"facts.gasUsed": None, "warns": "gas_used"},
    "m19": {"facts.gasUsed": None, "warns": "gas_used"},
    "m20": "block_time_unreadable",
    "m21": {"timeframe.start": datetime(2022, 7, 16, 23, 59, 26, tzinfo=UTC)},
    "m22": {"timeframe.start": datetime(2022, 7, 16, 23, 59, 26, tzinfo=UTC)},
    "m23": "block_time_before_first_block",
    "m24": "block_time_in_future",
    "m25": "block_time_in_future",
    "m26": {"timeframe.start": datetime(2022, 1, 13, 23, 1, 57, tzinfo=UTC), "warns": "createdAt"},
    "m27": {"facts.unit": "SHIB", "facts.amount": "11780776825"},
    "m28": {"facts.method": "nothingToSeeHere_04ikDO9"},
    "m29": "id_not_objectid",
    "m30": {"facts.amount": "0.00000015", "facts.unit": "USDT"},
    "m31": "amount_above_supply",
    "m32": {"facts.amount": "0", "facts.unit": "ETH"},
    "m33": {"facts.amount": "1250000.5", "facts.unit": "USDT"},
    "m34": "amount_ambiguous",
    "m35": "amount_unreadable",
    "m36": {"facts.amount": "0.12345678901234568", "facts.unit": "ETH"},
    "m37": {"facts.amount": str(2**256 - 1), "facts.amountUnlimited": True},
    "m38": "amount_negative",
    "m39": {"facts.method": "commit"},
    "m40": "duplicate_record",
    "m41": {"facts.from": "0xa665db2c90e57485aad058fb245af47361f8df09"},
    "m42": {"facts.from": "0x603136b204592de6bc16d783bfa8ec0f7a526c5f", "facts.status": "failed"},
    "m43": {"facts.from": "0x66a2a9a3bb76cd76dcf443734ea8660e0598f55d"},
    "m44": {"facts.from": None, "warns": "from_address"},
    "m45": {"facts.amount": "10000", "facts.unit": "ETH", "facts.blockNumber": 0},
    "m46": {"facts.status": "success"},
    "m47": {"facts.status": "success"},
    "m48": {"facts.chain": "Ethereum", "chainId": "1", "facts.status": "failed"},
    "m49": {"facts.chain": "Zora"},
    "m50": {"facts.stakingType": "unknown"},
    "m51": {"facts.stakingType": "unknown", "warns": "stakingAnalysis"},
    "m52": {"facts.stakingType": "create_lock"},
    "m53": {"facts.selector": "0x0084a112", "facts.gasUsed": 1919128},
    "m54": {"facts.method": "addLiquidity", "chunks": 20},
    "m55": {"facts.amount": "22.882398084195537802"},
    "m57": {"facts.unit": "🍣"},
    "m58": {"facts.method": "swapExactTokensForTokens", "chunks": 4},
    "m59": {"facts.unit": "USD"},
    "m60": {"facts.unit": "BTC"},
    "m61": {"facts.method": "execute"},
}
#: BSON can't hold it: no MongoDB does, and no run can meet it.
UNSTORABLE = "m56"


class Migrated:
    def __init__(self, pipeline: Pipeline, data: SourceData, messy: list[Record]) -> None:
        self.messy = {row["id"]: row for row in messy if row["storable"] == "ok"}
        self.real = data.some(1_000)
        pipeline.load(data, [*self.real, *(row["doc"] for row in self.messy.values())])
        self.pipeline = pipeline
        self.report = pipeline.migrate(shard_rows=300)
        self.documents: dict[Any, list[Record]] = {}
        for row in pipeline.documents().values():
            self.documents.setdefault(row["sourceId"], []).append(row)
        self.letters = {letter["sourceId"]: letter for letter in pipeline.letters()}

    def outcome(self, name: str) -> str:
        """Return in words what became of a record, for the table."""
        record_id = self.messy[name]["doc"]["_id"]
        if record_id in self.letters:
            letter = self.letters[record_id]
            return f"dead letter {letter['code']}: {letter['reason']}"
        rows = self.documents.get(record_id, [])
        first = min(rows, key=lambda row: row["lineage"]["ordinal"], default=None)
        if first is None:
            return "nothing"
        left_out = f"; {warnings}" if (warnings := first["metadata"]["facts"].get("warnings")) else ""
        return f"{len(rows)} document{'s' * (len(rows) > 1)}: {' '.join(first['content'].split())[:110]}{left_out}"


@pytest.fixture(scope="module")
def migrated(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Migrated]:
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("messy")) as pipeline:
        yield Migrated(pipeline, source_data, read_extended_json(shared_data / "messy.jsonl"))


def fact(document: Record, path: str) -> Any:
    value: Any = document["metadata"]
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def test_the_run_completes_and_every_record_has_one_outcome(migrated: Migrated) -> None:
    report, letters = migrated.report, sum(isinstance(outcome, str) for outcome in OUTCOMES.values())
    assert migrated.messy.keys() == OUTCOMES.keys()
    assert report["read"] == 1_000 + len(OUTCOMES)
    assert report["dead_lettered"] == letters == len(migrated.letters)
    assert report["written"] == 1_000 + len(OUTCOMES) - letters == len(migrated.documents)
    assert {row["_id"] for row in migrated.real} <= migrated.documents.keys()
    lines = [f"| {name} | {row['class']} | {migrated.outcome(name)} |" for name, row in migrated.messy.items()]
    # Shown by ``pytest -s``.
    sys.stdout.write("\n".join(["", "| record | class | outcome |", "|---|---|---|", *lines, ""]))


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_dirty_record_ends_as_it_should(migrated: Migrated, name: str) -> None:
    record, expected = migrated.messy[name]["doc"], OUTCOMES[name]
    letter = migrated.letters.get(record["_id"])
    if isinstance(expected, str):
        assert letter is not None, migrated.outcome(name)
        assert letter["code"] == expected
        assert record["_id"] not in migrated.documents
        assert letter["stage"] == ("chunk" if expected == "duplicate_record" else "extract")
        # In words, and about the value at hand.
        assert len(letter["reason"].split()) >= 5
        assert letter["record"]["_id"] == record["_id"]
        assert letter["status"] == "open"
        return
    assert letter is None, migrated.outcome(name)
    rows = migrated.documents[record["_id"]]
    assert len(rows) >= expected.get("chunks", 1)
    for row in rows:
        assert row["lineage"]["chunks"] == len(rows)
        assert 0 < len(row["content"]) <= 8_000
        assert len(row["summary"]) <= 500
        assert not set(row["content"]) & set("\x00\u202e\u2066\u2069\u200d")
        for path, value in expected.items():
            if path == "warns":
                assert value in fact(row, "facts.warnings")
            elif path != "chunks":
                assert fact(row, path) == value


def test_half_a_character_can_not_even_be_stored_in_a_source(shared_data: Path) -> None:
    (row,) = [row for row in read_extended_json(shared_data / "messy.jsonl") if row["id"] == UNSTORABLE]
    assert row["storable"] == "BSON refuses"
    with pytest.raises((InvalidBSON, InvalidStringData, UnicodeEncodeError)):
        bson.encode(row["doc"])


def test_a_second_run_over_the_dirt_writes_nothing_and_refuses_the_same_records(migrated: Migrated) -> None:
    report = migrated.pipeline.migrate(shard_rows=300)
    assert (report["written"], report["embedded"], report["removed"]) == (0, 0, 0)
    assert report["refused"] == migrated.report["refused"]
    again = {letter["sourceId"]: letter for letter in migrated.pipeline.letters()}
    assert again.keys() == migrated.letters.keys()
    assert {letter["attempts"] for letter in again.values()} == {2}
    first_seen = {key: letter["firstSeen"] for key, letter in migrated.letters.items()}
    assert {key: letter["firstSeen"] for key, letter in again.items()} == first_seen
