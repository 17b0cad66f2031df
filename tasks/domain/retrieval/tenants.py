"""Tenant: whose documents may be seen. It comes from a token or from an operator, and never from a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bson import ObjectId

from tasks.domain.owners import site_filter
from tasks.domain.retrieval.filters import AnyOf, Filter


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose documents may be seen. ``team_id`` None means every team, which only an operator may ask for."""

    team_id: str | None
    site_id: str | None = None

    def sites(self) -> list[str] | None:
        """Return the values of ``siteId`` that are seen, or None for all: a site's own, and its team's of no site."""
        if self.site_id is None:
            return None
        return [self.site_id] if self.team_id is None else site_filter(self.site_id, self.team_id)

    def criteria(self) -> dict[str, Any]:
        """Return the MongoDB filter."""
        criteria: dict[str, Any] = {"status": "active"}
        if self.team_id is not None:
            criteria["teamId"] = ObjectId(self.team_id)
        sites = self.sites()
        if sites is not None:
            criteria["siteId"] = sites[0] if len(sites) == 1 else {"$in": sites}
        return criteria

    def filter(self) -> Filter:
        """Return the same bounds for an index."""
        chosen = [] if self.team_id is None else [AnyOf("team", (self.team_id,))]
        sites = self.sites()
        if sites is not None:
            chosen.append(AnyOf("site", tuple(sites)))
        return Filter(tuple(chosen))
