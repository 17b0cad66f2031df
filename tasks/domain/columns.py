"""Columns: which of a source's facts play which part in judging its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a source's table plays which part; a part that no column plays is None.

    ``amount`` is a decimal as text that counts ``unit``; ``figures`` are numbers with one unit each. ``kinds`` hold few
    different values, ``required`` ones hardly lack in a sound source, ``optional`` ones often do. ``formats`` maps a
    column to the regular expression (RE2) of all its values, ``ceilings`` a unit to more than one record ever moves.
    ``sender`` and ``recipient`` are parties of which the ``contract`` is only ever the second. ``warnings`` names what
    parsing left out. With ``fresh_days`` the newest record of a sound source is no older.
    """

    record_id: str = "record_id"
    key: str = "key"
    team_id: str = "team_id"
    time_ms: str | None = None
    amount: str | None = None
    unit: str | None = None
    figures: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    sender: str | None = None
    recipient: str | None = None
    contract: str | None = None
    warnings: str | None = None
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    fresh_days: float | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the columns that hold text, each once, but for the identity."""
        named = (self.amount, self.unit, self.sender, self.recipient, self.contract, self.warnings)
        others = (*self.kinds, *self.formats, *self.required, *self.optional)
        numbers = {self.time_ms, *self.figures}
        return tuple(dict.fromkeys(name for name in (*named, *others) if name and name not in numbers))

    @property
    def witnessed(self) -> tuple[str, ...]:
        """Return the columns whose values a witness keeps."""
        named = (self.time_ms, self.amount, self.unit, self.sender, self.recipient)
        return tuple(dict.fromkeys(name for name in (*named, *self.required, *self.formats) if name))
