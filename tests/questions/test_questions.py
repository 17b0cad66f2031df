"""Sixty questions of an analyst, put to a reader who has the vector documents and nothing else."""

from __future__ import annotations

from copy import deepcopy
from datetime import date, datetime
from functools import cache
from typing import Any

import pytest

from tasks.domain.aggregates.periods import Period
from tasks.domain.aggregates.scopes import Scope
from tests.golden import Golden, make_golden
from tests.questions.answers import ANSWERS, site_ids, team_ids
from tests.questions.documents import aggregate_documents, row_documents, stored_of
from tests.questions.questions import QUESTIONS
from tests.questions.reading import Question, Reader, put_all

KINDS = {
    "performance",
    "top pages",
    "sources",
    "web3 users",
    "wallets",
    "volume",
    "size bands",
    "funnel",
    "campaign ROI",
    "retention",
    "geography",
    "peak hours",
    "staking",
    "comparisons",
}
#: Those that the documents can't answer, each with the reason.
UNANSWERED = {
    6: "the documents tell the average visit, which a few of many days decide: a median can't be merged from days",
    19: "wallets are ranked by their transactions, not by what they sent",
    24: "calls whose record names no method count under their selector, beside those of the same method by name",
}
AT_LEAST = 50


@cache
def golden() -> Golden:
    return make_golden()


def in_utc(scope: Scope, period: Period) -> bool:
    """All time and the months from 2024 on, days and weeks of its leap day and after: others are made alike."""
    if period.level in ("month", "all"):
        return period.level == "all" or period.first.year >= 2024
    return date(2024, 2, 26) <= period.first < date(2024, 3, 18)


def elsewhere(scope: Scope, period: Period) -> bool:
    return scope.kind == "site" and period.level in ("day", "month") and period.holds(date(2024, 3, 31))


@cache
def stored() -> tuple[dict[str, Any], ...]:
    """Return the stored rows of all records, and of the aggregates that may be asked for."""
    documents = [*row_documents(golden()), *aggregate_documents(golden(), "UTC", in_utc)]
    for zone in ("Asia/Kolkata", "Europe/Berlin"):
        documents.extend(aggregate_documents(golden(), zone, elsewhere))
    return tuple(stored_of(documents))


def reader(rows: tuple[dict[str, Any], ...]) -> Reader:
    return Reader(rows, sites=site_ids(golden()), teams=team_ids(golden()))


@cache
def reads() -> Reader:
    return reader(stored())


def test_sixty_questions_cover_every_class() -> None:
    assert [question.number for question in QUESTIONS] == list(range(1, 61))
    assert {question.kind for question in QUESTIONS} == KINDS
    assert len({question.text for question in QUESTIONS}) == 60


@pytest.mark.parametrize("question", QUESTIONS, ids=[f"{question.number}: {question.text}" for question in QUESTIONS])
def test_an_answer_in_the_list_is_that_of_the_records(question: Question) -> None:
    assert ANSWERS[question.number](golden()) == question.answer


def test_the_documents_alone_answer_the_questions_with_exact_figures() -> None:
    wrong = put_all(QUESTIONS, reads())
    assert wrong.keys() == UNANSWERED.keys(), "\n".join(wrong.values())
    assert len(QUESTIONS) - len(wrong) >= AT_LEAST


def test_a_figure_stands_beside_the_window_that_it_is_of_and_the_text_names_its_period() -> None:
    asked = 0
    for question in QUESTIONS:
        look = question.look
        if look.metric is None or question.number in UNANSWERED:
            continue
        for row in reads().find(look):
            facts = row["metadata"]["facts"]
            assert facts["timeZone"] == look.zone
            assert facts["window"]["start"] < facts["window"]["end"]
            assert Period.from_label(look.period or "all").words in row["content"]
            assert facts["subject"] in row["content"]
            asked += 1
    assert asked > 50


def test_rows_alone_answer_a_few_of_them() -> None:
    """One vector for each row can't answer questions about a time: that is why there are aggregates."""
    rows = tuple(row for row in stored() if not row["metadata"]["facts"].get("aggregate"))
    assert 5 <= len(QUESTIONS) - len(put_all(QUESTIONS, reader(rows))) < 10


def test_one_wrong_figure_is_found() -> None:
    (asked,) = (question for question in QUESTIONS if question.number == 1)
    (row,) = reads().find(asked.look)
    spoiled = deepcopy(row)
    spoiled["metadata"]["facts"]["figures"]["visitors"] += 1
    rows = tuple(spoiled if other is row else other for other in stored())
    assert put_all(QUESTIONS, reader(rows)).keys() == {1, *UNANSWERED}


def test_a_document_that_says_no_window_answers_nothing() -> None:
    (asked,) = (question for question in QUESTIONS if question.number == 1)
    (row,) = reads().find(asked.look)
    spoiled = deepcopy(row)
    del spoiled["metadata"]["timeframe"]
    assert put_all([asked], reader((spoiled,))).keys() == {1}


def test_a_client_that_reads_moments_without_their_zone_gets_the_same_answers() -> None:
    (asked,) = (question for question in QUESTIONS if question.number == 57)
    rows = [deepcopy(row) for row in reads().find(asked.look)]
    rows += [row for row in stored() if row["sourceType"] == "smart_contract"]
    for row in rows:
        for fields in (row["metadata"]["facts"], row["metadata"].get("timeframe", {})):
            moments = {
                name: value.replace(tzinfo=None) for name, value in fields.items() if isinstance(value, datetime)
            }
            fields.update(moments)
    assert put_all([asked], reader(tuple(rows))) == {}
