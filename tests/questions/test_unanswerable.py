"""The questions without an answer: what they name is not in the golden set."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.questions.answers import team_ids
from tests.questions.test_questions import golden
from tests.questions.unanswerable import UNANSWERABLE

#: Names in the questions that belong to nothing.
ABSENT = ("Aurora Vote Escrow", "Borrow month", "basalt-arena", "Saffron Euro", "sEUR")


def test_twenty_questions_are_asked_by_teams_that_exist() -> None:
    assert len({question.text for question in UNANSWERABLE}) == len(UNANSWERABLE) == 20
    assert sum(question.near for question in UNANSWERABLE) >= 8
    assert {question.team for question in UNANSWERABLE} <= team_ids(golden()).keys()


def test_the_golden_set_has_nothing_by_the_invented_names_nor_in_the_periods_outside() -> None:
    records = golden().records
    named = "\n".join(
        str(row) for source in ("smartcontracts", "campaigns", "websites", "transactions") for row in records[source]
    )
    asked = " ".join(question.text for question in UNANSWERABLE)
    for name in (*ABSENT, "00000000deadbeef"):
        assert name in asked
        assert name.casefold() not in named.casefold()
    months = {month_of(visit.start_ms) for visit in golden().visits}
    moved = {month_of(row.block_time_ms) for row in golden().transactions if row.block_time_ms is not None}
    assert "2019-03" not in months
    assert "2031-09" not in moved


def month_of(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m")
