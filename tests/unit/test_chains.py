"""Chains: six are tracked, wallets and explorers have many names for them, and others exist."""

from __future__ import annotations

import pytest
from bson import Int64
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.chains import Chain, find_chain


@pytest.mark.parametrize(
    ("name", "chain_id", "coin"),
    [
        ("Ethereum", 1, "ETH"),
        ("BNB Chain", 56, "BNB"),
        ("Base", 8453, "ETH"),
        ("Polygon", 137, "MATIC"),
        ("Arbitrum", 42161, "ETH"),
        ("Optimism", 10, "ETH"),
    ],
)
def test_the_six_chains_are_known_by_name_and_id(name: str, chain_id: int, coin: str) -> None:
    chain = Chain(name, chain_id, coin)
    for raw in (
        name,
        name.upper(),
        f" {name} ",
        chain_id,
        Int64(chain_id),
        str(chain_id),
        hex(chain_id),
        f"Unknown (ID: {chain_id})",
    ):
        assert find_chain(raw) == chain


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Ethereum Mainnet", "Ethereum"),
        (" eth-mainnet ", "Ethereum"),
        ("Binance Smart Chain", "BNB Chain"),
        ("bsc", "BNB Chain"),
        ("polygon-pos", "Polygon"),
        ("arbitrum_one", "Arbitrum"),
        ("OP Mainnet", "Optimism"),
        ("Unknown (ID: 0x38)", "BNB Chain"),
        ("0056", "BNB Chain"),
    ],
)
def test_other_names_of_a_chain_are_that_chain(alias: str, name: str) -> None:
    chain = find_chain(alias)
    assert chain is not None
    assert chain.name == name


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        "  ",
        "Error",
        "unknown",
        "Not Connected",
        "No Chain Detected",
        True,
        ["Ethereum"],
        {},
        b"Base",
        0,
        -1,
        "0",
        "9" * 30,
        "\u200b\u202e",
        "\x00",
    ],
)
def test_what_names_no_chain_is_none(raw: object) -> None:
    assert find_chain(raw) is None


def test_a_chain_that_is_not_tracked_keeps_its_name_and_lends_no_coin() -> None:
    assert find_chain("Zora") == Chain("Zora", None, None)
    assert find_chain("  Zora \x00 Net\u202ework ") == Chain("Zora Network", None, None)
    assert find_chain(7777777) == find_chain("7777777") == Chain("chain 7777777", 7777777, None)


@given(st.text(max_size=300) | st.integers() | st.text("0123456789xabcdef(): unkowid", max_size=40))
def test_any_value_is_a_short_name_with_an_id_that_a_column_holds_or_nothing(raw: object) -> None:
    chain = find_chain(raw)
    if chain is not None:
        assert 0 < len(chain.name) <= 60
        assert chain.name == " ".join(chain.name.split())
        assert chain.chain_id is None or 0 < chain.chain_id < 2**53
