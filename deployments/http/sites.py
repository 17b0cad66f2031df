"""Which websites a team has, as the source says; looked up now and then, because every request asks."""

from __future__ import annotations

import threading
import time

from blocks.mongo import MongoSource
from deployments.http.problems import ProblemError
from tasks.domain.errors import PipelineError
from tasks.domain.owners import Owners, Site

_KEPT_S = 30.0
#: While the source does not answer, what it said last counts so long.
_STALE_S = 300.0


class TeamSites:
    """Websites by their id. Safe to share between threads."""

    def __init__(self, source: MongoSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._owners = Owners.from_records([], [], [])

    def require(self, team_id: str, site_id: str) -> Site:
        """Return a team's website. A site of another team and one that is not there are the same 404.

        Raises ``ProblemError``, and the source's errors where it has not answered for minutes.
        """
        site = self.owners().by_site_id.get(site_id)
        if site is None or site.team_id != team_id:
            raise ProblemError(404, "this team has no such site")
        return site

    def owners(self) -> Owners:
        """Return whose contracts and websites are whose. Errors are the source's, as ``require`` raises them."""
        # One thread reads, and the others wait for it: a thousand would ask the same.
        with self._lock:
            age = time.monotonic() - self._read_at
            if age < _KEPT_S:
                return self._owners
            try:
                self._owners = self._source.load_owners()
                self._read_at = time.monotonic()
            except PipelineError:
                if age > _STALE_S:
                    raise
            return self._owners
