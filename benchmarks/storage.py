"""What smaller forms of vectors save and what they cost a search: real transactions, real questions, exact ranking."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import bson
import numpy as np
from numpy.typing import NDArray

from blocks.wordllama import LocalEmbedder
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.rows import VectorForm, changed_fields, read_vector
from tasks.domain.transaction_documents import describe_transaction
from tasks.domain.transactions import parse_transaction
from tasks.domain.vectors import Matrix
from tests.conftest import SHARED_DATA, read_extended_json

FORMS: tuple[VectorForm, ...] = ("float32", "int8", "bits", "doubles")
_NEAREST = 10
#: Documents that are asked for what is near them, beside the questions: a question alone says little about recall.
_DOCUMENTS_ASKED = 500
_NOW = datetime(2025, 7, 20, tzinfo=UTC)


def measure() -> dict[str, dict[str, float]]:
    """Return, by form, the bytes of a vector, and the share of the ten nearest that a search still finds.

    ``questions`` asks the shared questions, ``documents`` 500 of the documents themselves; what float32 finds is right.
    """
    embedder = LocalEmbedder()
    texts = _texts()
    vectors = np.concatenate([embedder.embed_documents(texts[at : at + 500]) for at in range(0, len(texts), 500)])
    asked = {
        "questions": np.stack(
            [embedder.embed_query(row["question"]) for row in read_extended_json(SHARED_DATA / "questions.jsonl")]
        ),
        "documents": vectors[np.random.default_rng(1).choice(len(vectors), _DOCUMENTS_ASKED, replace=False)],
    }
    right = {name: _nearest(queries, vectors) for name, queries in asked.items()}
    figures: dict[str, dict[str, float]] = {}
    for form in FORMS:
        stored = [_stored(vector, form) for vector in vectors]
        again = np.stack([read_vector(one) for one in stored])
        figures[form] = {"bytes": float(np.mean([len(bson.encode({"v": one})) - 8 for one in stored]))}
        for name, queries in asked.items():
            found = _nearest(queries, again)
            shared = [len(set(a) & set(b)) / _NEAREST for a, b in zip(right[name], found, strict=True)]
            figures[form][name] = float(np.mean(shared))
    return figures


def _stored(vector: Matrix, form: VectorForm) -> object:
    fields = changed_fields(
        bson.encode({}),
        vector=vector,
        form=form,
        content_hash=b"",
        row_hash=b"",
        source_digest=b"",
        run_id="",
        now=_NOW,
    )
    return bson.decode(fields.raw)["embedding"]


def _nearest(queries: Matrix, vectors: Matrix) -> NDArray[np.intp]:
    """Return the ten nearest of each query; among equal ones the first."""
    scores = np.round(queries @ vectors.T, 6)
    return np.argsort(-scores, axis=1, kind="stable")[:, :_NEAREST]


def _texts() -> list[str]:
    """Return the texts of the shared transactions, as they are embedded."""
    names = ("smartcontracts.jsonl", "teams.jsonl", "websites.jsonl")
    owners = Owners.from_records(*(read_extended_json(SHARED_DATA / name) for name in names))
    texts = []
    for record in read_extended_json(SHARED_DATA / "transactions.sample.jsonl.gz"):
        try:
            transaction = parse_transaction(record, owners, now_ms=round(_NOW.timestamp() * 1000))
        except RecordError:
            continue
        texts.append(describe_transaction(transaction).content)
    return texts


def main() -> None:
    """Print the figures."""
    sys.stdout.write("form      bytes  of ten nearest found: questions, documents\n")
    for form, figures in measure().items():
        share = f"{figures['questions']:.3f}  {figures['documents']:.3f}"
        sys.stdout.write(f"{form:8} {figures['bytes']:6.0f}  {share}\n")


if __name__ == "__main__":
    main()
