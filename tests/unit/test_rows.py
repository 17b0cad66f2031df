"""Rows: the bytes that MongoDB stores. Equal bytes mean that nothing changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import bson
import numpy as np
import pytest
from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tasks.domain.chunks import CHUNKER_VERSION, Chunk
from tasks.domain.collections import VECTOR_DOCUMENTS
from tasks.domain.rows import (
    Stored,
    VectorForm,
    Verdict,
    changed_fields,
    document_id,
    judge,
    new_row,
    read_vector,
    row_hash,
    row_id,
)
from tasks.domain.transaction_documents import DESCRIBER_VERSION, describe_transaction
from tasks.domain.vectors import EmbedderFacts
from tests.builders import SITE_ID, TEAM_ID, TOKEN_ID, TX_HASH, make_body, make_transaction

FACTS = EmbedderFacts("model", 4, "document", 100, 2_048)
RECORD_ID = "64c000000000000000000001"
KEY = f"transaction:{TOKEN_ID}:{TX_HASH}"
NOW = datetime(2025, 7, 20, 12, 0, 0, 123_000, tzinfo=UTC)
VECTOR = np.array([0.5, -0.5, 0.1, 0.7], dtype=np.float32)
AWARE: bson.CodecOptions[dict[str, Any]] = bson.CodecOptions(tz_aware=True)
#: Forms that keep every bit of a vector, and forms that round it.
FORMS: tuple[VectorForm, ...] = ("float32", "doubles")
SMALL_FORMS: tuple[VectorForm, ...] = ("int8", "bits")


def body_of(chunks: int = 1, facts: EmbedderFacts = FACTS, text: str = "some text", **changes: Any) -> bytes:
    document = describe_transaction(make_transaction(**changes))
    return make_body(document, Chunk(0, 0, text, 4), chunks, facts)


def whole_row(form: VectorForm) -> dict[str, Any]:
    body = body_of()
    row = new_row(
        body,
        row_id=ObjectId(RECORD_ID),
        vector=VECTOR,
        form=form,
        content_hash=b"c" * 16,
        row_hash=row_hash(body),
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
        code_version="0.1.0+abc",
    )
    return bson.decode(row.raw, AWARE)


def test_the_id_of_a_chunk_is_derived_from_contract_hash_and_ordinal() -> None:
    assert document_id(KEY, 3) == f"transaction:{TOKEN_ID}:{TX_HASH}:3"


@pytest.mark.parametrize("form", FORMS)
def test_a_new_row_decodes_to_the_fields_of_vectordocuments(form: VectorForm) -> None:
    row = whole_row(form)
    assert row["_id"] == ObjectId(RECORD_ID)
    assert row["documentId"] == f"{KEY}:0"
    assert (row["sourceType"], row["sourceId"]) == ("transaction", ObjectId(RECORD_ID))
    assert (row["teamId"], row["siteId"]) == (TEAM_ID, SITE_ID)
    assert row["source"] == f"transaction:{RECORD_ID}"
    assert row["content"] == "some text"
    assert row["status"] == "active"
    assert row["version"] == 1
    assert row["createdAt"] == row["updatedAt"] == NOW
    assert (row["runId"], row["codeVersion"]) == ("run-1", "0.1.0+abc")
    assert (row["contentHash"], row["rowHash"]) == (b"c" * 16, row_hash(body_of()))
    assert row["sourceDigest"] == b"d" * 16
    assert row["lineage"] == {
        "model": "model",
        "dimensions": 4,
        "task": "document",
        "describer": DESCRIBER_VERSION,
        "chunker": CHUNKER_VERSION,
        "ordinal": 0,
        "chunks": 1,
    }
    assert set(VECTOR_DOCUMENTS.schema["required"]) <= row.keys()


def test_a_float32_row_holds_the_vector_that_the_driver_reads() -> None:
    stored = whole_row("float32")["embedding"]
    assert isinstance(stored, Binary)
    assert stored.subtype == 9
    read = stored.as_vector()
    assert read.dtype == BinaryVectorDtype.FLOAT32
    assert read.data == VECTOR.tolist()
    assert bytes(stored) == bytes(Binary.from_vector(VECTOR.tolist(), BinaryVectorDtype.FLOAT32))


def test_a_row_of_doubles_holds_no_integers_that_would_break_the_schema() -> None:
    row = new_row(
        body_of(),
        row_id=ObjectId(RECORD_ID),
        vector=np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32),
        form="doubles",
        content_hash=b"c" * 16,
        row_hash=b"r" * 16,
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
    )
    assert [type(value) for value in bson.decode(row.raw)["embedding"]] == [float] * 4


@pytest.mark.parametrize("form", FORMS)
@given(vector=arrays.arrays(np.float32, st.integers(1, 64), elements=st.floats(-1, 1, width=32)))
def test_a_vector_comes_back_bit_by_bit_from_either_form(form: VectorForm, vector: Any) -> None:
    row = new_row(
        body_of(),
        row_id=ObjectId(RECORD_ID),
        vector=vector,
        form=form,
        content_hash=b"c" * 16,
        row_hash=b"r" * 16,
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
    )
    read = read_vector(bson.decode(row.raw)["embedding"])
    assert read.dtype == np.float32
    assert read.tobytes() == vector.tobytes()


def test_a_slice_of_a_matrix_is_stored_like_a_vector_of_its_own() -> None:
    columns = np.asfortranarray(np.stack([VECTOR, VECTOR[::-1]]))
    row = new_row(
        body_of(),
        row_id=ObjectId(RECORD_ID),
        vector=columns[1],
        form="float32",
        content_hash=b"c" * 16,
        row_hash=b"r" * 16,
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
    )
    assert read_vector(bson.decode(row.raw)["embedding"]).tolist() == VECTOR[::-1].tolist()


def stored_as(vector: Any, form: VectorForm) -> Any:
    row = new_row(
        body_of(),
        row_id=ObjectId(RECORD_ID),
        vector=vector,
        form=form,
        content_hash=b"c" * 16,
        row_hash=b"r" * 16,
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
    )
    return bson.decode(row.raw)["embedding"]


unit_vectors = arrays.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1, 1, width=32)).filter(
    lambda vector: float(np.linalg.norm(vector)) > 1e-3
)


@given(vector=unit_vectors)
def test_an_int8_vector_points_where_the_whole_one_does_but_for_its_rounding(vector: Any) -> None:
    stored = stored_as(vector, "int8")
    largest = float(np.abs(vector).max())
    read = stored.as_vector()
    assert (stored.subtype, read.dtype, max(map(abs, read.data))) == (9, BinaryVectorDtype.INT8, 127)
    assert np.abs(np.array(read.data) - vector * (127 / largest)).max() <= 0.5 + 1e-4
    found = read_vector(stored)
    assert (found.dtype, found.shape) == (np.float32, vector.shape)
    assert abs(float(np.linalg.norm(found)) - 1) < 1e-3
    assert np.allclose(found / np.abs(found).max(), np.array(read.data) / 127, atol=1e-5)


@given(vector=unit_vectors)
def test_a_vector_of_bits_keeps_the_sign_of_every_number(vector: Any) -> None:
    stored = stored_as(vector, "bits")
    assert len(stored) == 2 + (len(vector) + 7) // 8
    assert (stored.subtype, stored.as_vector().dtype, stored[1]) == (
        9,
        BinaryVectorDtype.PACKED_BIT,
        -len(vector) % 8,
    )
    found = read_vector(stored)
    assert (found.dtype, found.shape) == (np.float32, vector.shape)
    assert ((found > 0) == (vector > 0)).all()
    assert abs(float(np.linalg.norm(found)) - 1) < 1e-3


@pytest.mark.parametrize("form", SMALL_FORMS)
def test_a_slice_of_a_matrix_is_stored_small_like_a_vector_of_its_own(form: VectorForm) -> None:
    columns = np.asfortranarray(np.stack([VECTOR, VECTOR[::-1]]))
    assert stored_as(columns[1], form) == stored_as(VECTOR[::-1].copy(), form)


def test_a_vector_of_an_unknown_kind_is_not_read() -> None:
    with pytest.raises(TypeError, match="unknown kind 0x42"):
        read_vector(Binary(b"\x42\x00abcd", 9))


@pytest.mark.parametrize("stored", [None, 17, {"a": 1}])
def test_what_is_no_embedding_is_not_read_as_one(stored: object) -> None:
    with pytest.raises(TypeError):
        read_vector(stored)


def test_a_change_without_a_vector_leaves_the_stored_one_and_its_birth() -> None:
    body = body_of()
    fields = bson.decode(
        changed_fields(
            body,
            vector=None,
            form="float32",
            content_hash=b"c" * 16,
            row_hash=b"r" * 16,
            source_digest=b"d" * 16,
            run_id="run-2",
            now=NOW,
            code_version="0.2.0",
        ).raw,
        AWARE,
    )
    assert not {"_id", "embedding", "createdAt", "version"} & fields.keys()
    assert fields["codeVersion"] == "0.2.0"
    assert fields.keys() == bson.decode(body).keys() | {
        "contentHash",
        "rowHash",
        "sourceDigest",
        "runId",
        "codeVersion",
        "updatedAt",
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_change_with_a_vector_gives_the_fields_of_a_new_row_but_its_birth(form: VectorForm) -> None:
    body = body_of()
    fields = changed_fields(
        body,
        vector=VECTOR,
        form=form,
        content_hash=b"c" * 16,
        row_hash=row_hash(body),
        source_digest=b"d" * 16,
        run_id="run-1",
        now=NOW,
        code_version="0.1.0+abc",
    )
    born = {"_id", "version", "createdAt"}
    assert bson.decode(fields.raw, AWARE) == {k: v for k, v in whole_row(form).items() if k not in born}


def test_the_same_transaction_gives_the_same_bytes() -> None:
    assert body_of() == body_of()
    assert row_hash(body_of()) == row_hash(body_of())
    assert len(row_hash(b"")) == 16


@pytest.mark.parametrize(
    "other",
    [
        {"text": "other text"},
        {"chunks": 2},
        {"facts": replace(FACTS, model="other")},
        {"facts": replace(FACTS, dimensions=8)},
        {"facts": replace(FACTS, task="query")},
        {"site_id": "other"},
        {"team_id": "64a0000000000000000000ff"},
        {"gas_used": 1},
        {"warnings": "gas_used left out"},
    ],
    ids=repr,
)
def test_whatever_a_row_stores_is_in_its_hash(other: dict[str, Any]) -> None:
    assert row_hash(body_of(**other)) != row_hash(body_of())


def test_a_price_or_a_quota_is_not_in_the_hash() -> None:
    assert body_of(facts=replace(FACTS, usd_per_million_tokens=9.0, texts_per_minute=5)) == body_of()


@pytest.mark.parametrize(
    ("content", "row", "verdict", "embeds"),
    [
        (b"c", b"r", Verdict.UNCHANGED, False),
        (b"c", b"x", Verdict.ROW_CHANGED, False),
        (b"x", b"r", Verdict.TEXT_CHANGED, True),
        (b"x", b"x", Verdict.TEXT_CHANGED, True),
    ],
)
def test_only_a_changed_text_is_embedded_again(content: bytes, row: bytes, verdict: Verdict, embeds: bool) -> None:
    stored = Stored(ObjectId(RECORD_ID), b"c", b"r", 1)
    assert judge(stored, content_hash=content, row_hash=row) is verdict
    assert verdict.needs_vector is embeds


def test_what_is_not_stored_is_new_and_needs_a_vector() -> None:
    assert judge(None, content_hash=b"c", row_hash=b"r") is Verdict.NEW
    assert Verdict.NEW.needs_vector


def test_the_first_chunk_takes_its_records_id_and_the_others_their_own() -> None:
    ids = [row_id(RECORD_ID, document_id(KEY, ordinal), ordinal) for ordinal in range(50)]
    assert ids[0] == ObjectId(RECORD_ID)
    assert len(set(ids)) == 50
    assert ids[7] == row_id(RECORD_ID, document_id(KEY, 7), 7)
