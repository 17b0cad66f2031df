"""Engine: what chooses and ranks documents, be it the fallback index or a server's own vector search."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, NamedTuple, Protocol, TypeVar

from tasks.domain.retrieval.filters import Filter
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.vectors import Matrix

#: A score is float32: more digits say nothing, and would rank equal texts by chance.
SCORE_DIGITS = 6


class Ranked(NamedTuple):
    """A document by its place in a ranking. ``fold`` is the same for documents that say the same once more."""

    score: float
    document_id: str
    row_id: Any
    fold: int


Chosen = TypeVar("Chosen", bound=Sized)


class Engine(Protocol[Chosen]):
    """Searches the documents of one generation; rankings are best first, and equal ones go by their document ids.

    What ``choose`` returns is of one moment: whatever is written meanwhile, all that is asked with it sees the same.
    Errors are the store's (``PipelineError``).
    """

    @property
    def generation(self) -> str:
        """Return the name of the generation that is searched."""
        ...

    def choose(self, tenant: Tenant, where: Filter) -> Chosen:
        """Return the documents that the tenant may see and that fit; its length says how many."""
        ...

    def narrow(self, chosen: Chosen, where: Filter) -> Chosen:
        """Return those of the chosen documents that fit as well."""
        ...

    def nearest(self, chosen: Chosen, asked: Matrix, limit: int) -> list[Ranked]:
        """Return the chosen documents of greatest cosine with ``asked``, a normalised vector; it is the score."""
        ...

    def by_words(self, chosen: Chosen, weights: Mapping[str, float], limit: int) -> list[Ranked]:
        """Return the chosen documents by BM25 over these stems; ``weights`` multiply what each counts.

        How rare a word is, is told by the documents that the tenant may see: another team's change no score.
        """
        ...

    def first(self, chosen: Chosen, limit: int) -> list[Ranked]:
        """Return chosen documents by their ids, with a score of 0: where nothing is asked that could rank them."""
        ...

    def values(self, tenant: Tenant, field: str) -> Mapping[str, int]:
        """Return the values that the tenant's documents have of a field, casefolded, with the number of documents.

        For the fields of ``CATALOGUE`` (``tasks/domain/retrieval/entries.py``).
        """
        ...


class Engines(Protocol):
    """Where engines come from: one for each generation that is asked."""

    def live(self) -> Engine[Any]:
        """Return the engine of the generation that is live now. Errors are the store's."""
        ...
