"""Three ways to ask Gemini for vectors: our own REST calls and Google's two Python clients.

They answer the same calls with the same errors, once ``blocks.gemini_errors`` has put these in words. None tries
again, and none checks what arrives: ``blocks.gemini`` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal

import httpx
import numpy as np
import orjson
import simdjson

from blocks.gemini_errors import RefusedError
from tasks.domain.errors import RecordError
from tasks.domain.vectors import Matrix

Task = Literal["RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY"]

#: (model, texts, task or None, dimensions) -> one row of numbers per text, unchecked.
EmbedCall = Callable[[str, Sequence[str], Task | None, int], Sequence[Sequence[float]] | Matrix]

#: The service refuses a deadline below 10 s (400), although the client may stop waiting earlier.
MIN_SERVER_TIMEOUT_SECONDS = 10

#: A quota of a request every few seconds must not pay for a new TLS connection each time.
_IDLE_CONNECTION_SECONDS = 60.0

#: More than this of an error's body is not read.
_MAX_ERROR_BYTES = 1_000_000


class RestClient:
    """Gemini's REST interface, v1beta, over one pool of connections. Threads may share it.

    Proxies and certificate authorities come from the environment, as httpx reads it. What the service answers
    without success is ``RefusedError``; all else that goes wrong is httpx's own error.
    """

    def __init__(self, key: str, base_url: str, timeout_seconds: float) -> None:
        self.base_url = httpx.URL(base_url)
        # Not for uploads and downloads: they may take long, as long as they move.
        self._deadline = {"X-Server-Timeout": _server_timeout(timeout_seconds)}
        self._client = httpx.Client(
            headers={
                "x-goog-api-key": key,
                "Content-Type": "application/json",
                # A reply is 2 MB as it is and 0.7 MB compressed. Google compresses it for clients that name gzip
                # here as well. Uncompressed costs half the CPU, but the bandwidth is the scarcer of the two.
                "Accept-Encoding": "gzip",
                "User-Agent": "cryptique-rag (gzip)",
            },
            # Without indentation a reply is a third smaller.
            params={"prettyPrint": "false"},
            timeout=timeout_seconds,
            # As many connections as there are calls at once: the caller bounds these.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_IDLE_CONNECTION_SECONDS),
        )

    def call(self, method: str, path: str, body: Any = None, *, params: Mapping[str, str] | None = None) -> bytes:
        """Return the body of the answer to one request; ``body`` is sent as JSON."""
        content = None if body is None else orjson.dumps(body)
        response = self._client.request(
            method, f"{self.base_url}{path}", content=content, params=params, headers=self._deadline
        )
        if not response.is_success:
            raise RefusedError(response.status_code, _error_body(response.content))
        return response.content

    def upload(self, url: str, headers: Mapping[str, str], content: bytes) -> httpx.Response:
        """Return the answer to one step of an upload; only the path and the query of ``url`` count.

        The host stays ours, as in Google's client: a gateway stays in the way, and the key goes nowhere else.
        """
        given = httpx.URL(url)
        target = self.base_url.copy_with(path=self.base_url.path.rstrip("/") + given.path)
        response = self._client.post(target, params=given.params, headers=headers, content=content)
        if not response.is_success:
            raise RefusedError(response.status_code, _error_body(response.content))
        return response

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """Yield the answer to a GET in pieces, as they arrive and decompressed."""
        with self._client.stream("GET", f"{self.base_url}{path}", params={"alt": "media"}) as response:
            if not response.is_success:
                pieces = bytearray()
                for piece in response.iter_bytes():
                    pieces += piece
                    if len(pieces) > _MAX_ERROR_BYTES:
                        break
                raise RefusedError(response.status_code, _error_body(bytes(pieces)))
            yield response.iter_bytes()


def as_the_model_wants(model: str, texts: Sequence[str], task: Task) -> tuple[list[str], Task | None]:
    """Return the texts and the task type to send. Raises ``RecordError`` where a text holds nothing to embed.

    gemini-embedding-001 reads the task type. gemini-embedding-2 ignores it and reads prefixes in the text,
    in the wording of Google's guide to embeddings; ``title: none`` is its form for a text without a title.
    """
    _refuse_what_holds_nothing_to_embed(texts)
    if not model.startswith("gemini-embedding-2"):
        return list(texts), task
    prefix = "title: none | text: " if task == "RETRIEVAL_DOCUMENT" else "task: search result | query: "
    return [prefix + text for text in texts], None


def _refuse_what_holds_nothing_to_embed(texts: Sequence[str]) -> None:
    """Raise ``RecordError`` for a blank text and for half a character (a lone surrogate, which is no UTF-8).

    The service refuses the first, with model 2 it would embed the prefix alone; on either, one client fails
    midway with an error that says something else.
    """
    for text in texts:
        if not text.strip():
            raise RecordError("embedding_refused", "the text is empty")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise RecordError("embedding_refused", "the text holds half a character (a lone surrogate)")


def embed_request(model: str, text: str, task: Task | None, dimensions: int) -> dict[str, Any]:
    """Return the request for one text, as ``batchEmbedContents`` and the lines of a batch job hold it."""
    request: dict[str, Any] = {
        "model": f"models/{model}",
        "content": {"parts": [{"text": text}]},
        "outputDimensionality": dimensions,
    }
    if task is not None:
        request["taskType"] = task
    return request


def numbers_of(embedding: Any) -> Matrix:
    """Return the values of a ``ContentEmbedding`` that simdjson has parsed; no Python number is made of any.

    Raises what Python raises for a shape that is none: the caller takes any error for a broken answer.
    """
    numbers = np.frombuffer(embedding["values"].as_buffer(of_type="d"), dtype=np.float64)
    with np.errstate(over="ignore"):  # what is too large becomes infinity, and the check refuses it
        return numbers.astype(np.float32)


def rest_call(client: RestClient) -> EmbedCall:
    """Return a call over our own client: a tenth to a fortieth of the CPU of the others."""

    def call(model: str, texts: Sequence[str], task: Task | None, dimensions: int) -> Matrix:
        requests = [embed_request(model, text, task, dimensions) for text in texts]
        reply = client.call("POST", f"/v1beta/models/{model}:batchEmbedContents", {"requests": requests})
        # A parser each: it can't be used again while anything of its document is alive.
        document: Any = simdjson.Parser().parse(reply)
        return np.stack([numbers_of(embedding) for embedding in document["embeddings"]])

    return call


def genai_call(key: str, base_url: str, timeout_seconds: float) -> EmbedCall:
    """Return a call over google-genai. Imported here because the import costs more than a second."""
    from google import genai
    from google.genai import types

    client = genai.Client(
        api_key=key,
        # Said here so that no environment variable moves the calls to another Google service.
        vertexai=False,
        http_options=types.HttpOptions(
            base_url=base_url,
            # Its own default is v1.
            api_version="v1beta",
            timeout=ceil(timeout_seconds * 1000),  # milliseconds
            headers={"X-Server-Timeout": _server_timeout(timeout_seconds)},
            # Without retry_options it makes one attempt, which is what we want.
        ),
    )

    def call(model: str, texts: Sequence[str], task: Task | None, dimensions: int) -> Sequence[Sequence[float]]:
        # A list of str gives ONE vector with gemini-embedding-2; a list of Content gives one for each. As
        # dicts, Contents cost a quarter less CPU per request than as the client's own classes.
        contents: list[types.ContentUnionDict] = [{"parts": [{"text": text}]} for text in texts]
        reply = client.models.embed_content(
            model=model,
            contents=contents,
            config=types.EmbedContentConfig(task_type=task, output_dimensionality=dimensions),
        )
        return [embedding.values or [] for embedding in reply.embeddings or []]

    return call


def generativeai_call(key: str, base_url: str, timeout_seconds: float) -> EmbedCall:
    """Return a call over google-generativeai, REST transport.

    The client is this block's own, so ``google.generativeai.configure``, which sets the key of the whole
    process, is not called. (The package itself calls it on import, with the environment's key; no call of
    ours uses that.)
    """
    warnings.filterwarnings(
        "ignore",
        message=r"\s*All support for the `google\.generativeai` package has ended",
        category=FutureWarning,
    )
    import google.generativeai as generativeai
    from google.generativeai.client import glm

    client = glm.GenerativeServiceClient(
        transport="rest",
        # The endpoint keeps its scheme: without one, REST speaks https, also to a loopback server.
        client_options={"api_key": key, "api_endpoint": base_url},
    )

    def call(model: str, texts: Sequence[str], task: Task | None, dimensions: int) -> Sequence[Sequence[float]]:
        reply = generativeai.embed_content(
            model=f"models/{model}",
            content=list(texts),
            task_type=task,
            output_dimensionality=dimensions,
            client=client,
            # Its own retry would sit on a 503 for up to a minute.
            request_options={"retry": None, "timeout": timeout_seconds},
        )
        vectors: Sequence[Sequence[float]] = reply["embedding"]
        return vectors

    return call


def _server_timeout(timeout_seconds: float) -> str:
    return str(max(MIN_SERVER_TIMEOUT_SECONDS, ceil(timeout_seconds)))


def _error_body(content: bytes) -> Any:
    """Return a refusal's JSON, or what a proxy or a balancer wrote instead, as its message."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return {"error": {"message": content.decode(errors="replace")}}
