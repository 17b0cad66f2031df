"""The Prefect server, asked how it is: plain requests with a short patience, so that a look never hangs on it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import httpx
from pydantic import SecretStr

from tasks.domain.errors import TerminalError, TransientError

_UNAUTHORIZED = (401, 403)


@dataclass(frozen=True, slots=True)
class PrefectRun:
    """A flow run as the server knows it; ``seconds`` is for how long it ran."""

    id: str
    name: str
    state_type: str
    state_name: str
    message: str
    expected: datetime
    seconds: float


class PrefectServer:
    """A server by the address of its API; ``auth`` is PREFECT_API_AUTH_STRING, where it asks for one.

    Raises ``TransientError`` where it doesn't answer within ``timeout_seconds``, ``TerminalError`` where it refuses.
    """

    def __init__(self, url: str, *, auth: SecretStr | None = None, timeout_seconds: float = 5.0) -> None:
        self.url = url.rstrip("/")
        self._auth = auth
        self._timeout_seconds = timeout_seconds

    def check(self) -> str:
        """Return its version, after it said that it and its database are well."""
        self._ask("GET", "/ready")
        return str(self._ask("GET", "/admin/version"))

    def count_workers(self, pool: str) -> tuple[int, bool]:
        """Return how many workers of a pool are online, and whether the pool is paused."""
        found = self._ask("GET", f"/work_pools/{pool}")
        workers = self._ask("POST", f"/work_pools/{pool}/workers/filter", {"limit": 200})
        return sum(worker.get("status") == "ONLINE" for worker in workers), bool(found.get("is_paused"))

    def count_waiting(self, now: datetime) -> int:
        """Return how many runs should have begun by now and did not: late, or taken by a worker and not started."""
        wanted = {
            "state": {"type": {"any_": ["SCHEDULED", "PENDING"]}},
            "expected_start_time": {"before_": now.astimezone(UTC).isoformat()},
        }
        return int(self._ask("POST", "/flow_runs/count", {"flow_runs": wanted}))

    def read_runs(self, since: datetime, *, limit: int = 200) -> list[PrefectRun]:
        """Return the runs that should have begun since then, the newest first; at most so many."""
        body = {
            "flow_runs": {"expected_start_time": {"after_": since.astimezone(UTC).isoformat()}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": limit,
        }
        rows = self._ask("POST", "/flow_runs/filter", body)
        return [
            PrefectRun(
                id=str(row["id"]),
                name=str(row["name"]),
                state_type=str(row["state_type"]),
                state_name=str(row["state_name"]),
                message=str((row.get("state") or {}).get("message") or ""),
                expected=datetime.fromisoformat(row["expected_start_time"]),
                seconds=float(row.get("total_run_time") or 0.0),
            )
            for row in rows
        ]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {}
        if self._auth is not None:
            word = base64.b64encode(self._auth.get_secret_value().encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        try:
            with httpx.Client(timeout=self._timeout_seconds, trust_env=not _is_local(self.url)) as client:
                response = client.request(method, f"{self.url}{path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise TransientError(f"the Prefect server {self.url} does not answer ({type(error).__name__})") from None
        if response.status_code in _UNAUTHORIZED:
            raise TerminalError("the Prefect server refuses us: check PREFECT_API_AUTH_STRING")
        if not response.is_success:
            raise TransientError(f"the Prefect server answered {response.status_code} to {path}")
        try:
            return response.json()
        except ValueError:
            raise TransientError(f"{self.url} does not answer like a Prefect server") from None


def _is_local(url: str) -> bool:
    """Return whether an address is of this machine: what lies between is then no proxy's business."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
