"""Transaction: a record of the source's ``transactions``, parsed once at the edge.

What is refused and what is mended follows one rule. Identity, owner, time and amount decide what an answer says:
a value there that can't be read refuses the record (a dead letter with its reason). Everything else only adds to
the picture: a bad value there is left out, named in ``warnings``, and the record goes on. Missing is never bad.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson import Code, ObjectId
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128

from tasks.domain.amounts import EXACT, TOKEN_STANDARDS, parse_amount, plain
from tasks.domain.chains import find_chain
from tasks.domain.errors import RecordError
from tasks.domain.owners import ESCROW, Owners
from tasks.domain.staking import find_staking
from tasks.domain.texts import clean_name

SUCCESS, FAILED, PENDING = "success", "failed", "pending"

#: The first block of the oldest chain that is tracked (Ethereum, 30 July 2015, 15:26:13 UTC).
FIRST_BLOCK_MS = 1_438_269_973_000
#: A block later than this after "now" is a wrong clock or a wrong unit, not a transaction.
FUTURE_TOLERANCE_MS = 86_400_000
#: Producers that wrote "now" into block_time did so within seconds of createdAt.
SUSPECT_TIME_MS = 5_000
#: No tracked chain has issued more of its own coin; Polygon, with ten thousand million, comes nearest.
MAX_COINS = 10**11
_MS_PER_S = 1000
_LARGEST_SECONDS = 10_000_000_000  # the year 2286; a larger number is milliseconds
_LONGEST_EPOCH = 18  # digits; milliseconds of the year 9999 have 15
_MAX_INT64 = 2**63 - 1
_ZERO_ADDRESS = "0x" + "0" * 40

_HASH = re.compile(r"0x[0-9a-f]{64}")
_GENESIS_HASH = re.compile(r"GENESIS_(?:0x)?[0-9a-fA-F]{40}")
_WHOLE_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_HEX_ADDRESS = re.compile(r"(?:0x)?([0-9a-f]{1,40})")
_SELECTOR = re.compile(r"0x[0-9a-f]{8}")
_METHOD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,120}")
_STATUS = {
    "success": SUCCESS,
    "ok": SUCCESS,
    "1": SUCCESS,
    "0x1": SUCCESS,
    "true": SUCCESS,
    "failed": FAILED,
    "fail": FAILED,
    "reverted": FAILED,
    "error": FAILED,
    "0": FAILED,
    "0x0": FAILED,
    "false": FAILED,
    "pending": PENDING,
}
_NO_STATUS = frozenset({"", "unknown", "null", "none"})
APPROVE = "0x095ea7b3"
SET_APPROVAL_FOR_ALL = "0xa22cb465"


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction under one tracked contract, with its owner. Times are epoch milliseconds, UTC.

    Decimals travel as text, because a shard file has no column type that holds every uint256 with its scale.
    ``unit`` is the symbol that ``amount`` counts; figures of two units are never added. ``is_transfer`` means that
    a token moved, ``moves_coin`` a plain payment in the chain's coin. ``allowance`` says what an approval granted
    (unlimited, limited, revoked). ``warnings`` names what was left out and why.
    """

    record_id: str
    contract_id: str
    team_id: str
    site_id: str
    tx_hash: str
    chain: str | None
    chain_id: int | None
    block_number: int | None
    block_time_ms: int | None
    created_ms: int | None
    from_address: str | None
    to_address: str | None
    contract_address: str | None
    contract_name: str | None
    contract_type: str
    creates_contract: bool
    method: str | None
    selector: str | None
    amount: str | None
    amount_below: bool
    amount_unlimited: bool
    unit: str | None
    token_name: str | None
    token_symbol: str | None
    is_transfer: bool
    moves_coin: bool
    allowance: str | None
    status: str | None
    gas_used: int | None
    call_data_bytes: int | None
    staking_type: str | None
    staking_amount: str | None
    staking_unlock_s: int | None
    staking_lock_days: int | None
    staking_confidence: float | None
    warnings: str

    @property
    def natural_key(self) -> str:
        """Return what makes it this transaction and no other: a hash repeats legally under other contracts."""
        return f"{self.contract_id}:{self.tx_hash}"


def parse_transaction(record: Mapping[str, Any], owners: Owners, *, now_ms: int) -> Transaction:
    """Return the transaction of a record. ``now_ms`` bounds block times; it is the start of the run.

    Raises ``RecordError``, whose reason goes into a dead letter, where identity, owner, time or amount is
    missing or can't be read.
    """

    def get(name: str) -> Any:
        value = record.get(name)
        # BSON's code is a kind of str that no table can be looked up by.
        return value if type(value) is not Code else str(value)

    warnings: list[str] = []
    record_id = record["_id"]
    if not isinstance(record_id, ObjectId):
        raise RecordError(
            "id_not_objectid",
            f"_id is {type(record_id).__name__} {str(record_id)[:60]!r}: a vector document refers to an ObjectId",
        )
    tx_hash = _tx_hash(get("tx_hash"))
    contract = owners.find(get("contractId"), get("contract"))
    if contract.team_id is None or contract.site_id is None:
        raise RecordError("owner_missing", f"smart contract {contract.contract_id} has no team")
    block_time_ms = _block_time(get("block_time"), now_ms)
    created = get("createdAt")
    created_ms = None if created is None or created == "" else _milliseconds(created)
    if created_ms is None or not -_MAX_INT64 < created_ms < _MAX_INT64:
        created_ms = None
        if created is not None and created != "":
            _warn("createdAt", created, warnings)
    if block_time_ms is not None and created_ms is not None:
        if created_ms < block_time_ms:
            warnings.append("createdAt lies before block_time")
        elif created_ms - block_time_ms < SUSPECT_TIME_MS:
            warnings.append("block_time may be the time of import")

    chain = find_chain(get("chain")) or contract.chain
    symbol = clean_name(get("token_symbol"))
    tx_type = get("tx_type")
    tx_type = tx_type.strip() if isinstance(tx_type, str) else ""
    call_data, no_call_data = _call_data(get("input"))
    selector = call_data[:10].lower() if call_data is not None else _selector(get("method_signature"))
    method = _method(get("method_name"), get("functionName"))

    amount = parse_amount(get("value_eth"))
    token_name = clean_name(get("token_name"))
    coin = chain.coin if chain else None
    # Explorers name the token in front ("USDT Transfer"); a bare "Transfer" moves a token only if one is named.
    is_transfer = tx_type.endswith(" Transfer") or (
        tx_type == "Transfer" and (symbol is not None or token_name is not None or call_data is not None)
    )
    unit = None
    if amount is not None:
        # Contracts that are no tokens carry the chain's coin as their symbol.
        contract_token = contract.symbol if contract.symbol != coin else None
        if amount.unit is not None and amount.unit.upper() not in TOKEN_STANDARDS:
            unit = clean_name(amount.unit)
        elif amount.unit is not None:
            unit = symbol or contract_token or clean_name(amount.unit)
        elif is_transfer:
            unit = symbol or _named_token(tx_type) or token_name or contract_token
        elif symbol and call_data is None and selector is None and not no_call_data:
            # A row that has no field for call data comes from an event log: its amount is in the token it names.
            unit = symbol
        else:
            unit = coin
        if unit is not None and unit == coin and not is_transfer and amount.value > MAX_COINS:
            raise RecordError(
                "amount_above_supply",
                f"value_eth {plain(amount.value)[:60]} is more {coin} than exist: call data may have inflated it",
            )

    escrow = contract.type == ESCROW
    staking = (
        find_staking(selector=selector, method=method, call_data=call_data, block_time_ms=block_time_ms)
        if escrow
        else None
    )
    if not isinstance(get("stakingAnalysis"), Mapping | None):
        warnings.append("stakingAnalysis is not a document")
    creates = tx_type == "Contract Creation"
    return Transaction(
        record_id=str(record_id),
        contract_id=contract.contract_id,
        team_id=contract.team_id,
        site_id=contract.site_id,
        tx_hash=tx_hash,
        chain=chain.name if chain else None,
        chain_id=chain.chain_id if chain else None,
        block_number=_whole(get("block_number"), "block_number", warnings),
        block_time_ms=block_time_ms,
        created_ms=created_ms,
        from_address=_address(get("from_address"), "from_address", warnings),
        to_address=_address(get("to_address"), "to_address", warnings),
        contract_address=_address(get("contract_address"), "contract_address", warnings),
        contract_name=contract.name,
        contract_type=contract.type,
        creates_contract=creates,
        method=method,
        selector=selector,
        amount=plain(amount.value) if amount is not None else None,
        amount_below=amount is not None and amount.below,
        amount_unlimited=amount is not None and amount.unlimited,
        unit=unit,
        token_name=token_name,
        token_symbol=symbol,
        is_transfer=is_transfer,
        moves_coin=tx_type == "Transfer" and not is_transfer,
        allowance=_allowance(selector, call_data),
        status=_status(get("status"), warnings),
        gas_used=_whole(get("gas_used"), "gas_used", warnings),
        call_data_bytes=None if call_data is None else (len(call_data) - 2) // 2,
        staking_type=staking.type if staking else None,
        staking_amount=plain(staking.amount) if staking and staking.amount is not None else None,
        staking_unlock_s=staking.unlock_s if staking else None,
        staking_lock_days=staking.lock_days if staking else None,
        staking_confidence=staking.confidence if staking else None,
        warnings="; ".join(warnings),
    )


def _tx_hash(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise RecordError("tx_hash_missing", "the record has no tx_hash, so nothing tells it from another")
    text = raw.strip()
    lowered = text.lower()
    if not lowered.startswith(("0x", "genesis_")):
        lowered = "0x" + lowered
    if _HASH.fullmatch(lowered):
        return lowered
    # Explorers list the first allocations of a chain under a name instead of a hash.
    if _GENESIS_HASH.fullmatch(text):
        return "GENESIS_" + lowered.removeprefix("genesis_").removeprefix("0x")
    raise RecordError("tx_hash_invalid", f"tx_hash {text[:80]!r} is not 0x and 64 hexadecimal digits")


def _milliseconds(raw: object) -> int | None:
    """Return epoch milliseconds of any of the forms a time has in the source, or None if it has none of them."""
    if isinstance(raw, datetime):
        aware = raw if raw.tzinfo else raw.replace(tzinfo=UTC)
        return round(aware.timestamp() * _MS_PER_S)
    if isinstance(raw, DatetimeMS):
        return int(raw)
    if isinstance(raw, bool):
        return None
    if isinstance(raw, Decimal128):
        value = raw.to_decimal()
        raw = float(value) if value.is_finite() else None
    if isinstance(raw, int | float):
        if isinstance(raw, float) and not math.isfinite(raw):
            return None
        return round(raw * _MS_PER_S) if abs(raw) < _LARGEST_SECONDS else round(raw)
    if isinstance(raw, str):
        text = raw.strip()
        if text.isdecimal():
            return _milliseconds(int(text)) if len(text) <= _LONGEST_EPOCH else None
        try:
            return _milliseconds(datetime.fromisoformat(text))
        except ValueError:
            return None
    return None


def parse_block_time(raw: object) -> int | None:
    """Return epoch milliseconds of a block time in any of its forms, or None where it is missing or unreadable."""
    return None if raw is None or raw == "" else _milliseconds(raw)


def parse_address(raw: object) -> str | None:
    """Return a lower-case address of any of its forms, or None where it is missing or none."""
    return raw if isinstance(raw, str) and _WHOLE_ADDRESS.fullmatch(raw) else _address(raw, "", [])


def _block_time(raw: object, now_ms: int) -> int | None:
    if raw is None or raw == "":
        return None
    moment = _milliseconds(raw)
    if moment is None:
        raise RecordError("block_time_unreadable", f"block_time {str(raw)[:60]!r} is not a date")
    if moment < FIRST_BLOCK_MS:
        raise RecordError(
            "block_time_before_first_block",
            f"block_time {_shown(moment)} lies before the first block of any tracked chain (July 2015)",
        )
    if moment > now_ms + FUTURE_TOLERANCE_MS:
        raise RecordError("block_time_in_future", f"block_time {_shown(moment)} lies in the future")
    return moment


def _shown(moment_ms: int) -> str:
    try:
        return datetime.fromtimestamp(moment_ms / _MS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{moment_ms} ms after 1970"


def _whole(raw: object, name: str, warnings: list[str]) -> int | None:
    """Return a count that is not negative, or None with a warning where the value can't be one."""
    if type(raw) is int and 0 <= raw < _MAX_INT64:
        return raw
    if raw is None or raw == "":
        return None
    number: int | None = None
    if isinstance(raw, str):
        text = raw.strip().lower()
        try:
            number = int(text, 16) if text.startswith("0x") else int(text)
        except ValueError:
            number = None
    elif isinstance(raw, Decimal128):
        value = raw.to_decimal()
        number = int(value) if value.is_finite() and value == value.to_integral_value(context=EXACT) else None
    elif isinstance(raw, float):
        number = int(raw) if raw.is_integer() else None
    elif isinstance(raw, int) and not isinstance(raw, bool):
        number = int(raw)
    if number is None or not 0 <= number < _MAX_INT64:
        _warn(name, raw, warnings)
        return None
    return number


def _warn(name: str, raw: object, warnings: list[str]) -> None:
    # A semicolon parts one warning from the next.
    warnings.append(f"{name} {str(raw)[:40].replace(';', ',')!r} left out")


def _address(raw: object, name: str, warnings: list[str]) -> str | None:
    """Return a lower-case address; short ones lost leading zeros and get them back."""
    if raw is None or raw == "":
        return None
    if not isinstance(raw, str):
        _warn(name, raw, warnings)
        return None
    if _WHOLE_ADDRESS.fullmatch(raw):
        return raw
    text = raw.strip().lower()
    if not text or text == "genesis":
        return None
    match = _HEX_ADDRESS.fullmatch(text)
    if match is None:
        _warn(name, raw, warnings)
        return None
    return "0x" + match.group(1).rjust(40, "0")


def _call_data(raw: object) -> tuple[str | None, bool]:
    """Return the call data from its method id on, and whether the record says that there was none.

    Bytes that hold no method id are neither: nobody can tell what they called.
    """
    if not isinstance(raw, str):
        return None, False
    text = raw.strip()
    if text[:2].lower() != "0x":
        text = "0x" + text
    if _SELECTOR.fullmatch(text[:10].lower()):
        return "0x" + text[2:], False
    return None, text in ("0x", "0X")


def _named_token(tx_type: str) -> str | None:
    """Return the symbol in front of "Transfer", unless that only says that it was a token."""
    name = clean_name(tx_type.removesuffix("Transfer"))
    return None if name is None or name.upper() in TOKEN_STANDARDS or name.lower() in ("token", "nft") else name


def _selector(raw: object) -> str | None:
    """Return the method id that an explorer wrote; the call data comes first, since that is what ran."""
    if isinstance(raw, str):
        found = raw.strip().lower()
        if _SELECTOR.fullmatch(found):
            return found
    return None


def _method(name: object, function_name: object) -> str | None:
    """Return the bare method name; ``functionName`` carries the whole signature."""
    for raw in (name, function_name):
        if isinstance(raw, str):
            found = raw.partition("(")[0].strip()
            if found and not found.startswith("0x") and _METHOD.fullmatch(found):
                return found
    return None


def _status(raw: object, warnings: list[str]) -> str | None:
    if raw is None:
        return None
    if isinstance(raw, bool):
        return SUCCESS if raw else FAILED
    whole = isinstance(raw, float) and raw in (0.0, 1.0)
    text = str(int(raw)) if isinstance(raw, float) and whole else str(raw).strip().lower()
    if text in _NO_STATUS:
        return None
    status = _STATUS.get(text)
    if status is None:
        _warn("status", raw, warnings)
    return status


def _allowance(selector: str | None, call_data: str | None) -> str | None:
    """Return what an approval granted, read from its second argument."""
    if call_data is None or selector not in (APPROVE, SET_APPROVAL_FOR_ALL):
        return None
    word = call_data[74:138]
    if len(word) < 64:
        return None
    try:
        value = int(word, 16)
    except ValueError:
        return None
    if value == 0:
        return "revoked"
    if selector == SET_APPROVAL_FOR_ALL:
        return "unlimited"
    # Wallets write "unlimited" as the largest number of 256 or of 96 bits (some tokens cap there).
    return "unlimited" if value >= 2**255 or value == 2**96 - 1 else "limited"
