"""Rankings: how good an answer is where the right records are known, and how much two answers have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

#: How many records of an answer count.
DEPTH = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a file. ``relevant`` are the ids of the records that answer it; empty: nobody said."""

    id: str
    text: str
    kind: str = ""
    relevant: frozenset[str] = frozenset()


def parse_question(row: Mapping[str, Any]) -> Question:
    """Return the question of ``{"qid", "question"}`` with, where they are known, ``kind`` and ``relevant``.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else.
    """
    relevant = row.get("relevant") or []
    if not isinstance(relevant, list):
        raise TypeError("relevant is no list")
    return Question(
        str(row["qid"]), str(row["question"]), str(row.get("kind") or ""), frozenset(str(one) for one in relevant)
    )


def top(ids: Iterable[str]) -> tuple[str, ...]:
    """Return the first ten records, each once, at its best place."""
    return tuple(dict.fromkeys(ids))[:DEPTH]


def recall(answer: Sequence[str], relevant: Collection[str]) -> float:
    """Return the share of the right records that is in the first ten, 0 to 1; all of ten is 1 however many are right.

    ``answer`` holds each record once, the best first; ``relevant`` is not empty.
    """
    return sum(one in relevant for one in answer[:DEPTH]) / min(DEPTH, len(relevant))


def ndcg(answer: Sequence[str], relevant: Collection[str]) -> float:
    """Return how high the right records stand in the first ten, 0 to 1: 1 where none could stand higher."""
    best = sum(1 / log2(place + 2) for place in range(min(DEPTH, len(relevant))))
    return sum(1 / log2(place + 2) for place, one in enumerate(answer[:DEPTH]) if one in relevant) / best


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the share of the first ten that two answers have in common, 0 to 1; two empty answers are equal."""
    longest = max(len(one[:DEPTH]), len(other[:DEPTH]))
    return len({*one[:DEPTH]} & {*other[:DEPTH]}) / longest if longest else 1.0


def compare_answers(
    questions: Sequence[Question], answers: Mapping[str, Sequence[Sequence[str]]]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the measures of two generations' answers: by kind of question with ``all`` first, and by question.

    ``answers`` holds for each generation one ranking a question. A measure is the mean over the questions whose right
    records are known, ``judged`` of them; ``overlap`` is that over all.
    """
    (one, first), (other, second) = answers.items()
    rows: list[dict[str, Any]] = []
    for question, left, right in zip(questions, first, second, strict=True):
        row: dict[str, Any] = {"qid": question.id, "question": question.text, "kind": question.kind}
        row["overlap"] = overlap(left, right)
        if question.relevant:
            row |= {
                name: {"recall": recall(answer, question.relevant), "ndcg": ndcg(answer, question.relevant)}
                for name, answer in ((one, left), (other, right))
            }
        rows.append(row)
    kinds = dict.fromkeys(["all", *(question.kind for question in questions if question.kind)])
    return {kind: _means([row for row in rows if kind in ("all", row["kind"])], answers) for kind in kinds}, rows


def _means(rows: Sequence[Mapping[str, Any]], generations: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"questions": len(rows), "overlap": _mean([row["overlap"] for row in rows])}
    for name in generations:
        judged = [row[name] for row in rows if name in row]
        found["judged"] = len(judged)
        if judged:
            found[name] = {measure: _mean([row[measure] for row in judged]) for measure in ("recall", "ndcg")}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
