"""Ranking: the documents that meet a question's conditions, by words, by meaning and by what it prefers, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.domain.retrieval.engine import Engine, Ranked
from tasks.domain.retrieval.filters import AnyOf, Filter
from tasks.domain.retrieval.fusion import fold, fuse
from tasks.domain.retrieval.related import with_related
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.retrieval.understanding import Understood
from tasks.domain.vectors import Matrix

#: So many of each ranking are fused.
DEPTH = 200
#: Texts are written by the describer in the words of analysts: what matches them counts twice what is only near.
_WORDS_WEIGHT = 2.0
_PREFERRED_WEIGHT = 2.0
_RELATED_WEIGHT = 0.5


class Ranking(NamedTuple):
    """``best`` are documents with those that are folded behind each; ``fitting`` is how many met the conditions."""

    best: list[tuple[Ranked, list[Ranked]]]
    fitting: int


def rank(
    engine: Engine[Any],
    tenant: Tenant,
    understood: Understood,
    asked: Matrix | None,
    *,
    where: Filter = Filter(),  # noqa: B008 - frozen
) -> Ranking:
    """Return the documents that meet a question's conditions, and ``where``, in their order.

    Without ``asked``, the question's vector, words alone decide. Errors are the engine's.
    """
    chosen = engine.choose(tenant, understood.where & where)
    if not len(chosen):
        return Ranking([], 0)
    of_a_token = any(one.field == "token" for one in understood.where.any_of)
    words = with_related(understood.words, weight=_RELATED_WEIGHT, of_a_token=of_a_token)

    def nearest(documents: Any) -> list[Ranked]:
        if asked is not None:
            return engine.nearest(documents, asked, DEPTH)
        return engine.by_words(documents, words, DEPTH)

    rankings: list[tuple[Sequence[Ranked], float]] = [(engine.by_words(chosen, words, DEPTH), _WORDS_WEIGHT)]
    if asked is not None:
        rankings.append((nearest(chosen), 1.0))
    preferred = [
        (nearest(some), _PREFERRED_WEIGHT)
        for one in (*understood.preferred, *_wanted_figures(understood))
        if len(some := engine.narrow(chosen, Filter((one,))))
    ]
    # Where nothing is left to search for, the conditions alone decide.
    return Ranking(fold(fuse(rankings, preferred) or engine.first(chosen, DEPTH)), len(chosen))


def _wanted_figures(understood: Understood) -> list[AnyOf]:
    """Return what a question for figures prefers: documents of figures, and among them those of its period."""
    if understood.wanted != "figures":
        return []
    wanted = [AnyOf("aggregate", ("yes",))]
    labels = tuple(frame.label for frame in understood.frames if frame.label is not None)
    if labels or not understood.frames:
        wanted.append(AnyOf("facts.label", labels or ("all",)))
    return wanted
