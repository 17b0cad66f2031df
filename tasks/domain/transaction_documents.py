"""What a transaction is described as: the text that it is found by, and the facts that an answer cites.

The text is written for search and for token cost. It says what happened, who did it, how much, where, when and
whether it failed, in words; an ordinary one stays within 80 tokens. Hashes, call data and full addresses stand in
the facts: in a text they cost three times the tokens and find nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from bson import ObjectId

from tasks.domain import actions
from tasks.domain.actions import Action, find_action
from tasks.domain.amounts import readable
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.owners import ESCROW, Contract, Owners
from tasks.domain.sources import Criteria, Record, Source
from tasks.domain.texts import split_words
from tasks.domain.transactions import (
    FAILED,
    PENDING,
    SET_APPROVAL_FOR_ALL,
    SUCCESS,
    Transaction,
    parse_block_time,
    parse_transaction,
)

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record: the next run
#: then writes what differs, and embeds only the texts that really changed.
DESCRIBER_VERSION = 3

#: A name longer than this is a text, not a name: it goes to the end, where the splitter cuts it.
MAX_NAME_CHARS = 80
_ZERO_ADDRESS = "0x" + "0" * 40
#: Spelt out, because strftime follows the machine's language.
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_ADDRESS_IN_NAME = re.compile(r"\s*\(?\b0x[0-9a-fA-F]+(?:…|\.\.\.)[0-9a-fA-F]*\)?")
_UNLABELLED = re.compile(r"^unlabell?ed contract\b", re.IGNORECASE)


def describe_transaction(transaction: Transaction) -> Document:
    """Return the document of a transaction. Pure: the same transaction gives the same document, to the byte."""
    action = find_transaction_action(transaction)
    place = _place(transaction)
    quantity = _quantity(transaction)
    when = _moment(transaction.block_time_ms)
    metadata: dict[str, Any] = {}
    if when is not None:
        metadata["timeframe"] = {"start": when, "end": when}
    metadata["dataType"] = "transaction"
    metadata["tags"] = _tags(transaction, action)
    metadata["category"] = action.category
    if transaction.chain_id is not None:
        metadata["chainId"] = str(transaction.chain_id)
    if transaction.contract_address:
        metadata["contractAddress"] = transaction.contract_address
    metadata["importance"] = _importance(transaction, action)
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = _confidence(transaction)
    metadata["facts"] = _facts(transaction)
    return Document(
        source_type="transaction",
        source_id=transaction.record_id,
        key=make_key("transaction", transaction.contract_id, transaction.tx_hash),
        holder_id=transaction.contract_id,
        team_id=transaction.team_id,
        site_id=transaction.site_id,
        content=_content(transaction, action, place, quantity, when),
        summary=_summary(transaction, action, place, quantity, when),
        metadata=metadata,
    )


def find_transaction_action(transaction: Transaction) -> Action:
    """Return what a transaction did: its words, and its category, by which figures count it."""
    if transaction.creates_contract:
        return actions.DEPLOYED
    if transaction.is_transfer:
        if transaction.from_address == _ZERO_ADDRESS:
            return actions.TOKEN_MINT
        if transaction.to_address == _ZERO_ADDRESS:
            return actions.TOKEN_BURN
        if transaction.method is None or transaction.method.lower().startswith("transfer"):
            return actions.TOKEN_TRANSFER
    if transaction.moves_coin and transaction.method is None:
        return actions.NATIVE_TRANSFER
    if transaction.method is not None:
        return find_action(transaction.method, transaction.contract_name)
    if transaction.allowance is not None:
        # The call data is an approval's, whether or not the record names the method.
        return find_action("setApprovalForAll" if transaction.selector == SET_APPROVAL_FOR_ALL else "approve", None)
    if transaction.selector is None and transaction.amount not in (None, "0"):
        return actions.NATIVE_TRANSFER
    return actions.UNNAMED


@lru_cache(maxsize=65_536)
def shown_name(name: str | None) -> str | None:
    """Return a contract's name without the address that labellers append; None where it has no name."""
    if not name or is_unlabelled(name):
        return None
    return _ADDRESS_IN_NAME.sub("", name).strip()[:MAX_NAME_CHARS] or None


def is_unlabelled(name: str) -> bool:
    """Return whether a contract's name only says that nobody named it."""
    return _UNLABELLED.match(name) is not None


def _place(transaction: Transaction) -> str:
    name = shown_name(transaction.contract_name)
    kind = "staking contract" if transaction.contract_type == ESCROW else None
    if name is None:
        name = f"an unlabelled {kind or 'contract'}"
    elif kind:
        name = f"{name} ({kind})"
    return f"{name} on {transaction.chain}" if transaction.chain else name


def _quantity(transaction: Transaction) -> str:
    """Return the amount with its unit, or nothing where there is none to tell."""
    if transaction.staking_amount is not None:
        return f"{readable(Decimal(transaction.staking_amount))} tokens"
    moves = transaction.is_transfer or transaction.moves_coin
    if transaction.amount is None or (transaction.amount == "0" and not moves):
        return ""
    unit = transaction.unit or "units"
    sign = "less than " if transaction.amount_below else ""
    return f"{sign}{readable(Decimal(transaction.amount))} {unit[:MAX_NAME_CHARS]}"


def _content(transaction: Transaction, action: Action, place: str, quantity: str, when: datetime | None) -> str:
    parts = [action.phrase]
    if action.category == "approval" and transaction.allowance == "unlimited":
        parts[0] = "Unlimited " + parts[0][0].lower() + parts[0][1:]
    elif action.category == "approval" and transaction.allowance == "revoked":
        parts[0] += ", revoked"
    if quantity:
        parts.append(f", {quantity}" if ":" in action.phrase else f": {quantity}")
    parts.append(f", {place}")
    if transaction.method and action is not actions.TOKEN_TRANSFER:
        words = split_words(transaction.method)
        said = action.phrase.lower()
        # Five letters are the stem of most verbs: "approve" is said by "approval", "swap" by "swapped".
        if not all(word[:5] in said for word in words.split()):
            parts.append(f", method {words[:60]}")
    parts.append(".")
    token = transaction.token_name
    long_name = token if token and len(token) > MAX_NAME_CHARS else None
    if token and not long_name and not (transaction.contract_name or "").startswith(token):
        symbol = transaction.token_symbol
        parts.append(f" Token {token}{f' ({symbol[:MAX_NAME_CHARS]})' if symbol and symbol != token else ''}.")
    if when is not None:
        parts.append(f" {when.day} {_MONTHS[when.month - 1]} {when.year}.")
    if transaction.staking_lock_days is not None:
        parts.append(f" Lock of {transaction.staking_lock_days} days.")
    if transaction.from_address and transaction.from_address != _ZERO_ADDRESS:
        parts.append(f" By wallet {transaction.from_address[:8]}.")
    if transaction.status == FAILED:
        # In front, because it turns the meaning of all that follows.
        parts[0] = f"Failed (reverted): {parts[0]}"
    elif transaction.status == SUCCESS:
        parts.append(" Succeeded.")
    elif transaction.status == PENDING:
        parts.append(" Pending.")
    if long_name:
        parts.append(f" Token name: {long_name}")
    return "".join(parts)


def _summary(transaction: Transaction, action: Action, place: str, quantity: str, when: datetime | None) -> str:
    parts = [
        action.phrase.partition(":")[0],
        quantity,
        place,
        f"{when.year}-{when.month:02}-{when.day:02} {when.hour:02}:{when.minute:02} UTC" if when else "",
        transaction.status or "",
    ]
    return " · ".join(part for part in parts if part)[:MAX_SUMMARY_CHARS]


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _tags(transaction: Transaction, action: Action) -> list[str]:
    words = (
        action.category,
        transaction.chain,
        transaction.status,
        transaction.method,
        transaction.unit,
        transaction.staking_type,
        "staking" if transaction.contract_type == ESCROW else None,
    )
    return list(dict.fromkeys(word[:MAX_NAME_CHARS].lower() for word in words if word))


def _importance(transaction: Transaction, action: Action) -> int:
    """Return 1 to 10. Five is an ordinary row; what an analyst asks about is above, routine calls below.

    The size bands are the ones that CQ Intelligence shows (<0.1, 0.1-1, 1-10, >10); they say something only about
    a chain's own coin, since a token's figure means nothing without its price.
    """
    importance = 5
    if action.category in ("staking", "governance", "deployment", "bridge"):
        importance += 2
    elif action.category in ("oracle", "approval", "relay", "admin"):
        importance -= 2
    if transaction.status == FAILED:
        importance += 1
    if transaction.amount and not transaction.is_transfer and transaction.unit in ("ETH", "BNB", "MATIC"):
        amount = Decimal(transaction.amount)
        importance += 2 if amount > 10 else 1 if amount > 1 else 0
    return max(1, min(10, importance))


def _confidence(transaction: Transaction) -> float:
    """Return 0 to 1: staking calls carry their own; every warning takes a tenth, down to a half."""
    confidence = 1.0 if transaction.staking_confidence is None else transaction.staking_confidence
    if transaction.warnings:
        confidence = max(0.5, confidence - 0.1 * (transaction.warnings.count(";") + 1))
    return round(confidence, 2)


def _facts(transaction: Transaction) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    facts: dict[str, Any] = {
        "txHash": transaction.tx_hash,
        "contractId": transaction.contract_id,
        "contractName": transaction.contract_name,
        "chain": transaction.chain,
        "blockNumber": transaction.block_number,
        "from": transaction.from_address,
        "to": transaction.to_address,
        "method": transaction.method,
        "selector": transaction.selector,
        "amount": transaction.amount,
        "amountBelow": transaction.amount_below or None,
        "amountUnlimited": transaction.amount_unlimited or None,
        "unit": transaction.unit[:200] if transaction.unit else None,
        "tokenSymbol": transaction.token_symbol[:200] if transaction.token_symbol else None,
        "status": transaction.status,
        "gasUsed": transaction.gas_used,
        "callDataBytes": transaction.call_data_bytes,
        "allowance": transaction.allowance,
        "stakingType": transaction.staking_type,
        "stakingAmount": transaction.staking_amount,
        "unlockTime": _moment(transaction.staking_unlock_s * 1000) if transaction.staking_unlock_s else None,
        "lockDays": transaction.staking_lock_days,
        "warnings": transaction.warnings or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _find_holder(record: Record, owners: Owners) -> Contract:
    return owners.find(record.get("contractId"), record.get("contract"))


def _describe(record: Record, owners: Owners, now_ms: int) -> Document:
    return describe_transaction(parse_transaction(record, owners, now_ms=now_ms))


def _of_contracts(owners: Owners, team_ids: Collection[str], holder_ids: Collection[str]) -> Criteria:
    """Return the filter of transactions by either way in which they name their contract."""
    chosen = [
        (object_id, contract.contract_id)
        for object_id, contract in owners.by_object_id.items()
        if (not team_ids or contract.team_id in team_ids) and (not holder_ids or contract.contract_id in holder_ids)
    ]
    return {
        "$or": [
            {"contractId": {"$in": [contract_id for _, contract_id in chosen]}},
            {"contract": {"$in": [ObjectId(object_id) for object_id, _ in chosen]}},
            {"contract": {"$in": [object_id for object_id, _ in chosen]}},
        ]
    }


TRANSACTIONS = Source(
    name="transaction",
    source_type="transaction",
    collection="transactions",
    fields=(
        "contract",
        "contractId",
        "tx_hash",
        "block_number",
        "block_time",
        "chain",
        "from_address",
        "to_address",
        "contract_address",
        "gas_used",
        "status",
        "token_name",
        "token_symbol",
        "tx_type",
        "value_eth",
        "method_name",
        "method_signature",
        "functionName",
        "input",
        "createdAt",
        "stakingAnalysis",
    ),
    version=DESCRIBER_VERSION,
    find_holder=_find_holder,
    describe=_describe,
    time_field="block_time",
    read_time=lambda record: parse_block_time(record.get("block_time")),
    owned_by=_of_contracts,
    columns=Columns(
        time_ms="time_ms",
        amount="amount",
        unit="unit",
        figures=("gasUsed",),
        kinds=("status", "chain", "category"),
        sender="from",
        recipient="to",
        contract="contractAddress",
        warnings="warnings",
        required=("chain", "from", "to", "time_ms", "amount"),
        optional=("status", "gasUsed", "method"),
        formats={"from": "0x[0-9a-f]{40}", "to": "0x[0-9a-f]{40}"},
        # No transaction ever moved as much: a tenth of all there is, or more.
        ceilings={"ETH": 1e7, "BNB": 1e8, "MATIC": 1e10, "USDT": 1e12, "USDC": 1e12},
    ),
)
