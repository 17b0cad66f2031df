"""Smart contract: a record of the source's ``smartcontracts``, which a team added to have its transactions imported.

``stakingDetails`` are left out: the application fills them with the defaults of its schema (a lock of 0 days, an APY
of 0), and nobody sets them. What a lock really is, is in the transactions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.domain.chains import find_chain
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import as_datetime, confidence_of, read_count, read_moment_ms, read_time_ms
from tasks.domain.owners import ESCROW, MAIN, Contract, Owners
from tasks.domain.personal import EARLIEST_MS, FUTURE_TOLERANCE_MS
from tasks.domain.sources import Criteria, Record, Source
from tasks.domain.wallets import parse_address
from tasks.domain.websites import MAX_FACT_CHARS, MAX_NAME_CHARS, one_line, read_record_id, shown_day, warn_unless_text

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1
_SHORT_ADDRESS = re.compile(r"\s*\(?\b0x[0-9a-fA-F]+(?:…|\.\.\.)?[0-9a-fA-F]*\)?")
_UNLABELLED = re.compile(r"^unlabell?ed contract\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SmartContract:
    """One tracked contract with its owner. Times are epoch milliseconds, UTC.

    ``created_ms`` is when the team added it, not when it was deployed. ``site_id`` is the team's only website, or the
    scope of the whole team.
    """

    record_id: str
    contract_id: str
    team_id: str
    site_id: str
    name: str | None
    symbol: str | None
    address: str | None
    chain: str | None
    chain_id: int | None
    type: str
    verified: bool | None
    last_block: int | None
    created_ms: int | None
    updated_ms: int | None
    warnings: tuple[str, ...]


def parse_smart_contract(record: Mapping[str, Any], owners: Owners, *, now_ms: int) -> SmartContract:
    """Return the contract of a record. ``now_ms`` bounds its times; it is the start of the run.

    Raises ``RecordError`` where its identity or its owner can't be told. An address without all its digits is left out:
    padding it would name another contract.
    """
    get = record.get
    warnings: list[str] = []
    record_id = read_record_id(record)
    contract = owners.find(get("contractId"), None)
    if contract.team_id is None or contract.site_id is None:
        raise RecordError("owner_missing", f"smart contract {contract.contract_id} has no team")
    raw_address = get("address")
    address = parse_address(raw_address)
    if address is None and raw_address is not None and raw_address != "":
        warnings.append("address is not 0x and 40 hexadecimal digits, and is left out")
    kind = get("contractType")
    if kind not in (None, "", MAIN, ESCROW):
        warnings.append("contractType is neither main nor escrow, and is taken for main")
    verified = get("verified")
    if verified is not None and not isinstance(verified, bool):
        warnings.append(f"verified of type {type(verified).__name__} left out")
        verified = None
    warn_unless_text(record, ("name", "tokenSymbol"), warnings)
    chain = find_chain(get("blockchain"))
    bounds = {"earliest_ms": EARLIEST_MS, "latest_ms": now_ms + FUTURE_TOLERANCE_MS}
    created_ms = read_time_ms(get("createdAt"), "createdAt", warnings, **bounds)
    updated_ms = read_time_ms(get("lastUpdated"), "lastUpdated", warnings, **bounds)
    if created_ms is not None and updated_ms is not None and updated_ms < created_ms:
        warnings.append("lastUpdated lies before createdAt and is left out")
        updated_ms = None
    return SmartContract(
        record_id=str(record_id),
        contract_id=contract.contract_id,
        team_id=contract.team_id,
        site_id=contract.site_id,
        name=one_line(get("name")),
        symbol=one_line(get("tokenSymbol")),
        address=address,
        chain=chain.name if chain else None,
        chain_id=chain.chain_id if chain else None,
        type=ESCROW if kind == ESCROW else MAIN,
        verified=verified,
        last_block=read_count(get("lastBlock"), "lastBlock", warnings),
        created_ms=created_ms,
        updated_ms=updated_ms,
        warnings=tuple(warnings),
    )


def describe_smart_contract(contract: SmartContract) -> Document:
    """Return the document of a contract. Pure: the same contract gives the same document, to the byte."""
    name = shown_contract(contract.name)
    place = f"{name or 'an unlabelled contract'}{f' on {contract.chain}' if contract.chain else ''}"
    kind = "Staking (vote-escrow) contract" if contract.type == ESCROW else "Smart contract"
    parts = [f"{kind} {place}"]
    symbol = shown_contract(contract.symbol)
    if symbol:
        parts.append(f", token symbol {symbol}")
    if contract.verified is not None:
        parts.append(", verified" if contract.verified else ", not verified")
    created = None if contract.created_ms is None else as_datetime(contract.created_ms)
    if created is not None:
        parts.append(f", tracked since {shown_day(created)}")
    parts.append(".")
    if contract.address:
        parts.append(f" Address begins with {contract.address[:8]}.")
    updated = None if contract.updated_ms is None else as_datetime(contract.updated_ms)
    metadata: dict[str, Any] = {}
    if created is not None:
        metadata["timeframe"] = {"start": created, "end": updated or created}
    metadata["dataType"] = "insight"
    metadata["tags"] = _tags(contract, symbol)
    metadata["category"] = "contract"
    if contract.chain_id is not None:
        metadata["chainId"] = str(contract.chain_id)
    if contract.address:
        metadata["contractAddress"] = contract.address
    metadata["importance"] = 6 if contract.type == ESCROW else 5
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = confidence_of(contract.warnings)
    facts: dict[str, Any] = {
        "contractId": contract.contract_id,
        "name": contract.name[:MAX_FACT_CHARS] if contract.name else None,
        "tokenSymbol": contract.symbol[:MAX_FACT_CHARS] if contract.symbol else None,
        "address": contract.address,
        "chain": contract.chain,
        "contractType": contract.type,
        "verified": contract.verified,
        "lastBlock": contract.last_block,
        "createdAt": created,
        "lastUpdated": updated,
        "warnings": "; ".join(contract.warnings) or None,
    }
    metadata["facts"] = {name: value for name, value in facts.items() if value is not None}
    return Document(
        source_type="smart_contract",
        source_id=contract.record_id,
        key=make_key("smart_contract", contract.contract_id),
        holder_id=contract.contract_id,
        team_id=contract.team_id,
        site_id=contract.site_id,
        content="".join(parts),
        summary=" · ".join(filter(None, (kind, place, symbol)))[:MAX_SUMMARY_CHARS],
        metadata=metadata,
    )


def shown_contract(name: str | None) -> str | None:
    """Return a contract's name (or symbol) without the address that labellers append; None where nothing is left."""
    if not name or _UNLABELLED.match(name):
        return None
    return _SHORT_ADDRESS.sub("", name).strip()[:MAX_NAME_CHARS] or None


def _tags(contract: SmartContract, symbol: str | None) -> list[str]:
    words = (
        "smart contract",
        "staking" if contract.type == ESCROW else None,
        contract.chain,
        symbol,
        {True: "verified", False: "not verified", None: None}[contract.verified],
    )
    return list(dict.fromkeys(word[:MAX_NAME_CHARS].lower() for word in words if word))


def _find_holder(record: Record, owners: Owners) -> Contract:
    return owners.find(record.get("contractId"), None)


def _describe(record: Record, owners: Owners, now_ms: int) -> Document:
    return describe_smart_contract(parse_smart_contract(record, owners, now_ms=now_ms))


def _of_contracts(owners: Owners, team_ids: Collection[str], holder_ids: Collection[str]) -> Criteria:
    """Return the filter of the contracts of these teams, among these ids; empty collections mean all."""
    chosen = [
        contract.contract_id
        for contract in owners.by_contract_id.values()
        if (not team_ids or contract.team_id in team_ids) and (not holder_ids or contract.contract_id in holder_ids)
    ]
    return {"contractId": {"$in": chosen}}


SMART_CONTRACTS = Source(
    name="smart_contract",
    source_type="smart_contract",
    collection="smartcontracts",
    fields=(
        "contractId",
        "address",
        "name",
        "blockchain",
        "tokenSymbol",
        "contractType",
        "verified",
        "lastBlock",
        "createdAt",
        "lastUpdated",
    ),
    version=DESCRIBER_VERSION,
    find_holder=_find_holder,
    describe=_describe,
    time_field="createdAt",
    read_time=lambda record: read_moment_ms(record.get("createdAt")),
    owned_by=_of_contracts,
    columns=Columns(
        kinds=("chain", "contractType"),
        warnings="warnings",
        required=("address", "chain"),
        formats={"address": "0x[0-9a-f]{40}"},
    ),
)
