"""Gemini's embedding protocol on 127.0.0.1, over real HTTP, with faults on demand.

It speaks what both Python clients send: ``POST /v1beta/models/{model}:batchEmbedContents`` and
``:embedContent``, camelCase JSON, the key in ``x-goog-api-key``, task types as names or as numbers. Its
vectors are a function of text, model and dimensions and are not of length 1, as the real service's at 1536.
It enforces quotas where it is given some; else a 429 comes from the fault plan. Token limits of a request are not
enforced. Batch jobs are served by ``tests.loopback.gemini_batches``.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from tests.loopback.gemini_batches import BatchPlan, BatchService, DroppedError, Reply

#: Every kind of fault, by the name that a plan uses.
FAULTS = (
    "401",
    "403",
    "429",  # the quota of a minute, with RetryInfo
    "429-day",
    "429-zero",  # a project without any quota
    "500",
    "500-key-echoed",  # a message that holds the caller's key, bare and in a URL
    "503",
    "504",
    "html",  # 502 with a page of a proxy instead of JSON
    "drop",  # the connection is reset without an answer
    "malformed",  # 200 with JSON that is cut short
    "empty",  # 200 with {}
    "missing-vector",
    "wrong-dimension",
    "nan",  # the literal NaN among the values
    "slow",  # the right answer after slow_seconds
)

FaultPlan = Sequence[str | None] | Callable[[int], str | None]

#: google-generativeai sends enums as numbers.
TASK_TYPES = {0: "TASK_TYPE_UNSPECIFIED", 1: "RETRIEVAL_QUERY", 2: "RETRIEVAL_DOCUMENT"}

DEFAULT_DIMENSIONS = 3072


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived, in the order of arrival, and how it was answered (0: not at all)."""

    index: int
    path: str
    model: str
    texts: tuple[str, ...]
    task_types: tuple[str | None, ...]
    dimensions: tuple[int | None, ...]
    body_bytes: int
    answer_bytes: int
    fault: str | None
    status: int
    user_agent: str


@dataclass
class EnforcedQuota:
    """A project's quota as the service keeps it: over a window that slides, texts counted one by one.

    A request that does not fit is refused whole, uses nothing up, and is told when it would fit. ``texts_per_day``
    holds for the server's life. Token counts are the server's own: a token for every four characters.
    """

    texts_per_minute: int | None = None
    tokens_per_minute: int | None = None
    texts_per_day: int | None = None
    window_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic

    accepted_requests: int = 0
    refused_requests: int = 0
    accepted_texts: int = 0
    refused_texts: int = 0
    #: (when, texts, tokens) of what was accepted and is still within the window.
    _recent: deque[tuple[float, int, int]] = field(default_factory=deque)

    def refusal(self, texts: Sequence[str]) -> tuple[str, int, float] | None:
        """Return the quota's id, its size and the wait in seconds of a request that is refused; else count it."""
        now, tokens = self.clock(), sum(map(count_tokens, texts))
        while self._recent and self._recent[0][0] <= now - self.window_seconds:
            self._recent.popleft()
        refusal = self._find_refusal(now, len(texts), tokens)
        if refusal is not None:
            self.refused_requests += 1
            self.refused_texts += len(texts)
            return refusal
        self._recent.append((now, len(texts), tokens))
        self.accepted_requests += 1
        self.accepted_texts += len(texts)
        return None

    def _find_refusal(self, now: float, texts: int, tokens: int) -> tuple[str, int, float] | None:
        if self.texts_per_day is not None and self.accepted_texts + texts > self.texts_per_day:
            return "EmbedContentRequestsPerDayPerProjectPerModel", self.texts_per_day, 3_600.0
        for name, limit, wanted, place in (
            ("EmbedContentRequestsPerMinutePerProjectPerModel", self.texts_per_minute, texts, 1),
            ("EmbedContentInputTokensPerMinutePerProjectPerModel", self.tokens_per_minute, tokens, 2),
        ):
            if limit is None:
                continue
            over = sum(row[place] for row in self._recent) + wanted - limit
            if over <= 0:
                continue
            wait = self.window_seconds
            for row in self._recent:
                over -= row[place]
                if over <= 0:
                    wait = row[0] + self.window_seconds - now
                    break
            return name, limit, wait
        return None


def count_tokens(text: str) -> int:
    """Return the tokens of a text as this server counts them."""
    return max(1, len(text) // 4)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    is_gzip: bool = False


def raw_vector(text: str, *, model: str, dimensions: int) -> NDArray[np.float32]:
    """Return the vector that the server answers for a text: the same for ever, of length about 0.7."""
    digest = hashlib.blake2b(f"{model}\0{dimensions}\0{text}".encode(), digest_size=8).digest()
    numbers = np.random.default_rng(int.from_bytes(digest, "big")).standard_normal(dimensions, dtype=np.float32)
    return (numbers * np.float32(0.7 / np.sqrt(dimensions))).astype(np.float32)


class LoopbackGemini:
    """A server that runs while its ``with`` block does. Threads may use it and read its records at once.

    ``faults`` names the fault of each request by its index from 0, as a list (requests after its end are
    answered well) or as a function; else each request fails with ``fault_probability``, as one of
    ``fault_kinds``, decided by ``seed`` and its index. ``refused_texts`` are answered 400, as is every batch
    that holds one. ``retry_delay_seconds`` is what a 429 asks for; ``latency_seconds`` passes before every
    good answer, ``slow_seconds`` before one with the fault "slow". ``quota`` is enforced on what the fault plan
    lets through. ``lifelike`` answers are written as the real service writes them: indented unless the request
    says ``prettyPrint=false``, and compressed for clients that accept it; that costs this server far more CPU.
    """

    def __init__(
        self,
        *,
        api_key: str = "loopback-key",
        models: Collection[str] = ("gemini-embedding-001", "gemini-embedding-2"),
        faults: FaultPlan = (),
        fault_probability: float = 0.0,
        fault_kinds: Sequence[str] = ("429", "500", "503", "drop", "malformed"),
        seed: int = 0,
        refused_texts: Collection[str] | Callable[[str], bool] = (),
        retry_delay_seconds: float = 0.05,
        latency_seconds: float = 0.0,
        slow_seconds: float = 1.0,
        quota: EnforcedQuota | None = None,
        lifelike: bool = False,
        batch_plan: BatchPlan | None = None,
    ) -> None:
        named = [fault for fault in faults if fault] if not callable(faults) else []
        unknown = {*named, *fault_kinds} - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults: {sorted(unknown)}")
        self.api_key = api_key
        self.models = models
        self.faults = faults
        self.fault_probability = fault_probability
        self.fault_kinds = fault_kinds
        self.seed = seed
        self.refused_texts = refused_texts
        self.retry_delay_seconds = retry_delay_seconds
        self.latency_seconds = latency_seconds
        self.slow_seconds = slow_seconds
        self.quota = quota
        self.lifelike = lifelike
        #: What `generateContent` answers to a request's body, and the bodies that came; None: it is not there.
        self.writer: Callable[[Any], str] | None = None
        self.prompts: list[Any] = []

        self.requests: list[Request] = []
        #: How often each text was embedded, and so paid for: a text sent twice counts twice.
        self.embedded: Counter[str] = Counter()
        #: Task types of the texts embedded; None where none was sent.
        self.task_types: Counter[str | None] = Counter()
        #: Batch jobs; the texts of those that succeed count as embedded as well.
        self.batches = BatchService(
            batch_plan or BatchPlan(),
            models=models,
            vector=lambda text, model, dimensions: raw_vector(text, model=model, dimensions=dimensions),
            refuses=self._is_refused,
            on_embedded=self._count_batch,
            error=lambda *words: _error(*words).body,
        )

        self._lock = threading.Lock()
        self._arrived = 0
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    # -- life ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        loopback: LoopbackGemini = self

        class Handler(_Handler):
            gemini = loopback

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="gemini", daemon=True
        ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            still_open, self._open = self._open, set()
        for connection in still_open:
            _reset(connection)

    @property
    def url(self) -> str:
        """The base URL, such as ``http://127.0.0.1:40123``."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # -- records -------------------------------------------------------------------------------------------

    @property
    def request_count(self) -> int:
        """How many requests arrived, answered or not."""
        with self._lock:
            return self._arrived

    @property
    def request_sizes(self) -> list[int]:
        """The number of texts of each request, in the order in which they were answered."""
        with self._lock:
            return [len(request.texts) for request in self.requests]

    def _count_batch(self, texts: list[str]) -> None:
        with self._lock:
            self.embedded.update(texts)

    # -- answers -------------------------------------------------------------------------------------------

    def _fault(self, index: int) -> str | None:
        if callable(self.faults):
            return self.faults(index)
        if index < len(self.faults):
            return self.faults[index]
        if self.fault_probability:
            chance = random.Random(f"{self.seed}:{index}")
            if chance.random() < self.fault_probability:
                return chance.choice(list(self.fault_kinds))
        return None

    def _is_refused(self, text: str) -> bool:
        if callable(self.refused_texts):
            return self.refused_texts(text)
        return text in self.refused_texts or _without_prefix(text) in self.refused_texts

    def _answer_batches(self, method: str, path: str, headers: Any, body: bytes) -> Reply:
        """Return the answer to a request of batch jobs or files; raise ``DroppedError`` to drop the connection."""
        # An upload's URL, once given, is its own permission.
        key = headers.get("x-goog-api-key")
        if key != self.api_key and "upload_id=" not in path:
            refusal = _wrong_key(key)
            return Reply(status=refusal.status, body=refusal.body)
        return self.batches.answer(method, path, headers, body)

    def _describe_model(self, path: str, headers: Any) -> _Answer:
        """Return what `models.get` answers. It is no request for vectors, and not recorded as one."""
        name = urlsplit(path).path.removeprefix("/v1beta/models/")
        if (key := headers.get("x-goog-api-key")) != self.api_key:
            return _wrong_key(key)
        if name not in self.models:
            return _unknown_model(name)
        facts = {"name": f"models/{name}", "version": "001", "inputTokenLimit": 2_048, "outputTokenLimit": 1}
        return _Answer(200, orjson.dumps({**facts, "supportedGenerationMethods": ["embedContent"]}))

    def _answer(self, path: str, headers: Any, body: bytes) -> _Answer | None:
        """Return the answer to a request, or None to drop the connection; record it either way."""
        with self._lock:
            index = self._arrived
            self._arrived += 1
        parts = urlsplit(path)
        model, _, verb = parts.path.removeprefix("/v1beta/models/").partition(":")
        key = headers.get("x-goog-api-key") or next(iter(parse_qs(parts.query).get("key", [])), None)
        texts: tuple[str, ...] = ()
        wanted: list[dict[str, Any]] = []
        fault: str | None = None

        if key != self.api_key:
            answer: _Answer | None = _wrong_key(key)
        elif not parts.path.startswith("/v1beta/models/") or model not in self.models:
            answer = _unknown_model(model)
        elif verb == "generateContent" and self.writer is not None:
            fault = self._fault(index)
            answer = None if fault == "drop" else self._refusal(fault, model) if fault else None
            if fault is None:
                answer = self._written(orjson.loads(body))
        elif verb not in ("batchEmbedContents", "embedContent"):
            answer = _error(404, "NOT_FOUND", f"Method not found: {verb}")
        else:
            request = orjson.loads(body)
            wanted = request.get("requests", []) if verb == "batchEmbedContents" else [request]
            texts = tuple(_text_of(one) for one in wanted)
            fault = self._fault(index)
            single = verb == "embedContent"
            answer = self._answer_texts(wanted, texts, model=model, fault=fault, single=single)
            if self.lifelike and answer is not None and answer.status == 200 and fault in (None, "slow"):
                answer = _as_google_writes(answer, headers, parse_qs(parts.query))

        with self._lock:
            self.requests.append(
                Request(
                    index=index,
                    path=path,
                    model=model,
                    texts=texts,
                    task_types=tuple(_task_type_of(one) for one in wanted),
                    dimensions=tuple(one.get("outputDimensionality") for one in wanted),
                    body_bytes=len(body),
                    answer_bytes=0 if answer is None else len(answer.body),
                    fault=fault,
                    status=0 if answer is None else answer.status,
                    user_agent=str(headers.get("user-agent")),
                )
            )
            if answer is not None and answer.status == 200 and fault in (None, "slow"):
                self.embedded.update(texts)
                self.task_types.update(_task_type_of(one) for one in wanted)
        return answer

    def _written(self, request: Any) -> _Answer:
        """Return what `generateContent` answers, with the usage that the service counts."""
        assert self.writer is not None
        with self._lock:
            self.prompts.append(request)
        text = self.writer(request)
        tokens = count_tokens(str(request)), count_tokens(text)
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
        usage = {"promptTokenCount": tokens[0], "candidatesTokenCount": tokens[1], "totalTokenCount": sum(tokens)}
        return _Answer(200, orjson.dumps({"candidates": [candidate] if text else [], "usageMetadata": usage}))

    def _answer_texts(
        self,
        wanted: Sequence[dict[str, Any]],
        texts: Sequence[str],
        *,
        model: str,
        fault: str | None,
        single: bool,
    ) -> _Answer | None:
        if fault == "drop":
            return None
        if fault is not None and (refusal := self._refusal(fault, model)) is not None:
            return refusal
        if fault == "empty":
            return _Answer(200, b"{}")
        if not texts:
            return _invalid("* BatchEmbedContentsRequest.requests: requests is not specified")
        if len(texts) > 100:
            return _invalid("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch")
        if any(not text for text in texts):
            return _invalid("* EmbedContentRequest.content: contents is empty")
        for text in texts:
            if self._is_refused(text):
                return _invalid(f"Request contains an invalid argument: '{text}'")
        if self.quota is not None:
            with self._lock:
                over = self.quota.refusal(texts)
            if over is not None:
                quota_id, limit, wait = over
                return _quota_used_up(quota_id, limit, model, round(wait, 3))
        self._stopped.wait(self.slow_seconds if fault == "slow" else self.latency_seconds)

        vectors = [
            raw_vector(text, model=model, dimensions=one.get("outputDimensionality") or DEFAULT_DIMENSIONS)
            for one, text in zip(wanted, texts, strict=True)
        ]
        if fault == "wrong-dimension":
            vectors[-1] = vectors[-1][:-1]
        if fault == "missing-vector":
            vectors.pop()
        if fault == "nan":
            vectors[0][0] = 98765.5  # JSON has no NaN, so it is written in afterwards
        rows = [{"values": vector} for vector in vectors]
        reply = {"embedding": rows[0] if rows else {}} if single else {"embeddings": rows}
        body = orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
        if fault == "nan":
            body = body.replace(b"98765.5", b"NaN", 1)
        if fault == "malformed":
            body = body[: len(body) // 2]
        return _Answer(200, body)

    def _refusal(self, fault: str, model: str) -> _Answer | None:
        quota = "EmbedContentRequestsPer{}PerProjectPerModel-FreeTier"
        if fault == "401":
            return _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if fault == "403":
            return _error(403, "PERMISSION_DENIED", "Your API key was reported as leaked.")
        if fault == "429":
            return _quota_used_up(quota.format("Minute"), 100, model, self.retry_delay_seconds)
        if fault == "429-day":
            return _quota_used_up(quota.format("Day"), 1000, model, self.retry_delay_seconds)
        if fault == "429-zero":
            return _quota_used_up(quota.format("Minute"), 0, model, self.retry_delay_seconds)
        if fault == "500":
            return _error(500, "INTERNAL", "An internal error has occurred. Please retry.")
        if fault == "500-key-echoed":
            echo = f"{self.api_key} at {self.url}/?key={quote(self.api_key, safe='')}"
            return _error(500, "INTERNAL", f"An internal error has occurred for {echo}")
        if fault == "503":
            return _error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
        if fault == "504":
            return _error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")
        if fault == "html":
            return _Answer(502, b"<html><body>Bad Gateway</body></html>", "text/html")
        return None


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive: one thread and one socket per connection, one write per answer."""

    gemini: LoopbackGemini
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def setup(self) -> None:
        super().setup()
        with self.gemini._lock:
            self.gemini._open.add(self.connection)

    def finish(self) -> None:
        with self.gemini._lock:
            self.gemini._open.discard(self.connection)
        try:
            super().finish()
        except OSError:
            return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return  # the client has gone, or the server has stopped

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: tests read the records instead."""

    def do_GET(self) -> None:
        if BatchService.is_for(self.path):
            self._do_batches(b"")
            return
        answer = self.gemini._describe_model(self.path, self.headers)
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def do_DELETE(self) -> None:
        self._do_batches(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if BatchService.is_for(self.path):
            self._do_batches(body)
            return
        answer = self.gemini._answer(self.path, self.headers, body)
        if answer is None:
            self.close_connection = True
            _reset(self.connection)
            return
        head = (
            f"HTTP/1.1 {answer.status} {self.responses[answer.status][0]}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Encoding: {'gzip' if answer.is_gzip else 'identity'}\r\n"
            f"Content-Length: {len(answer.body)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + answer.body)

    def _do_batches(self, body: bytes) -> None:
        try:
            reply = self.gemini._answer_batches(self.command, self.path, self.headers, body)
            head = f"HTTP/1.1 {reply.status} {self.responses[reply.status][0]}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
            if reply.stream is None:
                head += f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {len(reply.body)}\r\n\r\n"
                self.wfile.write(head.encode() + reply.body)
                return
            self.close_connection = self.close_connection or reply.is_unframed
            head += "Connection: close\r\n\r\n" if reply.is_unframed else "Transfer-Encoding: chunked\r\n\r\n"
            self.wfile.write(head.encode())
            for piece in reply.stream:
                self.wfile.write(piece if reply.is_unframed else b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"" if reply.is_unframed else b"0\r\n\r\n")
        except DroppedError:
            self.close_connection = True
            _reset(self.connection)


def _reset(connection: socket.socket) -> None:
    """Close a socket so that the other side sees a reset, not an end."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    except OSError:
        return


def _as_google_writes(answer: _Answer, headers: Any, query: dict[str, list[str]]) -> _Answer:
    """Return the answer indented and compressed as the real service does it."""
    body = answer.body
    if query.get("prettyPrint", query.get("$prettyPrint")) != ["false"]:
        body = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
    accepted = "gzip" in (headers.get("accept-encoding") or "")
    return replace(answer, body=gzip.compress(body, compresslevel=6) if accepted else body, is_gzip=accepted)


def _text_of(request: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in request.get("content", {}).get("parts", []))


def _task_type_of(request: dict[str, Any]) -> str | None:
    task = request.get("taskType")
    return TASK_TYPES.get(task, str(task)) if isinstance(task, int) else task


def _without_prefix(text: str) -> str:
    """Return what stands behind a prefix of gemini-embedding-2: a plan names a text for both models."""
    for prefix in ("title: none | text: ", "task: search result | query: "):
        text = text.removeprefix(prefix)
    return text


def _error(status: int, name: str, message: str, details: Sequence[dict[str, Any]] = ()) -> _Answer:
    error: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        error["details"] = list(details)
    return _Answer(status, orjson.dumps({"error": error}, option=orjson.OPT_INDENT_2))


def _invalid(message: str) -> _Answer:
    return _error(400, "INVALID_ARGUMENT", message)


def _wrong_key(key: str | None) -> _Answer:
    if not key:
        message = "Method doesn't allow unregistered callers (callers without established identity)."
        return _error(403, "PERMISSION_DENIED", message)
    reason = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    message = "API key not valid. Please pass a valid API key."
    localized = {
        "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
        "locale": "en-US",
        "message": message,
    }
    return _error(400, "INVALID_ARGUMENT", message, [reason, localized])


def _unknown_model(model: str) -> _Answer:
    message = f"models/{model} is not found for API version v1beta, or is not supported for embedContent."
    return _error(404, "NOT_FOUND", message)


def _quota_used_up(quota_id: str, limit: int, model: str, retry_delay_seconds: float) -> _Answer:
    metric = "generativelanguage.googleapis.com/embed_content_free_tier_requests"
    violation: dict[str, Any] = {
        "quotaMetric": metric,
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
    }
    if limit:  # the service leaves out a zero
        violation["quotaValue"] = str(limit)
    message = (
        "You exceeded your current quota, please check your plan and billing details.\n"
        f"* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}\n"
        f"Please retry in {retry_delay_seconds:g}s."
    )
    details: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{"description": "Learn more", "url": "https://ai.google.dev/gemini-api/docs/rate-limits"}],
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_delay_seconds:g}s"},
    ]
    return _error(429, "RESOURCE_EXHAUSTED", message, details)
