"""Gemini: turns texts into vectors over one of Google's two Python clients.

Both clients answer the same calls with the same errors; which one is used is a setting. The clients accept
missing vectors, wrong dimensions and empty replies without a word, so every reply is checked before it leaves
this module. Nothing here tries again: the task retry decides, with the wait that the service asked for.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Any, Literal

from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr

from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tasks.domain.quotas import quota_day
from tasks.domain.vectors import EmbedderFacts, Matrix, checked_vectors

Task = Literal["RETRIEVAL_DOCUMENT", "RETRIEVAL_QUERY"]

MAX_TEXTS_PER_REQUEST = 100
#: A request's body may hold about 4 MB. 20,000 tokens are about 80 kB of English; even at 200 bytes a token
#: they stay below the limit, and a full batch of 100 texts at 200 tokens each still travels as one request.
MAX_TOKENS_PER_REQUEST = 20_000

MAX_TOKENS_PER_TEXT: Mapping[str, int] = {"gemini-embedding-001": 2_048, "gemini-embedding-2": 8_192}
USD_PER_MILLION_TOKENS: Mapping[str, float] = {"gemini-embedding-001": 0.15, "gemini-embedding-2": 0.20}

#: The service refuses a deadline below 10 s (400), although the client may stop waiting earlier.
MIN_SERVER_TIMEOUT_SECONDS = 10

#: A message of the service is quoted up to here; what it means stands before the quotation.
MAX_QUOTED_CHARS = 300

#: (model, texts, task or None, dimensions) -> one list of numbers per text, unchecked.
EmbedCall = Callable[[str, Sequence[str], Task | None, int], Sequence[Sequence[float]]]


class _MadeOnce:
    """The client of one block, made at its first call; several threads may ask at once.

    A copy or a pickle of the block starts without a client: sockets and locks can't travel.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: EmbedCall | None = None

    def get(self, make: Callable[[], EmbedCall]) -> EmbedCall:
        """Return the call, made by ``make`` the first time. If ``make`` raises, the next call tries again."""
        with self._lock:
            if self._call is None:
                self._call = make()
            return self._call

    def __reduce__(self) -> tuple[type[_MadeOnce], tuple[()]]:
        return (_MadeOnce, ())


class GeminiEmbedder(Block):
    """Gemini as an ``Embedder``: the key, the model and the limits of one Google project.

    Errors are the same for both clients. ``RecordError("embedding_refused")``: the service refuses a text;
    the caller halves the batch to find it. ``TransientError``: no answer, or a broken one; the task retry asks
    again. Of these ``ThrottledError`` (asked too fast) and ``NotSentError`` (no connection) cost nothing.
    ``QuotaSpentError``: the day's quota is used up; tomorrow it works. ``TerminalError``: key or model; a person
    acts. None of them holds the key, or has a cause that does.
    """

    _block_type_name = "Gemini embedder"
    _block_type_slug = "gemini-embedder"

    api_key: SecretStr = Field(
        description="The key of the Google project that pays, from the environment variable GEMINI_API_KEY."
    )
    model: str = Field(
        default="gemini-embedding-001",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The model by its short name; vectors of two models are never compared with each other.",
    )
    dimensions: int = Field(
        default=1536,
        ge=1,
        le=3072,
        description="The numbers per vector; the collection and its search index are made for this size.",
    )
    base_url: str = Field(
        default="https://generativelanguage.googleapis.com",
        pattern=r"^https?://",
        description="Where the service answers, with its scheme and without a version path.",
    )
    client: Literal["genai", "generativeai"] = Field(
        default="genai",
        description="The Python client: genai is google-genai; generativeai is google-generativeai, which is "
        "older, no longer supported by Google and costs many times the CPU.",
    )
    texts_per_minute: int | None = Field(
        default=3_000,
        ge=1,
        description="The project's quota of texts (not calls) a minute; none means that there is none.",
    )
    tokens_per_minute: int | None = Field(
        default=1_000_000,
        ge=1,
        description="The project's quota of tokens a minute; none means that there is none.",
    )
    texts_per_day: int | None = Field(
        default=None,
        ge=1,
        description="How many texts all runs together may embed a day, which ends at midnight Pacific time; none "
        "means that there is no such limit.",
    )
    usd_per_day: float | None = Field(
        default=None,
        gt=0,
        description="How many dollars all runs together may spend a day, at the list price; none means that there "
        "is no such limit.",
    )
    timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long one request may go without an answer, in seconds, before it counts as lost.",
    )
    concurrency: int = Field(
        default=4,
        ge=1,
        description="How many requests one process keeps in flight; the embed stage reads it.",
    )

    _made_once: _MadeOnce = PrivateAttr(default_factory=_MadeOnce)

    @property
    def facts(self) -> EmbedderFacts:
        """Return what decides its vectors and bounds its requests. No call leaves the process.

        For a model that this module doesn't know, the tokens per text are the lowest and the price is the
        highest of those it knows.
        """
        return EmbedderFacts(
            model=self.model,
            dimensions=self.dimensions,
            task="RETRIEVAL_DOCUMENT",
            max_texts_per_request=MAX_TEXTS_PER_REQUEST,
            max_tokens_per_text=MAX_TOKENS_PER_TEXT.get(self.model, min(MAX_TOKENS_PER_TEXT.values())),
            max_tokens_per_request=MAX_TOKENS_PER_REQUEST,
            texts_per_minute=self.texts_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            texts_per_day=self.texts_per_day,
            usd_per_day=self.usd_per_day,
            usd_per_million_tokens=USD_PER_MILLION_TOKENS.get(self.model, max(USD_PER_MILLION_TOKENS.values())),
        )

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Return one L2-normalised row per text, shape ``(len(texts), dimensions)``.

        The texts travel in one request, in order, and the rows are in the order of the texts. More than 100
        texts raise ``ValueError``; no text makes no request. Errors as in the class.
        """
        return self._embed(texts, "RETRIEVAL_DOCUMENT")

    def embed_query(self, text: str) -> Matrix:
        """Return the L2-normalised vector of a question, shape ``(dimensions,)``. Errors as in the class."""
        vector: Matrix = self._embed([text], "RETRIEVAL_QUERY")[0]
        return vector

    def check(self) -> None:
        """Embed one word: proof that the key, the model and the network work, for a millionth of a cent.

        Raises ``TerminalError`` if a person must act, ``TransientError`` if the service can't be reached now.
        A service that refuses one plain word refuses the settings, so that is terminal as well: a run on such
        settings would turn every text into a dead letter.
        """
        refused: RecordError | None = None
        try:
            self._embed(["transaction"], "RETRIEVAL_QUERY")
        except RecordError as error:
            refused = error
        if refused is not None:
            raise TerminalError(
                f"Gemini refuses even one plain word: check model ({self.model}), dimensions "
                f"({self.dimensions}) and the client's settings. {refused.reason}"
            )

    def _embed(self, texts: Sequence[str], task: Task) -> Matrix:
        if len(texts) > MAX_TEXTS_PER_REQUEST:
            raise ValueError(f"{len(texts)} texts in one request; Gemini takes {MAX_TEXTS_PER_REQUEST}")
        if not texts:
            return checked_vectors([], count=0, dimensions=self.dimensions)
        failure: PipelineError | None = None
        rows: Sequence[Sequence[float]] = ()
        try:
            sent, sent_task = _as_the_model_wants(self.model, texts, task)
            rows = self._made_once.get(self._make_call)(self.model, sent, sent_task, self.dimensions)
        except PipelineError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever a client raises may hold the key in its request
            failure = _in_our_words(error, texts=texts, embedder=self)
        # Raised outside the except block: the client's error, with its request and headers, is not even the
        # context of ours.
        if failure is not None:
            raise failure
        return checked_vectors(rows, count=len(texts), dimensions=self.dimensions)

    def _make_call(self) -> EmbedCall:
        key = self.api_key.get_secret_value().strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            # A client would quote such a key in its error.
            raise TerminalError(
                "GEMINI_API_KEY is empty or holds characters that no key has. Set it to the key as Google AI "
                "Studio shows it, and register the blocks again."
            )
        make = _genai_call if self.client == "genai" else _generativeai_call
        failure: PipelineError
        try:
            return make(key, self.base_url.rstrip("/"), self.timeout_seconds)
        except ImportError as error:
            extra = "generativeai" if self.client == "generativeai" else "genai"
            failure = TerminalError(
                f"The Gemini client '{self.client}' is not installed (no module {error.name}): install the "
                f"package google-{extra}, or choose the other client in the block's settings."
            )
        except Exception as error:  # noqa: BLE001 - as above: no client's error leaves with the key in it
            reason = _redacted(str(error), self.api_key)
            failure = TerminalError(
                f"The Gemini client '{self.client}' refuses its settings: {type(error).__name__}: {reason}"
            )
        raise failure


def _as_the_model_wants(model: str, texts: Sequence[str], task: Task) -> tuple[list[str], Task | None]:
    """Return the texts and the task type to send.

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


# -- the two clients ---------------------------------------------------------------------------------------


def _genai_call(key: str, base_url: str, timeout_seconds: float) -> EmbedCall:
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
            headers={"X-Server-Timeout": str(max(MIN_SERVER_TIMEOUT_SECONDS, ceil(timeout_seconds)))},
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


def _generativeai_call(key: str, base_url: str, timeout_seconds: float) -> EmbedCall:
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


# -- errors ------------------------------------------------------------------------------------------------


def _in_our_words(error: Exception, *, texts: Sequence[str], embedder: GeminiEmbedder) -> PipelineError:
    """Return the error of this project that says what the client's error means, without the key."""
    answer = _status_and_body(error)
    if answer is not None:
        status, body = answer
        return _for_status(status, body, texts=texts, embedder=embedder)
    kind = type(error).__name__
    reason = _quoted(str(error), texts=texts, api_key=embedder.api_key)
    # Names, not classes: google-genai raises httpx2's errors (or httpx's, by an environment variable),
    # google-generativeai those of requests and google.auth, and none of these need be imported here.
    family = {f"{ancestor.__module__.split('.')[0]}.{ancestor.__name__}" for ancestor in type(error).__mro__}
    if _never_sent(error):
        return NotSentError(f"the connection to Gemini failed before anything was sent ({kind}: {reason})")
    if family & {"httpx.TimeoutException", "httpx2.TimeoutException", "requests.Timeout"}:
        return TransientError(f"Gemini gave no answer within {embedder.timeout_seconds:g} s ({kind})")
    network = {"httpx.TransportError", "httpx2.TransportError", "google.TransportError", "builtins.OSError"}
    if family & network:
        return TransientError(f"the connection to Gemini failed or was dropped ({kind}: {reason})")
    return TransientError(f"Gemini's answer can't be read ({kind}: {reason})")


def _never_sent(error: BaseException) -> bool:
    """Return whether no connection was made. The clients wrap the error that says so in several of their own."""
    names = {"ConnectError", "ConnectTimeout", "NewConnectionError", "ConnectTimeoutError", "NameResolutionError"}
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            return False
        if names.intersection(ancestor.__name__ for ancestor in type(one).__mro__):
            return True
        inner = next((part for part in one.args if isinstance(part, BaseException)), None)
        one = one.__cause__ or one.__context__ or inner
    return False


def _status_and_body(error: Exception) -> tuple[int, Any] | None:
    """Return the HTTP status and the JSON body of an error that the service sent, or None for any other.

    google-genai keeps the body in ``details``; google-generativeai keeps the reply in ``response``.
    """
    status = getattr(error, "code", None)
    response = getattr(error, "response", None)
    if not isinstance(status, int) or response is None:
        return None
    details = getattr(error, "details", None)
    if isinstance(details, dict):
        return int(status), details
    try:
        return int(status), response.json()
    except ValueError:
        return int(status), {"error": {"message": str(getattr(response, "text", ""))}}


def _for_status(status: int, body: Any, *, texts: Sequence[str], embedder: GeminiEmbedder) -> PipelineError:
    """Return the error for a refusal of the service: who reacts is decided here, and only here."""
    error = _error_object(body)
    name = str(error.get("status") or "")
    message = str(error.get("message") or "no reason given")
    quoted = _quoted(message, texts=texts, api_key=embedder.api_key)
    details = [detail for detail in error.get("details") or [] if isinstance(detail, dict)]
    answer = f"{status} {name}".strip()
    reasons = {str(detail.get("reason")) for detail in details}
    key_refused = "API_KEY_INVALID" in reasons or (status == 400 and message.startswith("API key"))

    if status == 429:
        return _for_quota(details, message=message, quoted=quoted)
    if status in (401, 403) or key_refused:
        return TerminalError(
            f"Gemini refuses GEMINI_API_KEY ({answer}: {quoted}). Set GEMINI_API_KEY to a key that may call "
            f"the Gemini API (Google AI Studio shows and makes keys), and register the blocks again."
        )
    if status == 404:
        return TerminalError(
            f"Gemini has no model '{embedder.model}' that embeds ({answer}: {quoted}). Choose another model "
            f"in the block's settings; vectors of the old one stay what they are."
        )
    if status == 413 or (status == 400 and name != "FAILED_PRECONDITION"):
        # Too large a body is refused like a text: half of the batch is smaller.
        return RecordError("embedding_refused", f"Gemini refuses the text ({answer}: {quoted})")
    if status in (408, 499) or status >= 500:
        return TransientError(
            f"Gemini can't answer now ({answer}: {quoted})", retry_after_seconds=_retry_after_seconds(details)
        )
    return TerminalError(
        f"Gemini refuses the request, and would again ({answer}: {quoted}). Check the block's settings and "
        f"the Google project's billing and region."
    )


def _for_quota(details: Sequence[Mapping[str, Any]], *, message: str, quoted: str) -> PipelineError:
    """Return the error for a 429: wait a little, wait until midnight, or have the quota raised."""
    violations = [
        violation for detail in details for violation in detail.get("violations") or [] if isinstance(violation, dict)
    ]
    for violation in violations:
        quota, limit = str(violation.get("quotaId") or ""), violation.get("quotaValue")
        if str(limit) == "0":
            return TerminalError(
                f"Gemini's quota {quota} is zero for this project: no wait helps. Enable billing or have the "
                f"quota raised."
            )
        if "PerDay" in quota:
            size = f" of {limit}" if limit else ""
            until = quota_day(datetime.now(UTC)).ends
            return QuotaSpentError(
                f"Gemini's daily quota {quota}{size} is used up. It resets at midnight Pacific time "
                f"({until:%Y-%m-%d %H:%M} UTC).",
                until,
            )
    if re.search(r"\blimit: 0\b(?!\.)", message):
        return TerminalError(
            f"Gemini's quota is zero for this project: no wait helps. Enable billing or have the quota "
            f"raised. ({quoted})"
        )
    quotas = ", ".join(str(violation.get("quotaId")) for violation in violations) or "not named"
    return ThrottledError(
        f"Gemini's quota a minute is used up for the moment (429, quota: {quotas}; {quoted})",
        retry_after_seconds=_retry_after_seconds(details),
    )


def _retry_after_seconds(details: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the wait that the service asks for in its ``RetryInfo``, such as ``"37s"`` or ``"0.5s"``."""
    for detail in details:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay") or ""))
        if match:
            return float(match[1])
    return None


def _error_object(body: Any) -> Mapping[str, Any]:
    """Return the ``error`` object of a reply; a body of another shape becomes its message."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            return error
    return {"message": str(body)}


def _quoted(message: str, *, texts: Sequence[str], api_key: SecretStr) -> str:
    """Return a client's or the service's message, short, on one line, without the key and without the texts.

    What follows the beginning of a text is cut off: the service may quote it in full or in part, and a
    message ends in logs and alerts.
    """
    line = _redacted(message, api_key)
    for text in texts:
        beginning = text.strip()[:24]
        if len(beginning) >= 4 and beginning in line:
            line = line[: line.index(beginning)] + "..."
    line = " ".join(line.split())
    return line if len(line) <= MAX_QUOTED_CHARS else line[:MAX_QUOTED_CHARS] + "..."


def _redacted(message: str, api_key: SecretStr) -> str:
    """Return the message with every form of the key, and anything else that looks like one, masked."""
    key = api_key.get_secret_value().strip()
    for form in {key, urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key)} - {""}:
        message = message.replace(form, "[key]")
    return re.sub(r"AIza[0-9A-Za-z_\-]{10,}|(?<=[?&]key=)[^&\s'\"]+", "[key]", message)
