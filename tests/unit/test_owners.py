"""Owners: a row belongs to its contract's team, and to nobody where that can't be told."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners, site_filter, team_scope
from tests.builders import (
    ESCROW_OID,
    OTHER_TEAM_ID,
    OWNERLESS_ID,
    SHARED_ID,
    SITE_ID,
    TEAM_ID,
    TOKEN_ID,
    TOKEN_OID,
    make_contract,
    make_owners,
)


def code_of(owners: Owners, contract_id: object, contract: object = None) -> str:
    with pytest.raises(RecordError) as refused:
        owners.find(contract_id, contract)
    assert len(refused.value.reason) < 400
    return refused.value.code


def site_of(websites: list[dict[str, Any]], teams: list[dict[str, Any]] | None = None) -> str | None:
    owners = Owners.from_records([make_contract()], teams or [{"_id": TEAM_ID}], websites)
    return owners.find(TOKEN_ID, None).site_id


def test_a_contract_is_found_by_its_id_or_its_object_id_as_text_or_not() -> None:
    owners = make_owners()
    by_id = owners.find(TOKEN_ID, None)
    assert by_id is owners.find(None, TOKEN_OID)
    assert by_id is owners.find("", str(TOKEN_OID).upper())
    assert by_id is owners.find(TOKEN_ID, TOKEN_OID)
    assert by_id.team_id == str(TEAM_ID)


def test_one_reference_is_enough_where_the_other_leads_nowhere() -> None:
    owners = make_owners()
    assert owners.find(TOKEN_ID, "not-an-object-id").contract_id == TOKEN_ID
    assert owners.find(TOKEN_ID, ObjectId()).contract_id == TOKEN_ID
    assert owners.find("contract_0_gone", TOKEN_OID).contract_id == TOKEN_ID
    assert owners.find(42, TOKEN_OID).contract_id == TOKEN_ID


def test_two_references_to_different_contracts_are_refused() -> None:
    assert code_of(make_owners(), TOKEN_ID, ESCROW_OID) == "contract_conflict"


@pytest.mark.parametrize(
    ("contract_id", "contract", "code"),
    [
        (None, None, "contract_missing"),
        ("", "", "contract_missing"),
        ("contract_0_gone", None, "contract_unknown"),
        (None, ObjectId(), "contract_unknown"),
        (17, None, "contract_unknown"),
        (["x"], {"y": 1}, "contract_unknown"),
        ("x" * 100_000, None, "contract_unknown"),
        (OWNERLESS_ID, None, "owner_missing"),
    ],
)
def test_a_row_that_nobody_owns_is_refused_with_its_reason(contract_id: object, contract: object, code: str) -> None:
    assert code_of(make_owners(), contract_id, contract) == code


def test_the_only_site_of_a_team_gets_its_rows_and_several_share_the_teams_scope() -> None:
    owners = make_owners()
    assert owners.find(TOKEN_ID, None).site_id == SITE_ID
    assert owners.find(SHARED_ID, None).site_id == team_scope(str(OTHER_TEAM_ID))
    assert site_of([]) == team_scope(str(TEAM_ID))


def test_a_search_for_one_site_sees_what_belongs_to_the_whole_team() -> None:
    assert site_filter("site-a", str(OTHER_TEAM_ID)) == ["site-a", make_owners().find(SHARED_ID, None).site_id]


def test_a_site_may_name_its_team_as_an_object_id_or_as_text() -> None:
    assert site_of([{"_id": 1, "siteId": "one", "team": TEAM_ID}]) == "one"
    assert site_of([{"_id": 1, "siteId": "one", "team": str(TEAM_ID)}]) == "one"


def test_the_teams_list_counts_only_for_sites_that_name_no_team() -> None:
    listed = [{"_id": TEAM_ID, "websites": [1, 2, 3]}, {"_id": OTHER_TEAM_ID}]
    mine = {"_id": 1, "siteId": "mine"}
    theirs = {"_id": 2, "siteId": "theirs", "team": OTHER_TEAM_ID}
    assert site_of([mine, theirs], listed) == "mine"
    assert site_of([mine, {**theirs, "team": None}], listed) == team_scope(str(TEAM_ID))


@pytest.mark.parametrize("site_id", [None, "", 17, ["a"], {"a": 1}])
def test_a_site_without_a_readable_id_is_no_site(site_id: object) -> None:
    sites = [{"_id": 1, "siteId": site_id, "team": TEAM_ID}, {"_id": 2, "siteId": "real", "team": TEAM_ID}]
    assert site_of(sites) == "real"
    assert site_of(sites[:1]) == team_scope(str(TEAM_ID))
    assert site_of([{"_id": 1, "siteId": site_id}], [{"_id": TEAM_ID, "websites": [1]}]) == team_scope(str(TEAM_ID))


@pytest.mark.parametrize("websites", [None, 17, "abc", {"a": 1}])
def test_a_teams_list_of_sites_that_is_no_list_is_empty(websites: object) -> None:
    assert site_of([], [{"_id": TEAM_ID, "websites": websites}]) == team_scope(str(TEAM_ID))


@pytest.mark.parametrize(
    ("team", "code"),
    [
        (None, "owner_missing"),
        ("", "owner_missing"),
        (ObjectId(), "owner_unknown"),
        ("placeholder", "owner_unknown"),
        ({"_id": TEAM_ID}, "owner_unknown"),
        (["x" * 10_000], "owner_unknown"),
        ("acme", "owner_invalid"),
    ],
)
def test_a_contract_without_a_real_team_has_no_owner(team: object, code: str) -> None:
    owners = Owners.from_records([make_contract(team=team)], [{"_id": TEAM_ID}, {"_id": "acme"}], [])
    assert code_of(owners, TOKEN_ID) == code


def test_a_contract_may_name_its_team_as_text() -> None:
    owners = Owners.from_records([make_contract(team=str(TEAM_ID))], [{"_id": TEAM_ID}], [])
    assert owners.find(TOKEN_ID, None).team_id == str(TEAM_ID)


@pytest.mark.parametrize("contract_id", [None, "", 17, ["x"]])
def test_a_contract_without_an_id_claims_no_rows(contract_id: object) -> None:
    owners = Owners.from_records([make_contract(contractId=contract_id)], [{"_id": TEAM_ID}], [])
    assert code_of(owners, contract_id, TOKEN_OID) == "contract_unknown"


def test_an_id_that_two_teams_contracts_share_shows_its_rows_to_neither() -> None:
    twins = [make_contract(), make_contract(_id=ObjectId(), team=OTHER_TEAM_ID)]
    owners = Owners.from_records(twins, [{"_id": TEAM_ID}, {"_id": OTHER_TEAM_ID}], [])
    assert code_of(owners, TOKEN_ID) == "contract_conflict"


def test_each_refusal_is_an_error_of_its_own() -> None:
    owners = make_owners()
    raised = []
    for _ in range(2):
        with pytest.raises(RecordError) as refused:
            owners.find(OWNERLESS_ID, None)
        raised.append(refused.value)
    assert raised[0] is not raised[1]


def test_a_contract_lends_its_cleaned_name_symbol_type_and_chain() -> None:
    raw = make_contract(name=" Te\u202eth\x00er ", tokenSymbol="", contractType="odd", blockchain="bsc")
    contract = Owners.from_records([raw], [{"_id": TEAM_ID}], []).find(TOKEN_ID, None)
    assert (contract.name, contract.symbol, contract.type) == ("Teth er", None, "main")
    assert contract.chain is not None
    assert contract.chain.name == "BNB Chain"
