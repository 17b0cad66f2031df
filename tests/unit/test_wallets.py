"""Wallets: only a real address ties a visit to the chain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.wallets import NO_WALLET, Wallet, parse_address, parse_wallet, says_no_wallet
from tests.builders import WALLET

SENTINELS = (
    "",
    "No Wallet Detected",
    "No Wallet Connected",
    "Not Connected",
    "No Chain Detected",
    "Error",
    "Unknown",
)


def parse(raw: object) -> tuple[Wallet | None, list[str]]:
    warnings: list[str] = []
    return parse_wallet(raw, warnings), warnings


def connected(
    address: object = WALLET, kind: object = "MetaMask", chain: object = "Ethereum Mainnet"
) -> dict[str, Any]:
    return {"walletAddress": address, "walletType": kind, "chainName": chain}


def test_a_connected_wallet_is_read_with_its_chain() -> None:
    assert parse(connected()) == (Wallet(WALLET, "MetaMask", "Ethereum", 1), [])


@pytest.mark.parametrize("raw", [WALLET.upper().replace("X", "x"), "0X" + WALLET[2:].upper(), f" {WALLET}\n"])
def test_an_address_in_mixed_case_is_the_same_wallet(raw: str) -> None:
    assert parse_address(raw) == WALLET


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        7,
        WALLET[:-1],
        WALLET + "0",
        WALLET[2:],
        "0x" + "g" * 40,
        "0x" + "１" * 40,
        "vitalik.eth",
        "0x" + "0" * 40,
    ],
)
def test_what_is_not_0x_and_40_digits_is_no_address(raw: object) -> None:
    assert parse_address(raw) is None


@pytest.mark.parametrize("raw", [*SENTINELS, None, " not  connected ", "ERROR"])
def test_what_producers_write_without_a_wallet_is_none(raw: object) -> None:
    assert says_no_wallet(raw)
    assert parse(connected(raw, raw, raw)) == (None, [])


def test_every_sentinel_is_known_in_lower_case() -> None:
    assert {word.lower() for word in SENTINELS} <= NO_WALLET


@pytest.mark.parametrize("chain", SENTINELS)
def test_a_sentinel_is_never_a_chain(chain: str) -> None:
    assert parse(connected(chain=chain)) == (Wallet(WALLET, "MetaMask"), [])


@pytest.mark.parametrize(
    ("raw", "name", "chain_id"),
    [
        ("Binance Smart Chain", "BNB Chain", 56),
        ("Unknown (ID: 56)", "BNB Chain", 56),
        ("Ethereum Mainnet", "Ethereum", 1),
        (8453, "Base", 8453),
        ("Solana", "Solana", None),
    ],
)
def test_a_chain_has_the_name_that_transactions_have(raw: object, name: str, chain_id: int | None) -> None:
    assert parse(connected(chain=raw)) == (Wallet(WALLET, "MetaMask", name, chain_id), [])


def test_software_without_a_connection_is_a_wallet_without_an_address() -> None:
    assert parse(connected("Not Connected", "MetaMask", "Not Connected")) == (Wallet(None, "MetaMask"), [])


def test_a_chain_alone_is_no_wallet() -> None:
    assert parse(connected("", "", "Ethereum")) == (None, [])


def test_an_address_of_another_kind_of_chain_is_left_out_and_named() -> None:
    wallet, warnings = parse(connected("7YttLkHDoNj9wyDur5pM1ejNaAvT9X4eqaYcHQqtj2G5", "Phantom", "Solana"))
    assert wallet == Wallet(None, "Phantom", "Solana")
    assert warnings == ["wallet.walletAddress is no address of an EVM chain and is left out"]


def test_the_zero_address_is_nobodys_wallet() -> None:
    """Every mint comes from it: a visit with it would be joined to all of them."""
    wallet, warnings = parse(connected("0x" + "0" * 40))
    assert wallet is not None
    assert wallet.address is None
    assert len(warnings) == 1


@pytest.mark.parametrize("raw", ["MetaMask", 7, [WALLET]])
def test_a_wallet_that_is_no_document_is_left_out_and_named(raw: object) -> None:
    assert parse(raw) == (None, [f"wallet of type {type(raw).__name__} left out"])


def test_a_type_that_is_no_text_is_left_out_and_named() -> None:
    assert parse(connected(kind=7)) == (Wallet(WALLET, None, "Ethereum", 1), ["wallet.walletType of type int left out"])


def test_names_are_short_and_hold_nobody() -> None:
    warnings: list[str] = []
    found = parse_wallet(connected(kind="W" * 5_000, chain="of mira-okafor-1"), warnings, user_ids=["mira-okafor-1"])
    assert found == Wallet(WALLET, "W" * 60, "of …")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*SENTINELS, WALLET])
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)


@given(values | st.fixed_dictionaries({}, optional=dict.fromkeys(("walletAddress", "walletType", "chainName"), values)))
def test_any_value_is_a_wallet_or_none(raw: object) -> None:
    wallet, _ = parse(raw)
    if wallet is not None:
        assert wallet.address or wallet.kind
        assert wallet.address in (None, WALLET)
