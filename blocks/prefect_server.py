"""The Prefect server, asked how it is: plain requests with a short patience, so that a look never hangs on it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
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
    """A flow run as the server knows it; ``seconds`` is for how long it ran, or runs."""

    id: str
    name: str
    flow: str
    state_type: str
    state_name: str
    message: str
    expected: datetime | None
    began: datetime | None
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

    def count_runs(self, states: Sequence[str], *, since: datetime | None = None) -> int:
        """Return how many runs are in states of these types, or only those of them that began since then."""
        wanted: dict[str, Any] = {"state": {"type": {"any_": list(states)}}}
        if since is not None:
            wanted["start_time"] = {"after_": since.astimezone(UTC).isoformat()}
        return int(self._ask("POST", "/flow_runs/count", {"flow_runs": wanted}))

    def read_runs(self, states: Sequence[str], *, sort: str, limit: int) -> list[PrefectRun]:
        """Return runs in states of these types, sorted as the server names it; at most so many."""
        wanted = {"state": {"type": {"any_": list(states)}}}
        rows = self._ask("POST", "/flow_runs/filter", {"flow_runs": wanted, "sort": sort, "limit": limit})
        ids = sorted({str(row["flow_id"]) for row in rows})
        flows = self._ask("POST", "/flows/filter", {"flows": {"id": {"any_": ids}}}) if ids else []
        names = {flow["id"]: str(flow["name"]) for flow in flows}
        return [_run(row, names.get(row["flow_id"], "")) for row in rows]

    def read_schedules(self) -> dict[str, bool]:
        """Return the deployments that have schedules, and whether each of these is on."""
        rows = self._ask("POST", "/deployments/filter", {"limit": 200})
        return {
            str(row["name"]): not row.get("paused") and all(one["active"] for one in row["schedules"])
            for row in rows
            if row.get("schedules")
        }

    def find_clear_secrets(self) -> list[str]:
        """Return the blocks of ours from which the server gives a secret to whoever may ask it, and doesn't hide it."""
        body = {"limit": 200, "include_secrets": False}
        found = []
        for row in self._ask("POST", "/block_documents/filter", body):
            kind = row.get("block_type") or {}
            secrets = (row.get("block_schema") or {}).get("fields", {}).get("secret_fields") or ()
            if not str(kind.get("slug", "")).startswith("cryptique"):
                continue
            for name in secrets:
                value = row["data"].get(name)
                if isinstance(value, str) and value.strip("*"):
                    found.append(f"{kind['slug']}/{row['name']}")
        return found

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


def _run(row: Mapping[str, Any], flow: str) -> PrefectRun:
    began, expected = row.get("start_time"), row.get("expected_start_time")
    return PrefectRun(
        id=str(row["id"]),
        name=str(row["name"]),
        flow=flow,
        state_type=str(row["state_type"]),
        state_name=str(row["state_name"]),
        message=str((row.get("state") or {}).get("message") or ""),
        expected=None if expected is None else datetime.fromisoformat(expected),
        began=None if began is None else datetime.fromisoformat(began),
        # What runs has no total yet but an estimate.
        seconds=float(row.get("estimated_run_time") or row.get("total_run_time") or 0.0),
    )


def _is_local(url: str) -> bool:
    """Return whether an address is of this machine: what lies between is then no proxy's business."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
