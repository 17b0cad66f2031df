"""Campaigns: which campaign a visit came through, and what a campaign cost.

Counters that the application stores with a campaign are not used: its bounces grow at every reading, and its totals mix
tokens. Visits, wallets and transactions are counted again from the sessions and from the chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from tasks.domain.aggregates.visits import Visit
from tasks.domain.campaigns import MAX_LABEL_CHARS, Campaign


@dataclass(frozen=True, slots=True)
class TrackedCampaign:
    """What figures need of a campaign. ``cost`` is its budget in ``currency``; None where it has none.

    ``session_ids`` are the records of sessions that the application has listed with it.
    """

    campaign_id: str
    site_id: str
    name: str | None
    utm_id: str | None = None
    utm_campaign: str | None = None
    source: str | None = None
    medium: str | None = None
    cost: Decimal | None = None
    currency: str | None = None
    session_ids: frozenset[str] = field(default_factory=frozenset)


def read_campaign(campaign: Campaign, session_ids: Iterable[object] = ()) -> TrackedCampaign:
    """Return what figures need of a campaign; ``session_ids`` are the ``sessions`` of its record."""
    return TrackedCampaign(
        campaign_id=campaign.record_id,
        site_id=campaign.site_id,
        name=campaign.name,
        utm_id=campaign.utm_id,
        utm_campaign=campaign.utm_campaign,
        source=campaign.source,
        medium=campaign.medium,
        # The shortest text that is the same double: what a person typed.
        cost=None if campaign.cost is None else Decimal(repr(campaign.cost)),
        currency=campaign.currency,
        session_ids=frozenset(map(str, session_ids)),
    )


class Attribution:
    """Finds the campaign of a visit among those of its website; a visit has one at most, so nothing counts twice.

    The first that fits decides: the visit's ``utm_id``; the campaign that lists the session; the campaign's name in the
    address, for visits without ``utm_id`` and for campaigns that have none. Source and medium choose between campaigns
    that fit alike. Where two are still left, nobody can tell, and the visit counts for neither.
    """

    def __init__(self, campaigns: Iterable[TrackedCampaign]) -> None:
        self._by_utm_id: dict[tuple[str, str], list[TrackedCampaign]] = {}
        self._by_name: dict[tuple[str, str], list[TrackedCampaign]] = {}
        self._by_session: dict[tuple[str, str], list[TrackedCampaign]] = {}
        for campaign in campaigns:
            site_id = campaign.site_id
            if campaign.utm_id:
                self._by_utm_id.setdefault((site_id, _folded(campaign.utm_id)), []).append(campaign)
            if campaign.utm_campaign:
                self._by_name.setdefault((site_id, _folded(campaign.utm_campaign)), []).append(campaign)
            for session_id in campaign.session_ids:
                self._by_session.setdefault((site_id, session_id), []).append(campaign)

    def find(self, visit: Visit) -> str | None:
        """Return the campaign's id, or None where the visit came through none, or nobody can tell through which."""
        site_id = visit.site_id
        if visit.utm_id:
            fitting = self._by_utm_id.get((site_id, _folded(visit.utm_id)))
            if fitting:
                return _only(fitting, visit)
        listed = self._by_session.get((site_id, visit.record_id))
        if listed:
            return _only(listed, visit)
        if visit.utm_campaign:
            named = self._by_name.get((site_id, _folded(visit.utm_campaign)), [])
            return _only([campaign for campaign in named if not (visit.utm_id and campaign.utm_id)], visit)
        return None


def _only(fitting: list[TrackedCampaign], visit: Visit) -> str | None:
    if len(fitting) > 1:
        fitting = [
            campaign
            for campaign in fitting
            if _same(campaign.source, visit.utm_source) and _same(campaign.medium, visit.utm_medium)
        ]
    return fitting[0].campaign_id if len(fitting) == 1 else None


def _same(ours: str | None, theirs: str | None) -> bool:
    return _folded(ours or "") == _folded(theirs or "")


def _folded(label: str) -> str:
    # Visits keep more of a long label than campaigns do.
    return label[:MAX_LABEL_CHARS].strip().lower()
