"""Judging: whether an answer with figures is right, holds what it rests on, or is rightly refused."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from tasks.domain.answers.answering import answer_figures
from tasks.domain.answers.model import FigureAnswer, Refusal
from tasks.domain.retrieval.understanding import Vocabulary, understand
from tests.questions.answers import team_ids
from tests.questions.library import MemoryLibrary, golden_library
from tests.questions.reading import Question
from tests.questions.test_questions import UNANSWERED, golden, reads
from tests.questions.unanswerable import Unanswerable

NOW = datetime(2025, 7, 31, tzinfo=UTC)


def ask(text: str, team: str, site: str | None = None) -> FigureAnswer | Refusal | None:
    """Return the answer that a team gets, by the team's id."""
    library = golden_library(team, site)
    return answer_figures(understand(text, vocabulary(library), now=NOW), library, now=NOW)


def vocabulary(library: MemoryLibrary) -> Vocabulary:
    """Return what the documents of a library name."""
    values = library.engine.values
    return Vocabulary.of(tokens=values(library.tenant, "token"), contracts=values(library.tenant, "facts.contractName"))


def team(name: str) -> str:
    """Return the id of a team by its name."""
    return team_ids(golden())[name]


def asker(question: Question) -> str:
    """Return the team whose question it is: that of what it looks at."""
    if question.look.team is not None:
        return team(question.look.team)
    return str(reads().find(question.look)[0]["teamId"])


def leaves(value: Any) -> list[str]:
    """Return the single values in a value, as texts."""
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    return [str(value)]


def answer_to(question: Unanswerable) -> str | None:
    """Return what was said to a question that has no answer, or None where it was refused."""
    answer = ask(question.text, team(question.team))
    return None if isinstance(answer, Refusal) else f"{question.text} {answer}"


def fault_of(question: Question) -> str | None:
    """Return what is wrong with the answer to a question, or None."""
    answer = ask(question.text, asker(question))
    if not isinstance(answer, FigureAnswer):
        return f"{question.text} {answer}"
    said = Counter(leaf for figure in answer.figures for leaf in leaves(figure.value))
    missing = Counter(leaves(question.answer)) - said
    if missing:
        return f"{question.text} {[(one.path, one.value) for one in answer.figures]}, without {list(missing)}"
    if not answer.cited or any(not figure.document_ids and figure.value for figure in answer.figures):
        return f"{question.text} rests on nothing"
    if question.look.metric is not None and question.number not in UNANSWERED:
        looked = {row["documentId"] for row in reads().find(question.look)}
        if not looked & {row["documentId"] for row in answer.cited}:
            return f"{question.text} rests on other documents"
    return None
