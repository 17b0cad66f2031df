"""Servers that are killed and come back: at the same port, with the data that they had written by then."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deployments.embedded import REPLICA_SET, LocalServer, _mongod, _prefect_server, stop_local_servers


class MortalServer:
    """A local server of a folder of its own."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self._started: Future[int] | None = None
        self._pool = ThreadPoolExecutor(1)
        self.port = 0

    def start(self) -> None:
        """Start it, or find it running, and return when it answers. It stays until it is killed or stopped."""
        with self._server.used(keep=True) as port:
            assert self.port in (0, port), f"the {self._server.label} came back at another port"
            self.port = port

    def kill(self, *, back_after_s: float) -> None:
        """Kill it and all it started, without a word, and start it again after a while, in another thread."""
        state = self._server._read_state()
        assert state is not None
        assert state.pid is not None
        os.killpg(state.pid, signal.SIGKILL)
        while self._server.is_running():
            time.sleep(0.005)

        def come_back() -> int:
            time.sleep(back_after_s)
            self.start()
            return self.port

        self._started = self._pool.submit(come_back)

    @property
    def is_up(self) -> bool:
        """Return whether it answers, as far as its last start goes. Raises what that start raised."""
        if self._started is not None and self._started.done():
            self._started.result()
            self._started = None
        return self._started is None

    def close(self) -> None:
        """Wait for a start that is under way."""
        self._pool.shutdown(wait=True)


class Place:
    """A mongod and a Prefect server that can be killed, alone or together."""

    def __init__(self, home: Path) -> None:
        self.mongod = MortalServer(_mongod(home, cache_gb=0.25))
        # Not at its usual port, which another server takes while this one is dead.
        self.prefect = MortalServer(replace(_prefect_server(home), preferred_port=None))

    @property
    def servers(self) -> dict[str, MortalServer]:
        """Return the servers by the name under which they are killed."""
        return {"mongod": self.mongod, "prefect": self.prefect}

    @property
    def is_up(self) -> bool:
        """Return whether both answer."""
        return self.mongod.is_up and self.prefect.is_up

    @property
    def mongo_uri(self) -> str:
        """Return where mongod answers."""
        return f"mongodb://127.0.0.1:{self.mongod.port}/?replicaSet={REPLICA_SET}"

    @property
    def prefect_url(self) -> str:
        """Return where the Prefect server's API answers."""
        return f"http://127.0.0.1:{self.prefect.port}/api"


@contextmanager
def open_place(home: Path) -> Iterator[Place]:
    """Yield both servers, started at once; stop them at the end."""
    place = Place(home)
    try:
        with ThreadPoolExecutor(2) as both:
            for started in [both.submit(server.start) for server in place.servers.values()]:
                started.result()
        yield place
    finally:
        for server in place.servers.values():
            server.close()
        stop_local_servers(home)
