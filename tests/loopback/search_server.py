"""A mongod with vector search, on 127.0.0.1: a real server behind a relay that answers for the search nodes.

It speaks the wire protocol. ``$vectorSearch`` and ``$listSearchIndexes`` are answered here, checked as search nodes
check them and computed exactly over the real collection; every other message goes to the real server as it came.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import bson
import numpy as np
from bson.binary import Binary
from pymongo import MongoClient

from tasks.domain.rows import read_vector

_HEAD = struct.Struct("<iiii")
_OP_MSG = 2013
#: What a search node says of a stage that it can't run.
_BAD_STAGE = 8
_FAILED = 6
_SUPPORTED = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin"})


class SearchServer:
    """Forwards connections to ``uri``; a context manager. ``fields`` are those that filters may hold.

    ``queryable`` says whether the index can be asked, ``fails`` makes each search fail; ``asked`` are the stages.
    """

    def __init__(self, uri: str, host: str, port: int, *, fields: tuple[str, ...], dimensions: int) -> None:
        self._real: MongoClient[dict[str, Any]] = MongoClient(uri, tz_aware=True)
        self._target, self._fields, self._dimensions = (host, port), fields, dimensions
        self.queryable, self.fails = True, False
        self.asked: list[dict[str, Any]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"mongodb://127.0.0.1:{self._listener.getsockname()[1]}/?directConnection=true"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._real.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            threading.Thread(target=self._pipe, args=(server, client), daemon=True).start()
            threading.Thread(target=self._read, args=(client, server), daemon=True).start()

    def _pipe(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _read(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while (head := _exactly(client, _HEAD.size)) is not None:
                length, request, _, code = _HEAD.unpack(head)
                body = _exactly(client, length - _HEAD.size)
                if body is None:
                    break
                answer = self._answer(body) if code == _OP_MSG else None
                if answer is None:
                    server.sendall(head + body)
                else:
                    said = struct.pack("<i", 0) + b"\0" + bson.encode(answer)
                    client.sendall(_HEAD.pack(_HEAD.size + len(said), 0, request, _OP_MSG) + said)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answer(self, body: bytes) -> dict[str, Any] | None:
        if body[4] != 0:
            return None
        (size,) = struct.unpack_from("<i", body, 5)
        command = bson.decode(body[5 : 5 + size])
        pipeline = command.get("pipeline") or []
        if "aggregate" not in command or not pipeline:
            return None
        if "$listSearchIndexes" in pipeline[0]:
            found = [{"name": "vector_index", "queryable": self.queryable, "status": "READY"}]
            return _cursor(command, found if self.queryable is not None else [])
        if "$vectorSearch" in pipeline[0]:
            return self._search(command, pipeline[0]["$vectorSearch"])
        return None

    def _search(self, command: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(stage)
        fault = self._fault(stage)
        if fault is not None:
            return {
                "ok": 0.0,
                "errmsg": fault,
                "code": _FAILED if self.fails else _BAD_STAGE,
                "codeName": "UnknownError",
            }
        rows = list(self._real[command["$db"]][command["aggregate"]].find(stage["filter"], {"embedding": 1}))
        asked = read_vector(stage["queryVector"])
        scored = [((1 + float(read_vector(row["embedding"]) @ asked)) / 2, row["_id"]) for row in rows]
        scored.sort(key=lambda one: (-one[0], one[1]))
        return _cursor(command, [{"_id": row_id, "score": score} for score, row_id in scored[: stage["limit"]]])

    def _fault(self, stage: dict[str, Any]) -> str | None:
        if self.fails:
            return "Error connecting to mongot"
        if stage.keys() - {"index", "path", "queryVector", "numCandidates", "limit", "filter"}:
            return "unrecognized field"
        if stage["index"] != "vector_index" or stage["path"] != "embedding":
            return "Path 'embedding' needs to be indexed as vector"
        vector = stage["queryVector"]
        if not isinstance(vector, Binary) or len(np.asarray(vector.as_vector().data)) != self._dimensions:
            return f"vector field is indexed with {self._dimensions} dimensions"
        if not 1 <= stage["limit"] <= stage["numCandidates"] <= 10_000:
            return '"limit" must be at most "numCandidates", and that at most 10000'
        for path, wanted in stage["filter"].items():
            if path not in self._fields:
                return f"Path '{path}' needs to be indexed as filter"
            if isinstance(wanted, dict) and not wanted.keys() <= _SUPPORTED:
                return f"unsupported operator in the filter of {path}"
        return None


def _cursor(command: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    name = f"{command['$db']}.{command['aggregate']}"
    return {"cursor": {"firstBatch": rows, "id": 0, "ns": name}, "ok": 1.0}


def _exactly(one: socket.socket, size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        data = one.recv(size - len(parts))
        if not data:
            return None
        parts += data
    return parts
