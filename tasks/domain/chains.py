"""The six chains of the source, the names people and wallets give them, and what each calls its coin."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.domain.texts import clean_name


@dataclass(frozen=True, slots=True)
class Chain:
    """``chain_id`` is None for a chain that the application doesn't track; such rows are kept as they are."""

    name: str
    chain_id: int | None
    coin: str | None


_KNOWN = (
    Chain("Ethereum", 1, "ETH"),
    Chain("BNB Chain", 56, "BNB"),
    Chain("Base", 8453, "ETH"),
    Chain("Polygon", 137, "MATIC"),
    Chain("Arbitrum", 42161, "ETH"),
    Chain("Optimism", 10, "ETH"),
)
_ALIASES: dict[str, str] = {
    "ethereum mainnet": "Ethereum",
    "eth mainnet": "Ethereum",
    "mainnet": "Ethereum",
    "eth": "Ethereum",
    "bnb": "BNB Chain",
    "bnb smart chain": "BNB Chain",
    "binance smart chain": "BNB Chain",
    "binance": "BNB Chain",
    "bsc": "BNB Chain",
    "bsc mainnet": "BNB Chain",
    "base mainnet": "Base",
    "matic": "Polygon",
    "polygon mainnet": "Polygon",
    "polygon pos": "Polygon",
    "matic mainnet": "Polygon",
    "arbitrum one": "Arbitrum",
    "arbitrum mainnet": "Arbitrum",
    "arb": "Arbitrum",
    "op": "Optimism",
    "op mainnet": "Optimism",
    "optimism mainnet": "Optimism",
    "optimistic ethereum": "Optimism",
}
_BY_NAME = {chain.name.lower(): chain for chain in _KNOWN}
_BY_NAME |= {alias: _BY_NAME[name.lower()] for alias, name in _ALIASES.items()}
_BY_ID = {chain.chain_id: chain for chain in _KNOWN}
#: Every name of a tracked chain, in lower case.
CHAIN_NAMES = frozenset(_BY_NAME)
_ID_IN_TEXT = re.compile(r"(?:unknown \(id: ?)?(0x[0-9a-f]+|[0-9]+)\)?")
#: The largest id that wallets accept (MetaMask's limit); larger numbers are not ids of chains.
_LARGEST_ID = 4_503_599_627_370_476
#: What wallets write where there is no chain.
_SENTINELS = frozenset({"", "error", "unknown", "not connected", "no chain detected"})


def find_chain(raw: object) -> Chain | None:
    """Return the chain that a name, an alias or a chain id means; None where nothing is said.

    A name that is not in the list comes back as it is, without id and coin, and an id that is not in it without
    coin: new chains appear before we do, and calling them by another's name would give amounts a wrong unit.
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        return _by_id(raw)
    if not isinstance(raw, str):
        return None
    known = _BY_NAME.get(raw)
    if known is not None:
        return known
    text = " ".join(raw.lower().replace("-", " ").replace("_", " ").split())
    if text in _SENTINELS:
        return None
    known = _BY_NAME.get(text)
    if known is not None:
        return known
    match = _ID_IN_TEXT.fullmatch(text)
    if match:
        digits = match.group(1)
        base = 16 if digits.startswith("0x") else 10
        return _by_id(int(digits, base)) if len(digits) <= 20 else None
    name = clean_name(raw[:200])
    return Chain(" ".join(name.split())[:60], None, None) if name else None


def _by_id(chain_id: int) -> Chain | None:
    if not 0 < chain_id <= _LARGEST_ID:
        return None
    return _BY_ID.get(chain_id) or Chain(f"chain {chain_id}", chain_id, None)
