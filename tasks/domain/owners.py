"""Who owns a transaction: contract -> team -> sites. A row without an owner is refused, never given to somebody.

**The rule of the site.** A transaction has no site, and its team may have several. A team with exactly one website
gives its transactions that website's ``siteId``. Every other team gives them the scope ``team:<team id>``, and a
search for one site of the team includes that scope. Nothing is ever copied once per site, so nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from hashlib import blake2b
from typing import Any

from bson import ObjectId

from tasks.domain.chains import Chain, find_chain
from tasks.domain.errors import RecordError
from tasks.domain.texts import clean_name

MAIN, ESCROW = "main", "escrow"
#: Why a record has no owner; none of them says that the record itself is bad.
OWNER_CODES = frozenset({"contract_missing", "contract_unknown", "contract_conflict", "owner_missing", "owner_unknown"})


@dataclass(frozen=True, slots=True)
class Contract:
    """A tracked contract with what its transactions inherit; ``owner_error`` says why it has no owner."""

    contract_id: str
    name: str | None
    symbol: str | None
    type: str
    chain: Chain | None
    team_id: str | None
    site_id: str | None
    owner_error: RecordError | None = None


def team_scope(team_id: str) -> str:
    """Return the ``siteId`` of what belongs to a whole team and to no single site."""
    return f"team:{team_id}"


def site_filter(site_id: str, team_id: str) -> list[str]:
    """Return the values of ``siteId`` that a search for one site may see: its own and its team's."""
    return [site_id, team_scope(team_id)]


@dataclass(slots=True)
class Owners:
    """Looks up contracts; small enough to hold whole (some hundred bytes a contract)."""

    by_contract_id: dict[str, Contract] = field(default_factory=dict)
    by_object_id: dict[str, Contract] = field(default_factory=dict)

    @classmethod
    def from_records(
        cls,
        contracts: Iterable[Mapping[str, Any]],
        teams: Iterable[Mapping[str, Any]],
        websites: Iterable[Mapping[str, Any]],
    ) -> Owners:
        """Join the three collections. A website counts for a team if either of the two names the other."""
        team_ids: set[str] = set()
        site_teams: dict[str, set[str]] = {}
        websites = list(websites)
        by_oid = {str(site["_id"]): site for site in websites}
        for team in teams:
            team_id = str(team["_id"])
            team_ids.add(team_id)
            listed = team.get("websites")
            for site_oid in listed if isinstance(listed, list) else ():
                site = by_oid.get(str(site_oid))
                # The website's own `team` decides; the team's list is the fallback for sites without one.
                if site is not None and not site.get("team") and (site_id := _site_id(site)):
                    site_teams.setdefault(team_id, set()).add(site_id)
        for site in websites:
            if site.get("team") and (site_id := _site_id(site)):
                site_teams.setdefault(str(site["team"]), set()).add(site_id)
        owners = cls()
        for record in contracts:
            contract = _contract(record, team_ids, site_teams)
            if contract is not None:
                twin = owners.by_contract_id.get(contract.contract_id)
                if twin is not None and twin.team_id != contract.team_id:
                    contract = replace(contract, owner_error=_shared(contract.contract_id))
                owners.by_contract_id[contract.contract_id] = contract
                owners.by_object_id[str(record["_id"])] = contract
        return owners

    def digest(self) -> str:
        """Return text that changes whenever a contract's owner, site or description does."""
        rows = sorted(
            (object_id, astuple(replace(contract, owner_error=None)))
            for object_id, contract in self.by_object_id.items()
        )
        return blake2b(repr(rows).encode(), digest_size=12).hexdigest()

    def find(self, contract_id: object, contract: object) -> Contract:
        """Return the contract of a transaction, by ``contractId`` or by the object id ``contract``.

        Raises ``RecordError`` if it has none, if no such contract exists, if the two name different contracts
        (one of them would show the row to the wrong team), or if the contract has no team.
        """
        by_id = by_object = None
        if isinstance(contract_id, str) and contract_id:
            by_id = self.by_contract_id.get(contract_id)
        if isinstance(contract, ObjectId) or (isinstance(contract, str) and contract):
            by_object = self.by_object_id.get(str(contract).lower())
        found = by_id or by_object
        if found is None:
            if not contract_id and not contract:
                raise RecordError(
                    "contract_missing", "the record names no contract, so no team owns it: set contractId"
                )
            shown = contract_id or contract
            raise RecordError(
                "contract_unknown",
                f"no smart contract has the id {str(shown)[:60]!r}, so no team owns the record: "
                "it was deleted, or never added",
            )
        if by_id is not None and by_object is not None and by_id is not by_object:
            raise RecordError(
                "contract_conflict",
                f"contractId names {by_id.contract_id} but contract names {by_object.contract_id}: "
                "one of them would show the record to the wrong team",
            )
        if found.owner_error is not None:
            raise RecordError(found.owner_error.code, found.owner_error.reason)
        return found


def _site_id(site: Mapping[str, Any]) -> str | None:
    site_id = site.get("siteId")
    return site_id if isinstance(site_id, str) and site_id else None


def _shared(contract_id: str) -> RecordError:
    return RecordError(
        "contract_conflict",
        f"two smart contracts of different teams have the id {contract_id}: "
        "one of them would show the record to the wrong team",
    )


def _contract(record: Mapping[str, Any], team_ids: set[str], site_teams: dict[str, set[str]]) -> Contract | None:
    contract_id = record.get("contractId")
    if not isinstance(contract_id, str) or not contract_id:
        return None
    raw_team = record.get("team")
    team_id = str(raw_team) if raw_team else None
    error = None
    if team_id is None:
        error = RecordError(
            "owner_missing", f"smart contract {contract_id} has no team, so nobody may see its transactions"
        )
    elif team_id not in team_ids:
        error = RecordError(
            "owner_unknown", f"smart contract {contract_id} belongs to team {team_id[:60]}, which does not exist"
        )
    elif not ObjectId.is_valid(team_id):
        error = RecordError(
            "owner_invalid",
            f"smart contract {contract_id} belongs to team {team_id[:60]}, whose id is no ObjectId: "
            "a vector document refers to its team by one",
        )
    sites = site_teams.get(team_id or "", set())
    kind = record.get("contractType")
    return Contract(
        contract_id=contract_id,
        name=clean_name(record.get("name")),
        symbol=clean_name(record.get("tokenSymbol")),
        type=ESCROW if kind == ESCROW else MAIN,
        chain=find_chain(record.get("blockchain")),
        team_id=team_id,
        site_id=None if team_id is None else (next(iter(sites)) if len(sites) == 1 else team_scope(team_id)),
        owner_error=error,
    )
