"""Subject: whom a document of figures is about, with the owner and the words that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.domain.aggregates.campaigns import TrackedCampaign
from tasks.domain.aggregates.scopes import Scope
from tasks.domain.chains import find_chain
from tasks.domain.errors import RecordError
from tasks.domain.owners import ESCROW, Contract, Site, team_scope
from tasks.domain.transaction_documents import MAX_NAME_CHARS, shown_name


@dataclass(frozen=True, slots=True)
class Subject:
    """``name`` is what texts call it, ``tags`` are its own lower-case words; ``chain_id`` is None where it has none."""

    scope: Scope
    team_id: str
    site_id: str
    name: str
    tags: tuple[str, ...] = ()
    chain_id: int | None = None


def contract_subject(contract: Contract) -> Subject:
    """Return the subject of one contract. Raises ``RecordError`` where it has no owner."""
    _require_owner(contract)
    assert contract.team_id is not None
    assert contract.site_id is not None
    kind = "staking contract" if contract.type == ESCROW else "contract"
    name = shown_name(contract.name)
    words = f"an unlabelled {kind}" if name is None else f"{name} ({kind})" if contract.type == ESCROW else name
    chain = contract.chain
    return Subject(
        Scope.contract(contract.contract_id),
        contract.team_id,
        contract.site_id,
        f"{words} on {chain.name}" if chain else words,
        (chain.name.lower(),) if chain else (),
        chain.chain_id if chain else None,
    )


def chain_subject(team_id: str, site_id: str, chain: str | None) -> Subject:
    """Return the subject of a team's contracts on one chain; ``site_id`` is that of its transactions."""
    known = find_chain(chain)
    return Subject(
        Scope.chain(team_id, chain),
        team_id,
        site_id,
        f"all contracts of the team on {chain or 'an unknown chain'}",
        (chain.lower(),) if chain else (),
        known.chain_id if known else None,
    )


def team_subject(team_id: str, site_id: str | None = None, *, of: str = "contracts") -> Subject:
    """Return the subject of a whole team: of all its contracts, or ``of="websites"``.

    ``site_id`` is that of its transactions (``tasks/domain/owners.py``); without one it is the scope of the team.
    """
    return Subject(Scope.team(team_id), team_id, site_id or team_scope(team_id), f"all {of} of the team")


def site_subject(site: Site) -> Subject:
    """Return the subject of one website. Raises ``RecordError`` where it has no owner."""
    _require_owner(site)
    assert site.team_id is not None
    return Subject(Scope.site(site.site_id), site.team_id, site.site_id, _site_name(site))


def campaign_subject(site: Site, campaign: TrackedCampaign) -> Subject:
    """Return the subject of a campaign of a website. Raises ``RecordError`` where the website has no owner."""
    _require_owner(site)
    assert site.team_id is not None
    name = (campaign.name or campaign.utm_campaign or "an unnamed campaign")[:MAX_NAME_CHARS]
    scope = Scope.campaign(site.site_id, campaign.campaign_id)
    return Subject(scope, site.team_id, site.site_id, f"{name} of {_site_name(site)}")


def _site_name(site: Site) -> str:
    name, domain = (site.name or "")[:MAX_NAME_CHARS], (site.domain or "")[:MAX_NAME_CHARS]
    if name and domain and name != domain:
        return f"{name} ({domain})"
    return name or domain or "an unnamed website"


def _require_owner(holder: Contract | Site) -> None:
    if holder.owner_error is not None:
        raise RecordError(holder.owner_error.code, holder.owner_error.reason)
    if holder.team_id is None:
        raise RecordError("owner_missing", f"{holder.holder_id[:60]} has no team, so nobody may see its figures")
