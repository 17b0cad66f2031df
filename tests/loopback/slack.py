"""A webhook on 127.0.0.1, over real HTTP, with faults on demand.

``LoopbackSlack`` keeps every request. ``faults`` plans the answers by number of the request, from 0: an int is a
status (429 with ``retry_after``), ``"drop"`` closes the connection without an answer, ``"hang"`` answers only when the
server stops, ``"page"`` is a web page with status 200. What isn't planned is taken as Slack takes it.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Fault = int | str | None
Faults = Sequence[Fault] | Callable[[int], Fault]


@dataclass(frozen=True, slots=True)
class Posted:
    """One request. ``taken`` says whether it was answered as delivered."""

    path: str
    content_type: str
    body: bytes
    taken: bool

    @property
    def payload(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def text(self) -> str:
        """All that a reader could see, and what the JSON says besides."""
        return json.dumps(self.payload, ensure_ascii=False)


class LoopbackSlack:
    """The server; a context manager. ``url`` holds a secret in its path, as Slack's do."""

    def __init__(self, *, faults: Faults = (), retry_after: str | None = None, token: str = "planted-token") -> None:
        self.faults: Faults = faults
        self.retry_after = retry_after
        self.token = token
        self.requests: list[Posted] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"slack": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/services/T0/B0/{self.token}"

    @property
    def taken(self) -> list[Posted]:
        """Return the messages that were delivered, in order."""
        with self._lock:
            return [request for request in self.requests if request.taken]

    def __enter__(self) -> LoopbackSlack:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse every connection from now on; the requests stay."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._server.shutdown()
            self._server.server_close()

    def _plan(self, path: str, content_type: str, body: bytes) -> Fault:
        with self._lock:
            index = len(self.requests)
            if callable(self.faults):
                fault = self.faults(index)
            else:
                fault = self.faults[index] if index < len(self.faults) else None
            self.requests.append(Posted(path, content_type, body, fault is None))
        return fault


class _Handler(BaseHTTPRequestHandler):
    slack: LoopbackSlack
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: tests read the requests instead."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.slack._plan(self.path, str(self.headers.get("Content-Type")), body)
        if fault == "drop":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault == "hang":
            self.slack._stopped.wait()
            return
        status = fault if isinstance(fault, int) else 200
        answer = b"<!DOCTYPE html><html></html>" if fault == "page" else b"ok" if status == 200 else b"an_error"
        self.send_response(status)
        if status == 429 and self.slack.retry_after is not None:
            self.send_header("Retry-After", self.slack.retry_after)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
