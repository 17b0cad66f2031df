"""Who owns a record: its contract's or its website's team. One without an owner is refused, never given to somebody.

**The rule of the site.** A transaction has no site, and its team may have several. A team with exactly one website
gives its transactions that website's ``siteId``. Every other team gives them the scope ``team:<team id>``, and a
search for one site of the team includes that scope. Nothing is ever copied once per site, so nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeGuard

from bson import ObjectId

from tasks.domain.chains import Chain, find_chain
from tasks.domain.errors import RecordError
from tasks.domain.texts import clean_name

MAIN, ESCROW = "main", "escrow"
#: Why a record has no owner; none of them says that the record itself is bad.
OWNER_CODES = frozenset(
    {
        "contract_missing",
        "contract_unknown",
        "contract_conflict",
        "site_missing",
        "site_unknown",
        "site_conflict",
        "owner_missing",
        "owner_unknown",
    }
)


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

    @property
    def holder_id(self) -> str:
        """Return what names it in accounts, beside the websites."""
        return self.contract_id


@dataclass(frozen=True, slots=True)
class Site:
    """A website with what its records inherit; ``owner_error`` says why it has no owner."""

    site_id: str
    name: str | None
    domain: str | None
    team_id: str | None
    owner_error: RecordError | None = None

    @property
    def holder_id(self) -> str:
        """Return what names it in accounts, beside the contracts."""
        return self.site_id


#: Through what a record gets its team.
Holder = Contract | Site


def team_scope(team_id: str) -> str:
    """Return the ``siteId`` of what belongs to a whole team and to no single site."""
    return f"team:{team_id}"


def site_filter(site_id: str, team_id: str) -> list[str]:
    """Return the values of ``siteId`` that a search for one site may see: its own and its team's."""
    return [site_id, team_scope(team_id)]


@dataclass(slots=True)
class Owners:
    """Looks up contracts and websites; small enough to hold whole (some hundred bytes each)."""

    by_contract_id: dict[str, Contract] = field(default_factory=dict)
    by_object_id: dict[str, Contract] = field(default_factory=dict)
    by_site_id: dict[str, Site] = field(default_factory=dict)

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
        holders: dict[str, set[str]] = {}
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
                    holders.setdefault(site_id, set()).add(team_id)
        for site in websites:
            if site.get("team") and (site_id := _site_id(site)):
                site_teams.setdefault(str(site["team"]), set()).add(site_id)
                holders.setdefault(site_id, set()).add(str(site["team"]))
        owners = cls()
        for site in websites:
            if site_id := _site_id(site):
                owners.by_site_id[site_id] = _site(site, holders.get(site_id, set()), team_ids)
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
        """Return text that changes whenever the owner, site or description of a contract or a website does."""
        rows = sorted(
            (key, repr(astuple(replace(holder, owner_error=None))))
            for holders in (self.by_object_id, self.by_site_id)
            for key, holder in holders.items()
        )
        return blake2b(repr(rows).encode(), digest_size=12).hexdigest()

    def find(self, contract_id: object, contract: object) -> Contract:
        """Return the contract of a transaction, by ``contractId`` or by the object id ``contract``.

        Raises ``RecordError`` if it has none, if no such contract exists, if the two name different contracts
        (one of them would show the row to the wrong team), or if the contract has no team.
        """
        by_id = by_object = None
        if _is_text(contract_id):
            by_id = self.by_contract_id.get(contract_id)
        if isinstance(contract, ObjectId) or _is_text(contract):
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

    def find_holder(self, holder_id: str) -> Holder | None:
        """Return the contract or website of this name, or None where there is none that a team owns."""
        found: Holder | None = self.by_site_id.get(holder_id) or self.by_contract_id.get(holder_id)
        return None if found is None or found.owner_error is not None or found.team_id is None else found

    def find_site(self, site_id: object) -> Site:
        """Return the website that a record names by its ``siteId``.

        Raises ``RecordError`` if it names none, if no such website exists (those of tests don't), if websites of two
        teams share the id, or if the website has no team.
        """
        if not _is_text(site_id):
            raise RecordError("site_missing", "the record names no website, so no team owns it: set siteId")
        found = self.by_site_id.get(site_id)
        if found is None:
            raise RecordError(
                "site_unknown",
                f"no website has the siteId {site_id[:60]!r}, so no team owns the record: it is a test's, or gone",
            )
        if found.owner_error is not None:
            raise RecordError(found.owner_error.code, found.owner_error.reason)
        return found


def _site_id(site: Mapping[str, Any]) -> str | None:
    site_id = site.get("siteId")
    return site_id if _is_text(site_id) else None


def _site(record: Mapping[str, Any], holders: set[str], team_ids: set[str]) -> Site:
    site_id = record["siteId"]
    team_id = next(iter(holders)) if len(holders) == 1 else None
    error = None
    if len(holders) > 1:
        error = RecordError(
            "site_conflict",
            f"two teams have a website with the siteId {site_id[:60]}: one would see the other's records",
        )
    elif team_id is None:
        error = RecordError(
            "owner_missing", f"website {site_id[:60]} has no team, and none lists it, so nobody may see its records"
        )
    elif team_id not in team_ids:
        error = RecordError(
            "owner_unknown", f"website {site_id[:60]} belongs to team {team_id[:60]}, which does not exist"
        )
    elif not ObjectId.is_valid(team_id):
        error = RecordError("owner_invalid", f"website {site_id[:60]} belongs to team {team_id[:60]}: no ObjectId")
    return Site(
        site_id=site_id,
        name=clean_name(record.get("Name")),
        domain=clean_name(record.get("Domain")),
        team_id=team_id,
        owner_error=error,
    )


def _shared(contract_id: str) -> RecordError:
    return RecordError(
        "contract_conflict",
        f"two smart contracts of different teams have the id {contract_id}: "
        "one of them would show the record to the wrong team",
    )


def _contract(record: Mapping[str, Any], team_ids: set[str], site_teams: dict[str, set[str]]) -> Contract | None:
    contract_id = record.get("contractId")
    if not _is_text(contract_id):
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


def _is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is text, and some. BSON's code is a kind of ``str`` that can't be looked up by."""
    return type(value) is str and bool(value)
