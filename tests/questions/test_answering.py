"""Questions for figures, from their words alone: the right figures with what they rest on, or an honest refusal."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.answers.counting import count_staking, count_transactions, count_visits
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.answers.telling import tell, tell_refusal
from tasks.domain.retrieval.grounding import find_fault
from tests.questions.fresh_figures import QUESTIONS as FRESH
from tests.questions.judging import answer_to, ask, asker, fault_of, team
from tests.questions.library import golden_library
from tests.questions.questions import QUESTIONS
from tests.questions.test_questions import stored
from tests.questions.unanswerable import UNANSWERABLE


def test_of_sixty_questions_all_but_three_at_most_are_answered_right_and_cited() -> None:
    wrong = [fault for question in QUESTIONS if (fault := fault_of(question)) is not None]
    assert len(wrong) <= 3, "\n".join(wrong)


def test_fresh_questions_worded_by_somebody_else_are_answered_right_but_for_one_at_most() -> None:
    wrong = [fault for question in FRESH if (fault := fault_of(question)) is not None]
    assert len(wrong) <= 1, "\n".join(wrong)


def test_of_twenty_questions_without_an_answer_eighteen_at_least_are_refused() -> None:
    answered = [said for one in UNANSWERABLE if (said := answer_to(one)) is not None]
    assert len(answered) <= 2, answered


def test_an_answer_in_words_says_nothing_that_its_documents_do_not() -> None:
    checked = 0
    for question in QUESTIONS:
        answer = ask(question.text, asker(question))
        if not isinstance(answer, FigureAnswer) or answer.counted is not None:
            continue
        texts = [f"{row['content']} {row['metadata']['facts']}" for row in answer.cited]
        fault = find_fault(tell(answer), texts)
        assert fault is None or ("says" in fault and _is_of_a_window(fault, answer)), f"{question.text} {fault}"
        checked += 1
    assert checked > 45


def _is_of_a_window(fault: str, answer: FigureAnswer) -> bool:
    """Return whether the number that is not in the documents is in the name of a time or in a figure's name."""
    number = fault.removeprefix("it says ").partition(",")[0]
    return any(number in f"{figure.window} {figure.name} {figure.subject}" for figure in answer.figures)


@pytest.mark.parametrize("level", ["all", "2024-03", "2024-W11", "2025-03"])
def test_what_is_counted_from_records_is_what_documents_of_figures_say(level: str) -> None:
    compared = 0
    for name in ("Aurora Markets", "Quillon Finance", "Basalt Guild", "Orchard Protocol"):
        library = golden_library(team(name))
        rows = [library.rows[one] for one in library.rows if str(library.rows[one]["teamId"]) == team(name)]
        records = [row for row in rows if not row["metadata"]["facts"].get("aggregate")]
        for row in rows:
            facts = row["metadata"]["facts"]
            if facts.get("aggregate") and facts["label"] == level and facts["topic"] in _COUNTED:
                counted = _COUNTED[facts["topic"]](_records_of(row, records), Calendar(facts["timeZone"]))
                for figure, value in counted.items():
                    if figure == "volumes":
                        value = [{k: v for k, v in each.items() if k != "topSenders"} for each in value]
                    if figure != "medianSeconds":
                        assert facts["figures"][figure] == value, (row["documentId"], figure)
                        compared += 1
    assert compared > 100


_COUNTED = {"visits": count_visits, "transactions": count_transactions, "staking": count_staking}


def _records_of(document: Any, records: list[Any]) -> list[Any]:
    """Return the records that a document of figures is of, by its facts."""
    facts = document["metadata"]["facts"]
    source = "session" if facts["topic"] == "visits" else "transaction"
    chosen = [row for row in records if row["sourceType"] == source]
    if facts["scope"] == "site":
        chosen = [row for row in chosen if row["siteId"] == document["siteId"]]
    for name in ("contractId", "chain"):
        if facts["scope"] == name.removesuffix("Id"):
            chosen = [row for row in chosen if row["metadata"]["facts"].get(name) == facts[name]]
    if facts["label"] == "all":
        return chosen
    start, end = facts["window"]["start"], facts["window"]["end"]
    return [row for row in chosen if start <= row["metadata"].get("timeframe", {}).get("start", end) < end]


def test_no_team_gets_a_figure_of_another() -> None:
    for question in QUESTIONS:
        stranger = team("Pebble Street")
        assert asker(question) != stranger
        answer = ask(question.text, stranger)
        if isinstance(answer, FigureAnswer):
            assert {str(row["teamId"]) for row in answer.cited} <= {stranger}, question.text


def test_one_bound_to_a_website_gets_its_figures_without_naming_it_and_no_other_site_s() -> None:
    (site,) = {
        row["siteId"] for row in stored() if "aurora-docs.example" in str(row["metadata"]["facts"].get("domain"))
    }
    own = ask("How many visitors were there in May 2024?", team("Aurora Markets"), site)
    assert isinstance(own, FigureAnswer)
    assert {figure.subject for figure in own.figures} == {"Aurora Markets (aurora-docs.example)"}
    other = ask("How many visitors did Aurora Swap have in May 2024?", team("Aurora Markets"), site)
    assert isinstance(other, Refusal)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("How many visitors did Aurora Swap have from 2024 to 2025?", "1,362 visitors"),
        ("What was the median visit to Aurora Swap in 2024, in seconds?", "median visit"),
        ("What was the bounce rate of Aurora Swap on mobile in March 2024?", "mobile, March 2024: bounce rate"),
        (
            "How did the bounce rate of Aurora Swap differ by device in March 2024?",
            "bounce rate by device in %: desktop",
        ),
        ("How many transactions above 25 QUSD did the Quillon Dollar on Polygon have?", "transactions [1]"),
        ("How much gas did Quillon Finance use in the first quarter of 2025?", "gas used"),
        ("How many swaps did Aurora's router on Base make?", "swap transactions"),
        ("How many visitors did Aurora Swap have in March and in April 2024?", "43 visitors"),
        ("Bounce rate by country for Aurora Swap in June 2024", "bounce rate by country in %: US 26.67"),
        ("What percentage of sessions of Aurora Swap came from mobile in May 2024?", "share of mobile 31.25 %"),
        ("How many sessions came from twitter in May 2024 on Aurora Swap?", "11 sessions of twitter/social"),
        ("How many sessions on tablets with Safari from the US did Aurora Swap have in 2024?", "9 sessions"),
        ("What share of transactions failed on Base for Aurora Markets?", "share of failed 4.47 %"),
        ("How many wallets used Aurora Exchange and Aurora Swap: Router on Base?", "213 wallets"),
        (
            "Did the conversion rate of Quillon improve from May to June 2024?",
            "May 2024: visitors who connected a wallet",
        ),
    ],
)
def test_what_no_document_holds_is_counted_or_looked_up_piece_by_piece(question: str, said: str) -> None:
    owner = "Aurora Markets" if "Aurora" in question else "Quillon Finance"
    answer = ask(question, team(owner))
    assert isinstance(answer, FigureAnswer), answer
    assert said in tell(answer)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("How many visitors did Nimbus Swap have in March 2024?", "nothing is called Nimbus"),
        ("How many visitors did Aurora Swap have in March 2019?", "nothing is recorded"),
        ("How many visitors will Aurora Swap have next month?", "no forecast"),
        ("Why did the visits to Aurora Swap fall in April 2024?", "not why"),
        ("What was the volume of the Aurora Exchange in US dollars?", "no price"),
        ("How many holders does the Aurora Exchange have?", "balances"),
        ("How many visitors of Aurora Swap are women?", "personal"),
        ("Give me the phone numbers of Aurora Swap's visitors", "personal"),
        ("Add up the AURX and ETH volumes of the Aurora Exchange", "never added up"),
        ("What was the ROI on mobile of Spring liquidity?", "not kept by device"),
        ("How many visits to Aurora Swap lasted longer than 10 minutes?", "such a bound"),
        ("How many sessions did Aurora Swap have on Opera in May 2024?", "told apart by"),
        ("How many sessions per month did Aurora Swap have in 2024?", "one after the other"),
        ("From which cities did visitors of Aurora Swap come?", "country"),
    ],
)
def test_what_the_store_can_t_support_is_refused_with_what_would_be_needed(question: str, reason: str) -> None:
    answer = ask(question, team("Aurora Markets"))
    assert isinstance(answer, Refusal), answer
    assert reason in answer.reason
    assert answer.needed in tell_refusal(answer)


def test_what_asks_for_texts_is_no_question_for_figures() -> None:
    for text in ("failed swaps on Polygon in May", "show me approvals without a limit", "NFT mints paid with ether"):
        assert ask(text, team("Aurora Markets")) is None
