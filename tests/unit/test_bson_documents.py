"""BSON documents come whole out of blocks that end anywhere, and what is none is refused."""

from __future__ import annotations

import bson
import pytest
from bson.errors import InvalidBSON
from hypothesis import given
from hypothesis import strategies as st

from tasks.domain.bson_documents import DocumentSplitter

DOCUMENTS = [bson.encode(one) for one in ({}, {"_id": 1}, {"_id": 2, "text": "x" * 300}, {"_id": 3, "blob": bytes(9)})]


@given(st.lists(st.sampled_from(DOCUMENTS), max_size=12), st.integers(min_value=1, max_value=400))
def test_documents_are_the_same_wherever_the_blocks_end(documents: list[bytes], size: int) -> None:
    stream = b"".join(documents)
    splitter = DocumentSplitter()
    found = [one for at in range(0, len(stream), size) for one in splitter.split(stream[at : at + size])]
    splitter.require_end()
    assert found == documents


def test_a_document_that_is_cut_short_is_refused_at_the_end() -> None:
    splitter = DocumentSplitter()
    assert splitter.split(DOCUMENTS[2][:-1]) == []
    with pytest.raises(InvalidBSON, match="cut short"):
        splitter.require_end()


@pytest.mark.parametrize("block", [b"\x00\x00\x00\x00\x00", b"\xff\xff\xff\xff\x00", b"\x05\x00\x00\x00\x01"])
def test_what_is_no_document_is_refused(block: bytes) -> None:
    with pytest.raises(InvalidBSON):
        DocumentSplitter().split(block)
