"""Source digests: equal where the same rows would come out, different where anything that decides them is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain import digests
from tasks.domain.chains import find_chain
from tasks.domain.chunks import ChunkSize
from tasks.domain.digests import SourceDigests, UnchangedRecord, count_unchanged
from tasks.domain.owners import Contract, Owners
from tasks.domain.sources import Source
from tasks.domain.tables import to_table
from tasks.domain.transaction_documents import TRANSACTIONS
from tasks.domain.vectors import EmbedderFacts
from tests.builders import (
    ESCROW_ID,
    OTHER_TEAM_ID,
    SITE_ID,
    TEAM_ID,
    TOKEN_ID,
    make_contract,
    make_owners,
    make_record,
)

ROOT = Path(__file__).resolve().parents[2]
FACTS = EmbedderFacts("model", 4, "document", 100, 2_048)
SIZE = ChunkSize()
RAW = bson.encode(make_record())


def contract_of(contract_id: str = TOKEN_ID, owners: Owners | None = None) -> Contract:
    return (owners or make_owners()).find(contract_id, None)


def digest(
    raw: bytes = RAW,
    contract: Contract | None = None,
    *,
    source: Source = TRANSACTIONS,
    facts: EmbedderFacts = FACTS,
    size: ChunkSize = SIZE,
) -> bytes:
    return SourceDigests(source, facts, size).digest(raw, contract or contract_of())


# -- the record --------------------------------------------------------------------------------------------


@given(position=st.integers(0, len(RAW) - 1), change=st.integers(1, 255))
def test_any_other_byte_of_the_record_gives_another_digest(position: int, change: int) -> None:
    other = bytearray(RAW)
    other[position] ^= change
    assert digest(bytes(other)) != digest()


@pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b"\x00", RAW + RAW], ids=["none", "less", "more", "twice"])
def test_a_record_of_another_length_gives_another_digest(raw: bytes) -> None:
    assert digest(raw) != digest()


@pytest.mark.parametrize("name", [name for name in make_record() if name != "_id"])
def test_a_record_without_one_of_its_fields_gives_another_digest(name: str) -> None:
    left = {key: value for key, value in make_record().items() if key != name}
    assert digest(bson.encode(left)) != digest()


def test_the_same_value_in_another_form_gives_another_digest() -> None:
    forms: list[Any] = ["12.5", 12.5, "12.50", b"12.5"]
    assert len({digest(bson.encode(make_record(value_eth=form))) for form in forms}) == len(forms)


# -- its owner ---------------------------------------------------------------------------------------------

CHANGED_CONTRACT: dict[str, Any] = {
    "contract_id": ESCROW_ID,
    "name": "Another",
    "symbol": None,
    "type": "escrow",
    "chain": find_chain("Base"),
    "team_id": str(OTHER_TEAM_ID),
    "site_id": "another-site",
}


def test_every_field_that_a_transaction_inherits_is_tried() -> None:
    # Whoever has an owner has no reason for having none.
    assert CHANGED_CONTRACT.keys() == {field.name for field in fields(Contract)} - {"owner_error"}


@pytest.mark.parametrize("name", sorted(CHANGED_CONTRACT))
def test_another_contract_gives_another_digest(name: str) -> None:
    contract = contract_of()
    changed = replace(contract, **{name: CHANGED_CONTRACT[name]})
    assert changed != contract
    assert digest(contract=changed) != digest(contract=contract)


def owners_of(*, sites: tuple[str, ...] = (SITE_ID,), **changes: Any) -> Owners:
    """Return one contract, its team with these sites, and another team without any."""
    teams = [{"_id": TEAM_ID}, {"_id": OTHER_TEAM_ID}]
    websites = [{"_id": site_id, "siteId": site_id, "team": TEAM_ID} for site_id in sites]
    return Owners.from_records([make_contract(**changes)], teams, websites)


@pytest.mark.parametrize(
    ("sites", "changes"),
    [
        ((SITE_ID,), {"team": OTHER_TEAM_ID}),
        ((SITE_ID,), {"name": "Renamed"}),
        ((SITE_ID,), {"tokenSymbol": "RNMD"}),
        ((SITE_ID,), {"contractType": "escrow"}),
        ((SITE_ID,), {"blockchain": "Base"}),
        ((), {}),
        (("another-site",), {}),
        ((SITE_ID, "another-site"), {}),
    ],
    ids=["team", "name", "symbol", "type", "chain", "no site", "another site", "two sites"],
)
def test_what_changes_in_the_sources_owners_changes_the_digest(sites: tuple[str, ...], changes: dict[str, Any]) -> None:
    assert digest(contract=contract_of(owners=owners_of(sites=sites, **changes))) != digest(
        contract=contract_of(owners=owners_of())
    )


def test_what_no_transaction_inherits_changes_nothing() -> None:
    changed = owners_of(verified=False, lastBlock=17, address="0x" + "0" * 40)
    assert digest(contract=contract_of(owners=changed)) == digest(contract=contract_of(owners=owners_of()))


def test_contracts_are_told_apart_however_short_they_live() -> None:
    many = SourceDigests(TRANSACTIONS, FACTS, SIZE)
    contract = contract_of()
    # Each is made, asked with and dropped: another one may get its place in memory.
    found = [many.digest(RAW, replace(contract, name=f"name {number}")) for number in range(500)]
    assert len(set(found)) == 500
    assert found == [digest(contract=replace(contract, name=f"name {number}")) for number in range(500)]


# -- the code and the model between them -------------------------------------------------------------------


def test_another_version_of_the_chunker_gives_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr(digests, "CHUNKER_VERSION", digests.CHUNKER_VERSION + 1)
    assert digest() != before


@pytest.mark.parametrize(
    "other",
    [
        lambda: digest(source=replace(TRANSACTIONS, name="session")),
        lambda: digest(source=replace(TRANSACTIONS, version=TRANSACTIONS.version + 1)),
        lambda: digest(facts=replace(FACTS, model="other")),
        lambda: digest(facts=replace(FACTS, dimensions=8)),
        lambda: digest(facts=replace(FACTS, task="query")),
        lambda: digest(size=replace(SIZE, size_tokens=SIZE.size_tokens + 1)),
        lambda: digest(size=replace(SIZE, overlap_tokens=SIZE.overlap_tokens + 1)),
        lambda: digest(size=replace(SIZE, whole_tokens=SIZE.whole_tokens + 1)),
    ],
    ids=["source", "describer", "model", "dimensions", "task", "size", "overlap", "whole"],
)
def test_another_source_model_or_chunk_size_gives_another_digest(other: Callable[[], bytes]) -> None:
    assert other() != digest()


def test_a_price_a_quota_or_a_size_of_requests_changes_nothing() -> None:
    other = replace(
        FACTS,
        max_texts_per_request=1,
        max_tokens_per_request=7,
        texts_per_minute=5,
        tokens_per_minute=9,
        texts_per_day=3,
        usd_per_day=2.0,
        usd_per_million_tokens=9.0,
    )
    assert digest(facts=other) == digest()


# -- equal otherwise ---------------------------------------------------------------------------------------


def test_the_same_record_under_equal_owners_gives_the_same_sixteen_bytes() -> None:
    one, two = contract_of(), contract_of()
    assert one is not two
    assert digest(contract=one) == digest(contract=two)
    assert len(digest()) == 16
    many = SourceDigests(TRANSACTIONS, FACTS, SIZE)
    assert many.digest(RAW, one) == many.digest(RAW, one) == digest()


def test_every_process_finds_the_same_digest() -> None:
    ask = "from tests.unit.test_digests import digest; print(digest().hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", ask],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest().hex()}


# -- the accounts ------------------------------------------------------------------------------------------


def test_unchanged_records_are_counted_by_team_contract_and_number_of_chunks() -> None:
    records = [
        UnchangedRecord(bytes([number]) * 12, team_id, contract_id, chunks)
        for number, (team_id, contract_id, chunks) in enumerate(
            [("one", "a", 1), ("one", "a", 1), ("one", "a", 3), ("one", "b", 1), ("two", "c", 1), (None, "d", 2)]
        )
    ]
    assert count_unchanged(to_table(UnchangedRecord, records)) == {
        ("one", "a", 1): 2,
        ("one", "a", 3): 1,
        ("one", "b", 1): 1,
        ("two", "c", 1): 1,
        (None, "d", 2): 1,
    }
    assert count_unchanged(to_table(UnchangedRecord, [])) == {}
