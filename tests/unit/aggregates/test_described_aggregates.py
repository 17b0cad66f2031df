"""Documents of figures: an analyst's words, every figure in the facts, and nothing that must not be told."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import bson
import pytest
from bson import ObjectId

from blocks.tokens import count_tokens
from tasks.domain.aggregates.compiling import put_together
from tasks.domain.aggregates.describe import (
    describe_campaign,
    describe_funnel,
    describe_staking,
    describe_transactions,
    describe_visits,
)
from tasks.domain.aggregates.figures import change, rate
from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.aggregates.subjects import contract_subject, site_subject, team_subject
from tasks.domain.aggregates.transactions import TransactionFigures
from tasks.domain.collections import VECTOR_DOCUMENTS
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, holder_of
from tasks.domain.errors import RecordError
from tasks.domain.owners import ESCROW, Site
from tasks.domain.transactions import Transaction
from tests.builders import (
    ESCROW_ID,
    OWNERLESS_ID,
    RECIPIENT,
    SITE_ID,
    TEAM_ID,
    TOKEN_ID,
    TX_HASH,
    WALLET,
    make_transaction,
)
from tests.unit.aggregates import test_aggregated_transactions as chain
from tests.unit.aggregates import test_aggregated_visits as web

NOW_MS = chain.ms(2022, 7, 1)
OTHER_WALLET = "0x" + "b" * 40


def rows() -> list[Transaction]:
    """Return two transfers in April 2022 and six in May, one of them failed."""
    april = [
        make_transaction(tx_hash=f"0x{number:064x}", block_time_ms=chain.ms(2022, 4, 5 + number), amount="10")
        for number in range(2)
    ]
    may = [
        make_transaction(
            tx_hash=f"0x{number:064x}",
            block_time_ms=chain.ms(2022, 5, number, 14),
            amount=amount,
            status="failed" if number == 9 else "success",
            from_address=OTHER_WALLET if number > 5 else WALLET,
        )
        for number, amount in ((4, "0.05"), (5, "0.5"), (6, "5"), (7, "50"), (8, "1.25"), (9, "7"))
    ]
    return [*april, *may]


def transactions(label: str = "2022-05", *, now_ms: int = NOW_MS, zone: str = "UTC", **changes: Any) -> Document:
    """Return the document of the token's figures; changes are those of the subject."""
    subject = replace(chain.SUBJECTS[0], **changes)
    made = chain.aggregate(chain.partials(rows(), zone), subject, Period.from_label(label), zone, now_ms)
    assert made is not None
    return describe_transactions(made)


def facts(document: Document) -> dict[str, Any]:
    found: dict[str, Any] = document.metadata["facts"]
    return found


def stakes() -> list[Transaction]:
    calls = [
        ("create_lock", "1500", 365),
        ("create_lock", "500", 30),
        ("withdraw", None, None),
        ("withdraw", "20", None),
    ]
    return [
        make_transaction(
            tx_hash=f"0x{number:064x}",
            contract_id=ESCROW_ID,
            contract_type=ESCROW,
            block_time_ms=chain.ms(2022, 5, 4 + number),
            staking_type=kind,
            staking_amount=amount,
            staking_lock_days=days,
        )
        for number, (kind, amount, days) in enumerate(calls)
    ]


def staking(made: list[Transaction]) -> Document:
    put = chain.aggregate(chain.partials(made), chain.SUBJECTS[1], Period.from_label("2022-05"))
    assert put is not None
    document = describe_staking(put)
    assert document is not None
    return document


def visited() -> tuple[Any, Any]:
    """Return the aggregate of a month of visits, and the moves of its wallets."""
    visits = [
        web.make_visit(),
        web.make_visit(record_id="64e000000000000000000002", session_id="s-2", visitor="v-2", wallet=WALLET, web3=True),
    ]
    days = web.partials([replace(visit, utm_id="spring-1") for visit in visits])
    return days, web.all_moves([make_transaction(block_time_ms=chain.ms(2025, 6, 12))], days)


def visits_of(subject: Any, label: str = "2025-06") -> Any:
    made = web.aggregate(visited()[0], subject, Period.from_label(label))
    assert made is not None
    return made


def everything() -> list[Document]:
    moves = visited()[1]
    campaign = web.campaign_subject(web.SITE, web.CAMPAIGN)
    return [
        *(transactions(label) for label in ("2022-05", "2022-W18", "2022-05-04", "all")),
        staking(stakes()),
        *(describe_visits(visits_of(site_subject(web.SITE), label)) for label in ("2025-06", "all")),
        *(describe_funnel(visits_of(site_subject(web.SITE), label), moves) for label in ("2025-06", "all")),
        *(describe_campaign(visits_of(campaign, label), web.CAMPAIGN, moves) for label in ("2025-06", "all")),
    ]


def test_a_month_of_a_contract_is_told_in_the_words_of_an_analyst() -> None:
    assert transactions().content == (
        "Monthly figures, May 2022: transactions, Tether USD (USDT) on Ethereum. 6 transactions by 2 wallets (1 new, "
        "1 returning). 5 succeeded, 1 failed. Kinds: transfer 6. Volume 56.8 USDT. Sizes in USDT <0.1: 1, 0.1-1: 1, "
        "1-10: 2, >10: 1. Gas used 279,756. Busiest hour 14:00 UTC. Top methods: transfer 6. "
        "Most active wallets: 0xbbbbbb 4, 0x57f999 2. Compared with the month before: transactions up 200 %, "
        "wallets up 100 %, volume in USDT up 184 %."
    )
    assert transactions().summary == (
        "transactions · Tether USD (USDT) on Ethereum · May 2022 · 6 transactions · 2 wallets · 56.8 USDT"
    )


def test_a_document_is_filed_under_its_key_for_its_owner() -> None:
    document = transactions()
    assert document.key == f"aggregate:{TOKEN_ID}:transactions:month:2022-05"
    assert (document.source_type, document.holder_id, holder_of(document.key)) == ("transaction", TOKEN_ID, TOKEN_ID)
    assert (document.team_id, document.site_id) == (str(TEAM_ID), SITE_ID)
    assert ObjectId.is_valid(document.source_id)


def test_documents_have_ids_of_their_own_that_never_change() -> None:
    ids = {document.source_id for document in everything()}
    assert len(ids) == len({document.key for document in everything()}) == len(everything())
    assert transactions().source_id == "000000008916ba8f6e0633fe"


def test_every_figure_is_exact_in_the_facts() -> None:
    figures = facts(transactions())["figures"]
    assert figures["volumes"] == [
        {
            "unit": "USDT",
            "amount": "56.8",
            "amounts": 5,
            "zeros": 0,
            "below": 0,
            "unlimited": 0,
            "notMoved": 1,
            "largest": "50",
            "sizes": {"under0_1": 1, "from0_1To1": 1, "from1To10": 2, "over10": 1},
        }
    ]
    assert (figures["wallets"], figures["newWallets"], figures["returningWallets"]) == (2, 1, 1)
    assert figures["topWallets"][0] == {"wallet": OTHER_WALLET, "transactions": 4}
    assert figures["gas"] == {"total": "279756", "known": 6, "average": "46626", "largest": "46626"}
    assert figures["series"] == [{"period": f"2022-05-0{day}", "transactions": 1} for day in range(4, 10)]


def test_the_facts_say_what_a_document_was_computed_from() -> None:
    found = facts(transactions())
    assert {
        name: found[name] for name in ("aggregate", "topic", "scope", "period", "label", "timeZone", "contractId")
    } == {
        "aggregate": True,
        "topic": "transactions",
        "scope": "contract",
        "period": "month",
        "label": "2022-05",
        "timeZone": "UTC",
        "contractId": TOKEN_ID,
    }
    read = found["computedFrom"]
    assert (read["collections"], read["rows"], read["doubledRows"]) == (["transactions"], 6, 0)
    assert read["newestRecord"] == "64c000000000000000000001"
    assert (read["oldest"], read["newest"]) == (
        datetime(2022, 5, 4, 14, tzinfo=UTC),
        datetime(2022, 5, 9, 14, tzinfo=UTC),
    )
    assert re.fullmatch("[0-9a-f]{32}", read["digest"])


def test_the_window_is_half_open_and_that_of_the_clocks_of_the_zone() -> None:
    frame = transactions().metadata["timeframe"]
    assert frame == {"start": datetime(2022, 5, 1, tzinfo=UTC), "end": datetime(2022, 6, 1, tzinfo=UTC)}
    berlin = transactions(zone="Europe/Berlin")
    assert berlin.metadata["timeframe"]["start"] == datetime(2022, 4, 30, 22, tzinfo=UTC)
    assert berlin.key.endswith(":month:2022-05:zone=Europe/Berlin")
    assert facts(berlin)["window"] == berlin.metadata["timeframe"]


def test_all_time_reaches_from_the_first_day_to_the_last() -> None:
    document = transactions("all")
    assert document.metadata["timeframe"] == {
        "start": datetime(2022, 4, 5, tzinfo=UTC),
        "end": datetime(2022, 5, 10, tzinfo=UTC),
    }
    assert "all time (5 April 2022 to 9 May 2022)" in document.content
    assert "aggregationLevel" not in document.metadata
    assert not {"change", "complete"} & facts(document).keys()
    assert [entry["period"] for entry in facts(document)["figures"]["series"]] == ["2022-04", "2022-05"]


def test_a_period_that_is_not_over_says_so() -> None:
    now = chain.ms(2022, 5, 20)
    assert "May 2022 so far" in transactions(now_ms=now).content
    assert facts(transactions(now_ms=now))["complete"] is False
    assert facts(transactions(now_ms=chain.ms(2022, 6, 1)))["complete"] is True


def test_the_change_is_told_as_a_difference_where_there_was_nothing() -> None:
    assert change(5, 0) == {"before": 0, "absolute": 5, "percent": None}
    assert change(5, None) == {"before": None, "absolute": None, "percent": None}
    assert change(1, 3) == {"before": 3, "absolute": -2, "percent": "-66.67"}
    assert change(-1, -8)["percent"] == "-87.5"
    first = transactions("2022-04")
    assert facts(first)["change"]["transactions"] == {"before": None, "absolute": None, "percent": None}
    assert "Compared" not in first.content


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(1, 3, "33.33"), (1, 8, "12.5"), (1, 1_600, "0.06"), (0, 5, "0")]
)
def test_rates_are_rounded_half_to_even(part: int, whole: int, expected: str) -> None:
    assert rate(part, whole) == expected


def test_staking_tells_what_is_known_and_that_the_rest_is_not() -> None:
    document = staking(stakes())
    assert document.key == f"aggregate:{ESCROW_ID}:staking:month:2022-05"
    assert document.content == (
        "Monthly figures, May 2022: staking, locked and withdrawn tokens, veToken (staking contract) on Ethereum. "
        "4 staking calls, 0 failed or pending. 1 wallet locked, 1 withdrew. Locked 2,000 tokens, withdrew 20 tokens "
        "and 1 unknown amount, net change unknown. Calls: create lock 2, withdraw 2. Lock lengths of 30 to 365 days, "
        "average 197.5, median 197.5."
    )
    (figures,) = facts(document)["figures"]["stakes"]
    assert (figures["net"], figures["netOfKnown"], figures["withdrawnUnknown"]) == (None, "1980", 1)
    assert document.metadata["confidence"] == 0.8


def test_calls_that_nobody_understands_locked_nothing_that_is_known() -> None:
    document = staking([replace(row, staking_type="unknown", staking_amount=None) for row in stakes()])
    assert "No call is known to have locked or withdrawn tokens. Calls: unknown 4." in document.content


def test_tokens_of_two_staking_contracts_are_not_added() -> None:
    second = "contract_1744848009999_cccccccccccccccc"
    made = [
        *stakes(),
        *(replace(row, contract_id=second, tx_hash=row.tx_hash.replace("0x0", "0xf")) for row in stakes()),
    ]
    put = chain.aggregate(chain.partials(made), team_subject(str(TEAM_ID), SITE_ID), Period.from_label("2022-05"))
    assert put is not None
    document = describe_staking(put)
    assert document is not None
    assert [stake["locked"] for stake in facts(document)["figures"]["stakes"]] == ["2000", "2000"]
    assert "4,000" not in document.content


def test_a_period_without_staking_has_no_document_of_it() -> None:
    put = chain.aggregate(chain.partials(rows()), chain.SUBJECTS[0], Period.from_label("2022-05"))
    assert put is not None
    assert describe_staking(put) is None


def test_a_period_without_rows_has_no_document() -> None:
    assert chain.aggregate(chain.partials(rows()), chain.SUBJECTS[0], Period.from_label("2022-06")) is None


def test_visits_a_funnel_and_a_campaign_are_told_in_words() -> None:
    moves = visited()[1]
    site = visits_of(site_subject(web.SITE))
    assert describe_visits(site).content == (
        "Monthly figures, June 2025: visits and website traffic, Shop (shop.example). 2 sessions by 2 visitors (2 new, "
        "0 returning). 1 web3 user, 1 wallet connection with 1 wallet. 6 page views, bounce rate 0 %, average visit 62 "
        "seconds. Traffic sources: google/cpc 2. Countries: DE 2. Devices: desktop 2. Top pages: / 4, /stake 2."
    )
    assert describe_funnel(site, moves).content == (
        "Monthly figures, June 2025: conversion funnel from visit to wallet to transaction, Shop (shop.example). "
        "2 sessions by 2 visitors, 1 connected a wallet (1 wallet), 1 of the wallets made 1 transaction. "
        "50 % of visitors connected a wallet, 100 % of wallets transacted. Transaction value 12.5 USDT."
    )
    campaign = describe_campaign(visits_of(web.campaign_subject(web.SITE, web.CAMPAIGN), "all"), web.CAMPAIGN, moves)
    assert campaign.content == (
        "All-time figures, all time (10 June 2025 to 10 June 2025): marketing campaign, Spring of Shop (shop.example). "
        "2 sessions by 2 visitors, 1 connected a wallet (1 wallet), 1 of the wallets made 1 transaction. "
        "50 % of visitors connected a wallet, 100 % of wallets transacted. Transaction value 12.5 USDT. "
        "Cost 1,250 EUR, 1250.5 for each wallet that transacted. Bounce rate 0 %. Countries: DE 2."
    )
    assert campaign.key == f"aggregate:{SITE_ID}:campaign:all:all:campaign={web.CAMPAIGN.campaign_id}"


def test_who_came_again_is_told_beside_the_month_before() -> None:
    visits = [
        web.make_visit(start_ms=chain.ms(2025, 5, 10), session_id="s-1"),
        web.make_visit(start_ms=chain.ms(2025, 5, 11), session_id="s-2", visitor="v-2"),
        web.make_visit(start_ms=chain.ms(2025, 6, 10), session_id="s-3"),
    ]
    made = web.aggregate(web.partials(visits), site_subject(web.SITE), Period.from_label("2025-06"))
    assert made is not None
    document = describe_visits(made)
    assert "Retention: 1 of 2 visitors of the month before came again (50 %)." in document.content
    assert facts(document)["change"]["retained"] == {"of": 2, "visitors": 1, "rate": "50"}


def test_a_campaign_has_a_return_where_its_cost_is_in_a_unit_that_moved() -> None:
    moves = visited()[1]
    aggregate = visits_of(web.campaign_subject(web.SITE, web.CAMPAIGN), "all")
    tokens = replace(web.CAMPAIGN, cost=Decimal(10), currency="USDT")
    assert (
        "for each wallet that transacted, return on it (ROI) 25 %."
        in describe_campaign(aggregate, tokens, moves).content
    )
    cost = facts(describe_campaign(aggregate, replace(tokens, currency="EUR"), moves))["figures"]["cost"]
    assert (cost["value"], cost["roi"]) == (None, None)
    free = replace(tokens, cost=Decimal(0))
    assert facts(describe_campaign(aggregate, free, moves))["figures"]["cost"]["roi"] is None


def test_each_kind_is_stored_with_the_source_type_that_its_readers_ask_for() -> None:
    kinds = {
        document.metadata["category"]: (document.source_type, document.metadata["dataType"])
        for document in everything()
    }
    assert kinds == {
        "transactions": ("transaction", "metric"),
        "staking": ("transaction", "metric"),
        "visits": ("analytics", "metric"),
        "funnel": ("user_journey", "insight"),
        "campaign": ("campaign", "metric"),
    }


def test_documents_fit_the_fields_of_the_store() -> None:
    metadata = VECTOR_DOCUMENTS.schema["properties"]["metadata"]["properties"]
    for document in everything():
        assert document.source_type in VECTOR_DOCUMENTS.schema["properties"]["sourceType"]["enum"]
        assert document.metadata["dataType"] in metadata["dataType"]["enum"]
        assert document.metadata.get("aggregationLevel", "daily") in metadata["aggregationLevel"]["enum"]
        assert metadata["importance"]["minimum"] <= document.metadata["importance"] <= metadata["importance"]["maximum"]
        assert len(document.summary) <= MAX_SUMMARY_CHARS
        assert all(tag == tag.lower() for tag in document.metadata["tags"])
        assert bson.decode(bson.encode(document.metadata), bson.CodecOptions(tz_aware=True)) == document.metadata


def test_no_text_holds_an_address_a_hash_or_an_id() -> None:
    for document in everything():
        for text in (document.content, document.summary):
            assert not re.search("[0-9a-f]{12}", text)
            assert not any(secret in text for secret in (WALLET, RECIPIENT, TX_HASH, TOKEN_ID, "v-1"))


def test_the_same_figures_make_the_same_document() -> None:
    assert everything() == everything()


def test_texts_stay_short() -> None:
    assert max(count_tokens([document.content for document in everything()])) <= 200


def test_gas_beyond_what_bson_counts_is_still_stored() -> None:
    huge = [
        make_transaction(tx_hash=f"0x{number:064x}", gas_used=2**63 - 1, block_time_ms=chain.ms(2022, 5, 4))
        for number in range(3)
    ]
    put = chain.aggregate(chain.partials(huge), chain.SUBJECTS[0], Period.from_label("2022-05"))
    assert put is not None
    document = describe_transactions(put)
    bson.encode(document.metadata)
    assert facts(document)["figures"]["gas"]["total"] == str(3 * (2**63 - 1))


def test_thousands_of_spam_units_do_not_fill_a_document() -> None:
    spam = [make_transaction(tx_hash=f"0x{number:064x}", unit=f"SPAM{number}") for number in range(2_000)]
    put = chain.aggregate(chain.partials(spam), chain.SUBJECTS[0], Period.from_label("2022-05"))
    assert put is not None
    found = facts(describe_transactions(put))
    assert (found["figures"]["units"], len(found["figures"]["volumes"]), len(found["change"]["volumes"])) == (
        2_000,
        50,
        50,
    )


def test_nobody_gets_figures_of_what_has_no_owner() -> None:
    with pytest.raises(RecordError):
        contract_subject(chain.OWNERS.by_contract_id[OWNERLESS_ID])
    with pytest.raises(RecordError):
        site_subject(Site("s", None, None, None))


def test_a_period_is_complete_once_its_last_moment_is_over() -> None:
    figures = chain.one(rows())
    for zone, complete in (("UTC", True), ("America/New_York", False)):
        made = put_together(
            chain.SUBJECTS[0],
            Period.from_label("2022-05"),
            Calendar(zone),
            [(Period.from_label("2022-05"), figures)],
            {},
            kind=TransactionFigures,
            now_ms=chain.ms(2022, 6, 1),
        )
        assert made is not None
        assert made.complete is complete
