"""Fusion: several rankings of the same documents made one, and what says the same once more folded together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.domain.retrieval.engine import Ranked

#: The constant of reciprocal rank fusion, as it was published (Cormack, Clarke, Büttcher: SIGIR 2009).
RANK_CONSTANT = 60


def fuse(
    rankings: Iterable[tuple[Sequence[Ranked], float]], preferred: Iterable[tuple[Sequence[Ranked], float]] = ()
) -> list[Ranked]:
    """Return all documents of the rankings, each by the sum of ``weight / (60 + place)`` over those that have it.

    Those of a ``preferred`` list count as if each were its first. Ties go to the smaller document id.
    """
    scores: dict[str, float] = {}
    known: dict[str, Ranked] = {}
    for ranking, weight in rankings:
        for place, one in enumerate(ranking):
            known[one.document_id] = one
            scores[one.document_id] = scores.get(one.document_id, 0.0) + weight / (RANK_CONSTANT + place)
    for chosen, weight in preferred:
        for one in chosen:
            known[one.document_id] = one
            scores[one.document_id] = scores.get(one.document_id, 0.0) + weight / RANK_CONSTANT
    order = sorted(scores, key=lambda document_id: (-scores[document_id], document_id))
    return [known[document_id]._replace(score=scores[document_id]) for document_id in order]


def fold(ranked: Iterable[Ranked]) -> list[tuple[Ranked, list[Ranked]]]:
    """Return the best document of each fold, with its other ones behind it in their order."""
    groups: dict[int, tuple[Ranked, list[Ranked]]] = {}
    for one in ranked:
        if one.fold in groups:
            groups[one.fold][1].append(one)
        else:
            groups[one.fold] = (one, [])
    return list(groups.values())
