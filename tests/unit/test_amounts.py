"""Amounts: read exactly or refused, never guessed."""

from __future__ import annotations

import re
import string
from decimal import Decimal

import pytest
from bson import Decimal128, Int64
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.amounts import UNLIMITED_FROM, Amount, parse_amount, plain, readable
from tasks.domain.errors import RecordError

UINT256_MAX = 2**256 - 1


@pytest.mark.parametrize(
    ("raw", "value", "unit", "below"),
    [
        ("0.05", "0.05", None, False),
        ("5e-7", "0.0000005", None, False),
        ("1.5E+3", "1500", None, False),
        ("12.5 BEP20", "12.5", "BEP20", False),
        ("1,234.5 ABC", "1234.5", "ABC", False),
        ("1,234,567.89 ABC", "1234567.89", "ABC", False),
        ("0 ERC20", "0", "ERC20", False),
        ("<0.0001", "0.0001", None, True),
        ("< 0.0001 ETH", "0.0001", "ETH", True),
        ("1.", "1", None, False),
        (".5", "0.5", None, False),
        ("+5", "5", None, False),
        ("007", "7", None, False),
        ("  3 \t ETH \n", "3", "ETH", False),
        ("5 1INCH", "5", "1INCH", False),
        ("5 0xBTC", "5", "0xBTC", False),
        ("5 300Coin", "5", "300Coin", False),
        ("7 Wrapped Ether", "7", "Wrapped Ether", False),
        (str(UINT256_MAX), str(UINT256_MAX), None, False),
        (3, "3", None, False),
        (Int64(2**62), str(2**62), None, False),
        (0.1, "0.1", None, False),
        (0.12345678901234568, "0.12345678901234568", None, False),
        (1e22, "10000000000000000000000", None, False),
        (Decimal128("1234567890123456789012345678901.234"), "1234567890123456789012345678901.234", None, False),
    ],
)
def test_each_form_of_the_source_is_read_exactly(raw: object, value: str, unit: str | None, below: bool) -> None:
    amount = parse_amount(raw)
    assert amount == Amount(Decimal(value), unit, below)
    assert plain(amount.value) == value


@pytest.mark.parametrize("raw", [None, "", "   ", "\n\t"])
def test_a_missing_amount_is_not_zero(raw: object) -> None:
    assert parse_amount(raw) is None


@pytest.mark.parametrize("raw", ["0", "-0", "-0.0", "0e5", "0E-18", "0,000"[:1], -0.0, 0, Decimal128("-0E+3")])
def test_zero_has_no_sign_and_no_exponent(raw: object) -> None:
    amount = parse_amount(raw)
    assert amount is not None
    assert plain(amount.value) == "0"
    assert readable(amount.value) == "0"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("0,015", "amount_ambiguous"),
        ("12,5", "amount_ambiguous"),
        ("1,23,456", "amount_ambiguous"),
        ("0,123", "amount_ambiguous"),
        ("1.234,56", "amount_ambiguous"),
        ("1,000e3", "amount_ambiguous"),
        (",5", "amount_ambiguous"),
        ("1 234.5 ABC", "amount_ambiguous"),
        ("1 234 567", "amount_ambiguous"),
        ("1\u00a0234,5", "amount_ambiguous"),
        ("1\u202f000 ETH", "amount_ambiguous"),
        ("1.234.567", "amount_unreadable"),
        (".", "amount_unreadable"),
        ("+", "amount_unreadable"),
        ("1e", "amount_unreadable"),
        ("12.5BEP20", "amount_unreadable"),
        ("0x1bc16d674ec80000", "amount_unreadable"),
        ("ABC 12", "amount_unreadable"),
        ("NaN", "amount_unreadable"),
        ("Infinity", "amount_unreadable"),
        ("1_000", "amount_unreadable"),
        ("1'234.5", "amount_unreadable"),
        ("١٢٣", "amount_unreadable"),
        ("１２", "amount_unreadable"),
        ("½", "amount_unreadable"),
        ("1\x00", "amount_unreadable"),
        ("\u22123", "amount_unreadable"),
        (True, "amount_unreadable"),
        (b"12", "amount_unreadable"),
        (["12"], "amount_unreadable"),
        ({"value": 12}, "amount_unreadable"),
        (float("nan"), "amount_not_finite"),
        (float("inf"), "amount_not_finite"),
        (Decimal128("NaN"), "amount_not_finite"),
        (Decimal128("sNaN"), "amount_not_finite"),
        (Decimal128("-Infinity"), "amount_not_finite"),
        ("-3.2", "amount_negative"),
        (-1, "amount_negative"),
        (-5e-324, "amount_negative"),
        ("1e400", "amount_too_large"),
        (str(UINT256_MAX + 1), "amount_too_large"),
        ("9" * 5_000, "amount_too_large"),
        (Decimal128("9E+6144"), "amount_too_large"),
        ("1e-400", "amount_too_precise"),
        ("0." + "1" * 10_000, "amount_too_precise"),
        (Decimal128("1E-6176"), "amount_too_precise"),
    ],
)
def test_what_could_be_another_amount_or_none_is_refused(raw: object, code: str) -> None:
    with pytest.raises(RecordError) as refused:
        parse_amount(raw)
    assert refused.value.code == code
    assert len(refused.value.reason) < 250


def test_an_exponent_of_more_than_three_digits_is_no_amount() -> None:
    with pytest.raises(RecordError, match="does not begin with a number"):
        parse_amount("1e1000000")


amounts = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places),
    st.integers(min_value=0, max_value=10**27),
    st.integers(min_value=0, max_value=27),
)
units = st.text(string.ascii_uppercase, min_size=1, max_size=10)


@given(value=amounts, unit=st.none() | units, padding=st.sampled_from(["", " ", "\n"]), below=st.booleans())
def test_a_formatted_decimal_comes_back_with_its_magnitude(
    value: Decimal, unit: str | None, padding: str, below: bool
) -> None:
    text = f"{padding}{'<' if below else ''}{value:f}{f' {unit}' if unit else ''}{padding}"
    assert parse_amount(text) == Amount(value, unit, below)


@given(value=amounts, unit=st.none() | units)
def test_a_decimal_with_grouped_thousands_comes_back_with_its_magnitude(value: Decimal, unit: str | None) -> None:
    assert parse_amount(f"{value:,f}{f' {unit}' if unit else ''}") == Amount(value, unit)


@given(value=amounts)
def test_a_decimal_comma_is_refused_unless_it_reads_as_a_thousands_comma(value: Decimal) -> None:
    text = f"{value:f}".replace(".", ",")
    if "," not in text or re.fullmatch("[1-9][0-9]{0,2},[0-9]{3}", text):
        assert parse_amount(text) == Amount(Decimal(text.replace(",", "")))
    else:
        with pytest.raises(RecordError, match="decimal comma"):
            parse_amount(text)


@given(st.integers(min_value=0, max_value=UINT256_MAX), st.integers(min_value=0, max_value=78))
def test_no_digit_of_a_uint256_is_lost_whatever_its_decimals(raw: int, decimals: int) -> None:
    text = str(raw).rjust(decimals + 1, "0")
    text = f"{text[:-decimals]}.{text[-decimals:]}" if decimals else text
    amount = parse_amount(text)
    assert amount is not None
    restored = plain(amount.value)
    whole, _, fraction = restored.partition(".")
    assert int(whole + fraction.ljust(decimals, "0")) == raw


@given(st.floats(min_value=0, max_value=1e60, allow_subnormal=False).filter(lambda x: x == 0 or x > 1e-60))
def test_a_double_is_read_as_the_digits_that_a_person_would_have_typed(value: float) -> None:
    amount = parse_amount(value)
    assert amount is not None
    assert float(plain(amount.value)) == value


@given(st.text(max_size=40) | st.text("0123456789.,-+eE< ABC", max_size=20))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        amount = parse_amount(text)
    except RecordError:
        return
    assert (amount is None) == (not text.strip())
    assert amount is None or 0 <= amount.value <= UINT256_MAX


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0.000000001719251781", "0.000000001719"),
        ("0.1234567", "0.1235"),
        ("12.345678", "12.35"),
        ("999.96", "1000"),
        ("1000", "1,000"),
        ("10009.68940745", "10,010"),
        ("11780776825", "11,780,776,825"),
        ("123456789012345678901234567890123456789", "123,456,789,012,345,678,901,234,567,890,123,456,789"),
    ],
)
def test_an_amount_is_shown_short_and_in_its_magnitude(value: str, text: str) -> None:
    assert readable(Decimal(value)) == text


def test_only_figures_near_the_largest_uint256_mean_without_limit() -> None:
    assert Amount(Decimal(UINT256_MAX)).unlimited
    assert Amount(Decimal(UINT256_MAX) / 10**18).unlimited
    assert not Amount(Decimal(10**58)).unlimited
    assert readable(UNLIMITED_FROM) == "the largest possible amount of"
