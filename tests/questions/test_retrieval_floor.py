"""The floor of retrieval: the shared questions over all shared rows, searched as the product searches."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.evaluation import (
    OWN_QUESTIONS,
    Corpus,
    by_kind,
    by_words,
    evaluate,
    hybrid_with_filters,
    read_questions,
)
from blocks.wordllama import LocalEmbedder
from tasks.domain.retrieval.ranking import rank
from tasks.domain.retrieval.tenants import Tenant


@pytest.fixture(scope="module")
def corpus(shared_data: Path) -> Corpus:
    return Corpus.of_folder(shared_data, LocalEmbedder())


def test_the_shared_questions_are_answered_clearly_better_than_by_words_alone(
    corpus: Corpus, shared_data: Path
) -> None:
    questions = read_questions(shared_data / "questions.jsonl")
    found = by_kind(questions, evaluate(corpus, questions, hybrid_with_filters))
    assert (found["all"].recall, found["all"].ndcg) >= (0.95, 0.94)
    assert min(found[kind].recall for kind in ("semantic", "filter", "mixed")) >= 0.94
    words = by_kind(questions, evaluate(corpus, questions, by_words))
    assert found["all"].recall > words["all"].recall + 0.1


def test_questions_that_nobody_had_seen_are_answered_far_better_than_by_words_alone(corpus: Corpus) -> None:
    questions = read_questions(OWN_QUESTIONS)
    found = by_kind(questions, evaluate(corpus, questions, hybrid_with_filters))
    assert (found["all"].recall, found["all"].ndcg) >= (0.76, 0.75)
    assert found["filter"].recall >= 0.95
    words = by_kind(questions, evaluate(corpus, questions, by_words))
    assert found["all"].recall > words["all"].recall + 0.3


@pytest.mark.parametrize(
    ("question", "meanings"),
    [
        ("failed swaps on Polygon in May 2021", {"status failed", "on Polygon", "2021-05-01..2021-06-01"}),
        ("not failed, between 1k and 2.5m USDC", {"not failed", "1,000 to 2,500,000 USDC"}),
        ("more than 3 million gas", {"more than 3,000,000 gas"}),
        ("between 100 and 5k USDC", {"100 to 5,000 USDC"}),
        ("20,000+ USDC", {"at least 20,000 USDC"}),
        ("for a quarter ether or more", {"at least 0.25 ETH"}),
        ("no more than 500, as Dai transfers", {"at most 500 of that token", "token Dai"}),
        ("from 1 February 2024 on", {"2024-02-01.."}),
        ("blocks 100,000 to 100,100 on BSC", {"blocks 100000 to 100100", "on BNB Chain"}),
        ("the Polygon bridge on Ethereum", {"the contract polygon (matic): bridge before others", "on Ethereum"}),
        ("0x5a42ac1b… last month", {"a hash or an address that begins with 0x5a42ac", "2025-06-01..2025-07-01"}),
        ("whose block time is missing", {"without a known time"}),
        ("what may I see?", set()),
    ],
)
def test_what_a_question_says_exactly_is_read_and_nothing_else(
    corpus: Corpus, question: str, meanings: set[str]
) -> None:
    understood = corpus.understand(question)
    assert {one.meaning for one in understood.readings} == meanings


def test_each_team_gets_its_own_rows_alone(corpus: Corpus) -> None:
    teams = {term.removeprefix("team=") for entry in corpus.engine.entries for term in entry.terms if "team=" in term}
    team_of = {entry.document_id: entry.terms for entry in corpus.engine.entries}
    assert len(teams) > 10
    for team in sorted(teams):
        understood = corpus.understand("failed transfers of tokens")
        asked = corpus.embedder.embed_query(understood.text)
        for best, others in rank(corpus.engine, Tenant(team), understood, asked).best:
            assert all(f"team={team}" in team_of[one.document_id] for one in (best, *others))
