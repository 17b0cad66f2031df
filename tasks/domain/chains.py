"""The six chains of the source, the names people and wallets give them, and what each calls its coin."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
_ID_IN_TEXT = re.compile(r"(?:unknown \(id: ?)?(0x[0-9a-f]+|[0-9]+)\)?")
#: What wallets write where there is no chain.
_SENTINELS = frozenset({"", "error", "unknown", "not connected", "no chain detected"})


def find_chain(raw: object) -> Chain | None:
    """Return the chain that a name, an alias or a chain id means; None where nothing is said.

    A name that is not in the list comes back as it is, without id and coin: new chains appear before we do.
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        return _BY_ID.get(raw)
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
        return _BY_ID.get(int(match.group(1), 0))
    return Chain(" ".join(raw.split())[:60], None, None)
