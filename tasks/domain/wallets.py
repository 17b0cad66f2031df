"""Wallet: what a website saw of a visitor's wallet. Most of what is written there only says that there was none.

The address is what ties a visit to the chain (``transactions.from_address``), so only a real one counts: a placeholder
would join everybody who has none, and the zero address everybody to whom a token was minted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.domain.chains import find_chain
from tasks.domain.personal import hide_people
from tasks.domain.texts import clean_name

#: What producers write, in lower case, as address, type or chain where no wallet is connected.
NO_WALLET = frozenset(
    {
        "",
        "no wallet detected",
        "no wallet connected",
        "not connected",
        "no chain detected",
        "error",
        "unknown",
        "undefined",
        "null",
        "none",
    }
)
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_ZERO_ADDRESS = "0x" + "0" * 40
_READ_CHARS, _MAX_NAME_CHARS = 1_000, 60


@dataclass(frozen=True, slots=True)
class Wallet:
    """``address`` is 0x and 40 digits in lower case, None where none is connected or it is on no EVM chain.

    ``kind`` is the wallet's software (MetaMask), which may be there without a connection. ``chain_id`` is None for
    chains that aren't known by one.
    """

    address: str | None = None
    kind: str | None = None
    chain: str | None = None
    chain_id: int | None = None


def says_no_wallet(raw: object) -> bool:
    """Return whether a value only says that there is no wallet, or nothing at all."""
    return raw is None or (isinstance(raw, str) and " ".join(raw.lower().split()) in NO_WALLET)


def parse_address(raw: object) -> str | None:
    """Return a wallet's address in lower case, or None where the value is none."""
    text = raw.strip().lower() if isinstance(raw, str) else ""
    return text if _ADDRESS.fullmatch(text) and text != _ZERO_ADDRESS else None


def parse_wallet(
    raw: object, warnings: list[str], *, name: str = "wallet", user_ids: Iterable[str] = ()
) -> Wallet | None:
    """Return the wallet of ``{walletAddress, walletType, chainName}``, or None where it says that there is none.

    A chain is only told where there is an address or a wallet's software: alone it is no wallet. What can't be read is
    left out and named in ``warnings``, without the value. ``user_ids`` are hidden in the names.
    """
    if raw is None or raw == "":
        return None
    if not isinstance(raw, Mapping):
        warnings.append(f"{name} of type {type(raw).__name__} left out")
        return None
    written = raw.get("walletAddress")
    address = parse_address(written)
    if address is None and not says_no_wallet(written):
        warnings.append(f"{name}.walletAddress is no address of an EVM chain and is left out")
    written = raw.get("walletType")
    kind = None if says_no_wallet(written) else clean_name(written)
    if kind is None and not says_no_wallet(written):
        warnings.append(f"{name}.walletType of type {type(written).__name__} left out")
    if address is None and kind is None:
        return None
    written = raw.get("chainName")
    chain = None if says_no_wallet(written) else find_chain(written)
    user_ids = tuple(user_ids)
    return Wallet(
        address,
        _short(kind, user_ids) if kind else None,
        _short(chain.name, user_ids) if chain else None,
        chain.chain_id if chain else None,
    )


def _short(name: str, user_ids: tuple[str, ...]) -> str:
    return hide_people(" ".join(name[:_READ_CHARS].split()), user_ids)[:_MAX_NAME_CHARS].strip()
