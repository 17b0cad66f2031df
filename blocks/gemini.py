"""Gemini: turns texts into vectors over our own REST calls or one of Google's two Python clients.

All answer the same calls with the same errors; which one is used is a setting. Google's clients accept missing
vectors, wrong dimensions and empty replies without a word, so every reply is checked before it leaves this
module. Nothing here tries again: the task retry decides, with the wait that the service asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Literal, TypeVar
from urllib.parse import quote

import orjson
from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr

from blocks.gemini_batches import BATCH_USD_PER_MILLION_TOKENS, MAX_TEXTS_PER_JOB, BatchFacts, GeminiBatches
from blocks.gemini_clients import (
    EmbedCall,
    RestClient,
    Task,
    as_the_model_wants,
    genai_call,
    generativeai_call,
    rest_call,
)
from blocks.gemini_errors import Asked, in_our_words, redacted, usable_key
from tasks.domain.errors import PipelineError, RecordError, TerminalError, TransientError
from tasks.domain.vectors import EmbedderFacts, Matrix, checked_vectors

__all__ = ["BATCH_USD_PER_MILLION_TOKENS", "USD_PER_MILLION_TOKENS", "EmbedCall", "GeminiEmbedder", "Task"]

MAX_TEXTS_PER_REQUEST = 100
#: A request's body may hold about 4 MB. 20,000 tokens are about 80 kB of English; even at 200 bytes a token
#: they stay below the limit, and a full batch of 100 texts at 200 tokens each still travels as one request.
MAX_TOKENS_PER_REQUEST = 20_000

MAX_TOKENS_PER_TEXT: Mapping[str, int] = {"gemini-embedding-001": 2_048, "gemini-embedding-2": 8_192}
USD_PER_MILLION_TOKENS: Mapping[str, float] = {"gemini-embedding-001": 0.15, "gemini-embedding-2": 0.20}

_Made = TypeVar("_Made")


class _MadeOnce(Generic[_Made]):
    """A client of one block, made at its first call; several threads may ask at once.

    A copy or a pickle of the block starts without a client: sockets and locks can't travel.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: _Made | None = None

    def get(self, make: Callable[[], _Made]) -> _Made:
        """Return what ``make`` made the first time. If ``make`` raises, the next call tries again."""
        with self._lock:
            if self._made is None:
                self._made = make()
            return self._made

    def __reduce__(self) -> tuple[type[_MadeOnce[_Made]], tuple[()]]:
        return (_MadeOnce, ())


class GeminiEmbedder(Block):
    """Gemini as an ``Embedder``: the key, the model and the limits of one Google project.

    Errors are the same for all clients. ``RecordError("embedding_refused")``: the service refuses a text;
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
    client: Literal["rest", "genai", "generativeai"] = Field(
        default="rest",
        description="What makes the calls: rest is our own, which costs the least CPU; genai is google-genai; "
        "generativeai is google-generativeai, which is older and no longer supported by Google. Batch jobs are "
        "always called by rest.",
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

    batch_texts_per_job: int = Field(
        default=10_000,
        ge=1,
        le=MAX_TEXTS_PER_JOB,
        description="How many texts one batch job holds at most.",
    )
    batch_tokens_per_job: int = Field(
        default=1_500_000,
        ge=1,
        description="How many tokens one batch job holds at most; the service refuses larger ones by the project's "
        "tier, at tier 1 from about two million.",
    )

    _made_once: _MadeOnce[EmbedCall] = PrivateAttr(default_factory=_MadeOnce)
    _rest: _MadeOnce[RestClient] = PrivateAttr(default_factory=_MadeOnce)

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

    @property
    def batches(self) -> GeminiBatches:
        """Return the verbs of batch jobs: half the price, hours later, vectors that mix with these."""
        return GeminiBatches(
            facts=BatchFacts(
                max_texts_per_job=self.batch_texts_per_job,
                max_tokens_per_job=self.batch_tokens_per_job,
                usd_per_million_tokens=BATCH_USD_PER_MILLION_TOKENS.get(
                    self.model, max(BATCH_USD_PER_MILLION_TOKENS.values())
                ),
            ),
            client=self._rest_client,
            asked=Asked(self.api_key, model=self.model, timeout_seconds=self.timeout_seconds),
            dimensions=self.dimensions,
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

    def check_model(self) -> int:
        """Return how many tokens of a text the model reads: proof of key, model and network that costs nothing.

        Errors as in the class. Always over REST, whatever client embeds.
        """
        failure: PipelineError
        try:
            answer = orjson.loads(self._rest_client().call("GET", f"/v1beta/models/{quote(self.model, safe='')}"))
            return int(answer["inputTokenLimit"])
        except PipelineError as error:
            failure = error
        except (KeyError, TypeError, ValueError):
            failure = TransientError("Gemini's answer about the model can't be read")
        except Exception as error:  # noqa: BLE001 - as below: no client's error leaves with the key in it
            asked = Asked(
                self.api_key, model=self.model, timeout_seconds=self.timeout_seconds, job=f"the model {self.model}"
            )
            failure = in_our_words(error, asked)
        raise failure

    def _embed(self, texts: Sequence[str], task: Task) -> Matrix:
        if len(texts) > MAX_TEXTS_PER_REQUEST:
            raise ValueError(f"{len(texts)} texts in one request; Gemini takes {MAX_TEXTS_PER_REQUEST}")
        if not texts:
            return checked_vectors([], count=0, dimensions=self.dimensions)
        failure: PipelineError | None = None
        rows: Sequence[Sequence[float]] | Matrix = ()
        try:
            sent, sent_task = as_the_model_wants(self.model, texts, task)
            rows = self._made_once.get(self._make_call)(self.model, sent, sent_task, self.dimensions)
        except PipelineError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever a client raises may hold the key in its request
            failure = in_our_words(
                error,
                Asked(self.api_key, model=self.model, timeout_seconds=self.timeout_seconds, texts=texts),
            )
        # Raised outside the except block: the client's error, with its request and headers, is not even the
        # context of ours.
        if failure is not None:
            raise failure
        return checked_vectors(rows, count=len(texts), dimensions=self.dimensions)

    def _make_call(self) -> EmbedCall:
        if self.client == "rest":
            return rest_call(self._rest_client())
        key = usable_key(self.api_key)
        make = genai_call if self.client == "genai" else generativeai_call
        failure: PipelineError
        try:
            return make(key, self.base_url.rstrip("/"), self.timeout_seconds)
        except ImportError as error:
            failure = TerminalError(
                f"The Gemini client '{self.client}' is not installed (no module {error.name}): install the "
                f"package google-{self.client}, or choose another client in the block's settings."
            )
        except Exception as error:  # noqa: BLE001 - as above: no client's error leaves with the key in it
            failure = self._refused_settings(error, client=self.client)
        raise failure

    def _rest_client(self) -> RestClient:
        return self._rest.get(self._make_rest_client)

    def _make_rest_client(self) -> RestClient:
        key = usable_key(self.api_key)
        failure: PipelineError
        try:
            return RestClient(key, self.base_url.rstrip("/"), self.timeout_seconds)
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._refused_settings(error, client="rest")
        raise failure

    def _refused_settings(self, error: Exception, *, client: str) -> TerminalError:
        reason = redacted(str(error), self.api_key)
        return TerminalError(f"The Gemini client '{client}' refuses its settings: {type(error).__name__}: {reason}")
