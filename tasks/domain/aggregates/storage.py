"""Partial figures as BSON, under a version: a day of a contract is one small document, or a few where it is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bson

from tasks.domain.aggregates.moves import Moves
from tasks.domain.aggregates.scopes import PartialTopic
from tasks.domain.aggregates.transactions import TransactionFigures
from tasks.domain.aggregates.visits import VisitFigures
from tasks.domain.errors import PipelineError

#: Raise it whenever the same rows would give other partial figures: a new rule, a new category, another form in the
#: store. Figures of another version are computed from the rows again.
PARTIAL_VERSION = 1
#: MongoDB takes documents of 16 MiB; a million wallets are 24 MB.
MAX_PART_BYTES = 8_000_000

Figures = TransactionFigures | VisitFigures | Moves
_KINDS: dict[PartialTopic, type[TransactionFigures] | type[VisitFigures] | type[Moves]] = {
    "transactions": TransactionFigures,
    "visits": VisitFigures,
    "moves": Moves,
}


class OutdatedPartialError(PipelineError):
    """Stored partial figures are of another version, or damaged: they must be computed from the rows again."""


def encode_partial(topic: PartialTopic, figures: Figures, *, max_bytes: int = MAX_PART_BYTES) -> list[bytes]:
    """Return the figures as BSON documents, none above ``max_bytes`` if it can be helped. Equal figures, equal bytes.

    Raises ``ValueError`` where even half of one entry is too large, which only a far too small ``max_bytes`` does.
    """
    encoded = bson.encode({"v": PARTIAL_VERSION, "topic": topic, "figures": figures.stored()})
    if len(encoded) <= max_bytes:
        return [encoded]
    halves: tuple[Any, Any] = figures.halves()
    if figures in halves:
        raise ValueError(f"figures of {len(encoded):,} bytes can't be stored in parts of {max_bytes:,}")
    return [part for half in halves for part in encode_partial(topic, half, max_bytes=max_bytes)]


def decode_partial(topic: PartialTopic, parts: Sequence[bytes]) -> Any:
    """Return the figures of all parts, in any order: ``TransactionFigures``, ``VisitFigures`` or ``Moves``.

    Raises ``OutdatedPartialError`` where a part is of another version or topic, or can't be read.
    """
    kind: Any = _KINDS[topic]
    found = []
    for part in parts:
        try:
            fields = bson.decode(part)
            if fields["v"] != PARTIAL_VERSION or fields["topic"] != topic:
                raise OutdatedPartialError(
                    f"stored figures are {str(fields['topic'])[:20]} of version {str(fields['v'])[:20]}, "
                    f"not {topic} of version {PARTIAL_VERSION}: compute them from the rows again"
                )
            found.append(kind.from_stored(fields["figures"]))
        except (bson.errors.InvalidBSON, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise OutdatedPartialError(
                f"stored figures can't be read ({type(error).__name__}): compute them from the rows again"
            ) from None
    return kind.merged(found)
