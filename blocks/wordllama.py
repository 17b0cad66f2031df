"""wordllama: vectors on this machine, without a network, a key or a price."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from prefect.blocks.core import Block
from pydantic import Field

from blocks.tokens import forget_texts
from tasks.domain.errors import RecordError
from tasks.domain.vectors import EmbedderFacts, Matrix, checked_vectors

MODEL = "wordllama-l2-supercat-256"

MAX_TEXTS_PER_REQUEST = 1_000

#: The model averages the vectors of all tokens and has no limit of its own. Memory has: it pads a group of
#: texts to the longest and holds about 3 kB per token, so groups are cut to a number of padded tokens.
MAX_TOKENS_PER_TEXT = 8_192
MAX_TEXTS_PER_GROUP = 64
MAX_PADDED_TOKENS = 32_768

_loading = threading.Lock()


class LocalEmbedder(Block):
    """wordllama as an ``Embedder``: for the demo, for tests, and where no text may leave the machine.

    The same text gives the same vector on every machine. Its only error is ``RecordError`` for a text without
    a word: nothing here is worth another try.
    """

    _block_type_name = "Local embedder"
    _block_type_slug = "local-embedder"

    dimensions: Literal[64, 128, 256] = Field(
        default=256,
        description="The numbers per vector: 256 is what the package holds; 128 and 64 are its first ones, "
        "which the model is trained for.",
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        description="How many calls one process keeps in flight; the tokenizer uses all cores by itself.",
    )

    @property
    def facts(self) -> EmbedderFacts:
        """Return what decides its vectors and bounds its requests: no quota, no price, no task."""
        return EmbedderFacts(
            model=MODEL,
            dimensions=self.dimensions,
            task="none",
            max_texts_per_request=MAX_TEXTS_PER_REQUEST,
            max_tokens_per_text=MAX_TOKENS_PER_TEXT,
        )

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        """Return one L2-normalised row per text, in the order of the texts.

        More than 1,000 texts raise ``ValueError``. A batch that holds a text without any token raises
        ``RecordError``; the caller halves the batch to find it.
        """
        if len(texts) > MAX_TEXTS_PER_REQUEST:
            raise ValueError(f"{len(texts)} texts in one call; the limit is {MAX_TEXTS_PER_REQUEST}")
        if not texts:
            return checked_vectors([], count=0, dimensions=self.dimensions)
        _refuse_lone_surrogates(texts)
        # Every token but the first stands for a byte or more, so the bytes bound the padding.
        longest = 1 + max(len(text.encode()) for text in texts)
        group = max(1, min(MAX_TEXTS_PER_GROUP, MAX_PADDED_TOKENS // longest))
        rows: Matrix = _model().embed(list(texts), batch_size=group)[:, : self.dimensions]
        silent = int((~rows.any(axis=1)).sum())
        if silent:
            where = "the text holds" if len(texts) == 1 else f"{silent} of {len(texts)} texts hold"
            raise RecordError("embedding_refused", f"{where} no words the model knows, so there is no vector")
        return checked_vectors(rows, count=len(texts), dimensions=self.dimensions)

    def embed_query(self, text: str) -> Matrix:
        """Return the vector of a question, shape ``(dimensions,)``: the same as that of a document."""
        vector: Matrix = self.embed_documents([text])[0]
        return vector

    def check(self) -> None:
        """Embed one word: proof that the package and its weights are installed."""
        self.embed_query("transaction")


def _refuse_lone_surrogates(texts: Sequence[str]) -> None:
    """Raise ``RecordError`` for half a character: the tokenizer takes only what is UTF-8."""
    if any("\ud800" <= character <= "\udfff" for text in texts if not text.isascii() for character in text):
        raise RecordError("embedding_refused", "a text holds half a character (a lone surrogate)")


def _model() -> Any:
    """Return the model, loaded once per process, whichever thread asks first."""
    with _loading:
        return _load_model()


@lru_cache(maxsize=1)
def _load_model() -> Any:
    # The import calls logging.basicConfig, which would give the root logger a handler and the level INFO for
    # the rest of the process. It does nothing where a handler is there already.
    root, guard = logging.getLogger(), logging.NullHandler()
    root.addHandler(guard)
    try:
        import wordllama
    finally:
        root.removeHandler(guard)

    # Without cache_dir it looks for its tokenizer, which lies in the package, on a model hub.
    model = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    forget_texts(model.tokenizer)
    return model
