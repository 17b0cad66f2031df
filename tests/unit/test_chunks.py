"""Chunks: every text ends in pieces that fit, and nothing but white space is lost between them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.tokens import count_tokens
from tasks.domain.chunks import MAX_CONTENT_CHARS, Chunk, ChunkSize, content_hash, split_text
from tasks.domain.vectors import EmbedderFacts

FACTS = EmbedderFacts("model", 4, "document", 100, 2_048)
SMALL = ChunkSize(size_tokens=12, overlap_tokens=3, whole_tokens=20)


def check(text: str, size: ChunkSize) -> list[Chunk]:
    """Return the chunks, after checking all that a splitter promises."""
    chunks = split_text(text, size, count_tokens)
    covered = bytearray(len(text))
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert chunk.text == text[chunk.start : chunk.start + len(chunk.text)]
        assert chunk.text.strip()
        assert len(chunk.text) <= MAX_CONTENT_CHARS
        assert chunk.tokens == count_tokens([chunk.text])[0]
        assert chunk.tokens <= (size.whole_tokens if len(chunks) == 1 else size.size_tokens) or len(chunk.text) == 1
        covered[chunk.start : chunk.start + len(chunk.text)] = b"\1" * len(chunk.text)
    for one, two in pairwise(chunks):
        assert one.start < two.start
        assert one.start + len(one.text) < two.start + len(two.text), "a chunk inside its neighbour is paid for twice"
    lost = [char for char, kept in zip(text, covered, strict=True) if not kept and not char.isspace()]
    assert lost == []
    return chunks


prose = st.lists(st.text("abcdefgh éö", min_size=1, max_size=30), max_size=40).map(". ".join)
scripts = st.text("مرحبا بالعالم שלום עולם 你好世界 こんにちは สวัสดี नमस्ते \n", max_size=400)
emoji = st.text("👨\u200d👩\u200d👧🏽🇩🇪❤️ 🍣", max_size=200)
spaceless = st.text("abcdef0123456789", max_size=600)
blank = st.text(" \n\t\u2003\u3000\x1cx", max_size=300)


@given(st.text(max_size=400) | prose | scripts | emoji | spaceless | blank)
def test_every_text_ends_in_pieces_that_fit_and_lose_nothing(text: str) -> None:
    chunks = check(text, SMALL)
    assert bool(chunks) == bool(text.strip())


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=50).filter(str.strip), st.integers(1_000, 20_000))
def test_a_text_of_up_to_twenty_thousand_characters_ends_too(piece: str, length: int) -> None:
    text = (piece * (length // len(piece) + 1))[:length]
    check(text, ChunkSize())


@pytest.mark.parametrize(
    "text",
    [
        "word " * 4_000,
        "0x" + "0123456789abcdef" * 1_250,
        "a" * 20_000,
        "👨\u200d👩\u200d👧🏽" * 3_000,
        "🍣" * 20_000,
        "مرحبا بالعالم. " * 1_400,
        "世界" * 10_000,
        "שלום" * 5_000,
        "a" + " " * 19_998 + "b",
        "\n" * 19_999 + "x",
        "\u2028\x1c\x85" * 6_000 + "x",
        "e" + "\u0301" * 19_999,
        ". " * 10_000,
        "ﷺ" * 9_000,
    ],
    ids=[
        "words",
        "hex",
        "letter",
        "family",
        "sushi",
        "arabic",
        "chinese",
        "hebrew",
        "gap",
        "blank",
        "spaces",
        "accents",
        "stops",
        "ligature",
    ],
)
def test_a_hard_text_of_twenty_thousand_characters_is_cut_to_size(text: str) -> None:
    check(text, ChunkSize())


@given(st.integers(1, 60), st.data())
def test_no_size_makes_it_run_for_ever(size_tokens: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size_tokens - 1))
    size = ChunkSize(size_tokens=size_tokens, overlap_tokens=overlap, whole_tokens=data.draw(st.integers(0, 60)))
    text = data.draw(prose | spaceless | scripts)
    chunks = split_text(text, size, count_tokens)
    # The tokenizer counts its own two marks, so a single character may be above the smallest sizes.
    assert all(chunk.tokens <= max(size_tokens, size.whole_tokens) or len(chunk.text) == 1 for chunk in chunks)


def test_a_short_text_stays_whole_and_as_it_is() -> None:
    text = "  Token transfer: 12.5 USDT.\n"
    assert split_text(text, ChunkSize(), count_tokens) == [Chunk(0, 0, text, count_tokens([text])[0])]


def test_a_text_of_few_tokens_and_many_characters_is_cut_all_the_same() -> None:
    def one_token_each(texts: list[str]) -> list[int]:
        return [1] * len(texts)

    chunks = split_text("a b " * 5_000, ChunkSize(size_tokens=4_000), one_token_each)
    assert len(chunks) == 3
    assert all(len(chunk.text) <= MAX_CONTENT_CHARS for chunk in chunks)


def test_neighbours_in_prose_share_some_words_and_no_more_than_asked() -> None:
    text = " ".join(f"Sentence number {i} says little." for i in range(400))
    size = ChunkSize()
    chunks = check(text, size)
    for one, two in pairwise(chunks):
        assert 0 < one.start + len(one.text) - two.start <= size.overlap_tokens * 4


def test_chunks_of_prose_end_at_sentences() -> None:
    text = " ".join(f"Sentence number {i} says little." for i in range(400))
    assert all(chunk.text.endswith(".") for chunk in split_text(text, ChunkSize(), count_tokens))


def test_an_overlap_as_large_as_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        ChunkSize(size_tokens=50, overlap_tokens=50)


def test_all_real_long_documents_are_cut_within_the_limits(shared_data: Path) -> None:
    lines = (shared_data / "long_documents.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    assert len(documents) == 37
    total = 0
    for document in documents:
        text = max((value for value in document.values() if isinstance(value, str)), key=len)
        total += len(text)
        chunks = check(text, ChunkSize())
        assert (len(chunks) == 1) == (count_tokens([text])[0] <= ChunkSize().whole_tokens)
    assert total > 1_000_000


def test_the_same_text_has_another_vector_under_another_model_dimension_or_task() -> None:
    same = content_hash("text", FACTS)
    assert same == content_hash("text", EmbedderFacts("model", 4, "document", 1, 1))
    others = [
        content_hash("text ", FACTS),
        content_hash("text", EmbedderFacts("model2", 4, "document", 100, 2_048)),
        content_hash("text", EmbedderFacts("model", 5, "document", 100, 2_048)),
        content_hash("text", EmbedderFacts("model", 4, "query", 100, 2_048)),
        content_hash("4\0text", EmbedderFacts("model", 4, "document", 100, 2_048)),
    ]
    assert len({same, *others}) == 6
    assert len(same) == 16
