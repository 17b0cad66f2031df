"""Generations: sets of vectors beside each other, of which one is live; what may become of one, and when.

A generation is a collection of vector documents with its own dead letters, position and indexes. What one is made by
(embedder, model, dimensions, task, form) never changes; another model is another generation. All of them stand in one
record, the book, so that a switch is one write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tasks.domain.errors import InputError

if TYPE_CHECKING:  # the command line knows names and states, and need not wait for numpy
    from tasks.domain.rows import VectorForm

#: The generation of a store that never had another; its collections have the names that they always had.
FIRST = "first"
#: Names are parts of collections' names.
NAME_PATTERN = r"^[a-z0-9_]{1,20}$"

EmbedderName = Literal["gemini", "local"]
#: ``dropping`` lasts while collections are dropped; a name that was dropped is never given again, because unfinished
#: work of that name would take the new one's documents for its own.
State = Literal["building", "complete", "live", "retired", "dropping", "dropped"]

_MADE_BY = ("embedder", "model", "dimensions", "task", "form")


@dataclass(frozen=True, slots=True)
class Generation:
    """One set of vectors.

    ``describers`` are the versions that described each source in its last whole load, and ``chunker`` the one that
    split the texts; of a first generation that is older than the book they may be unknown. ``jobs`` built it.
    ``note`` says in words what it misses.
    """

    name: str
    embedder: EmbedderName
    model: str
    dimensions: int
    task: str
    form: VectorForm
    state: State = "building"
    describers: Mapping[str, int] = field(default_factory=dict)
    chunker: int | None = None
    jobs: tuple[str, ...] = ()
    begun_at: datetime | None = None
    completed_at: datetime | None = None
    live_since: datetime | None = None
    retired_at: datetime | None = None
    dropped_at: datetime | None = None
    note: str = ""

    @property
    def is_standing(self) -> bool:
        """Return whether its documents are all there."""
        return self.state not in ("dropping", "dropped")

    @property
    def made_by(self) -> str:
        """Return ``gemini-embedding-2, 768 dimensions, float32``."""
        return f"{self.model}, {self.dimensions:,} dimensions, {self.form}"

    def to_record(self) -> dict[str, Any]:
        """Return it as the book keeps it."""
        return {_camel(name): value for name, value in asdict(self).items() if name != "name"} | {
            "jobs": list(self.jobs),
            "describers": dict(self.describers),
        }

    @classmethod
    def from_record(cls, name: str, record: Mapping[str, Any]) -> Generation:
        """Return the generation that ``to_record`` was called on; what a later version added is left out."""
        known = {one.name: record[_camel(one.name)] for one in fields(cls) if _camel(one.name) in record}
        return cls(name=name, **{**known, "jobs": tuple(known.get("jobs", ()))})


@dataclass(frozen=True, slots=True)
class Book:
    """Which generation is live, which was before it, and all that there ever were.

    ``version`` counts the changes; 0 means that it was never written: then the first generation is live, is the only
    one, and what made it is said by the store's model. Each method returns the book after a change, or raises
    ``InputError`` for one that can't be meant.
    """

    live: str = FIRST
    previous: str | None = None
    generations: Mapping[str, Generation] = field(default_factory=dict)
    version: int = 0

    def to_record(self) -> dict[str, Any]:
        """Return it as it is stored, without its ``_id``."""
        return {
            "live": self.live,
            "previous": self.previous,
            "version": self.version,
            "generations": {name: one.to_record() for name, one in self.generations.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any] | None) -> Book:
        """Return the book that is stored, or the one that nobody wrote yet."""
        if record is None:
            return cls()
        known = {name: Generation.from_record(name, row) for name, row in record["generations"].items()}
        return cls(record["live"], record["previous"], known, record["version"])

    def find(self, name: str) -> Generation:
        """Return the standing generation of this name, or raise ``InputError``."""
        found = self.generations.get(name)
        if found is None:
            there = ", ".join(sorted(one.name for one in self.generations.values() if one.is_standing)) or FIRST
            raise InputError(f"there is no generation {name}; there are: {there}")
        if not found.is_standing:
            when = f" on {found.dropped_at:%Y-%m-%d}" if found.dropped_at else ""
            raise InputError(f"the generation {name} was dropped{when}: choose another name")
        return found

    def begun(self, wanted: Generation, *, first: Generation, now: datetime) -> Book:
        """Return the book with a generation to build: a new one, or one that is there and made by the same.

        ``first`` is what the first generation is made by, for a book that was never written. What is complete or
        retired keeps its state: it is only brought up to date.
        """
        known = dict(self.generations) or {FIRST: replace(first, name=FIRST, state="live")}
        if wanted.name == self.live:
            raise InputError(
                f"the generation {wanted.name} is live, and `ingest` keeps it up to date: give the new one another name"
            )
        if wanted.name not in known:
            known[wanted.name] = replace(wanted, state="building", begun_at=now)
            return self._changed(generations=known)
        found = self.find(wanted.name)
        other = [name for name in _MADE_BY if getattr(found, name) != getattr(wanted, name)]
        if other:
            raise InputError(
                f"the generation {found.name} was begun with {found.made_by}: leave the choices out to go on with it, "
                "or choose another name"
            )
        if found.state == "building":
            known[found.name] = replace(found, describers=wanted.describers, chunker=wanted.chunker)
        return self._changed(generations=known)

    def completed(
        self, name: str, *, describers: Mapping[str, int], chunker: int, jobs: Collection[str], now: datetime
    ) -> Book:
        """Return the book in which a generation holds the whole of the sources that ``describers`` names."""
        found = self.find(name)
        done = replace(
            found,
            state="complete" if found.state == "building" else found.state,
            describers={**found.describers, **describers},
            chunker=chunker,
            jobs=(*found.jobs, *(one for one in jobs if one not in found.jobs)),
            completed_at=now,
        )
        return self._with(done)

    def switched(self, name: str, *, now: datetime) -> Book:
        """Return the book in which this generation is live and the one that was is kept for a rollback."""
        found = self.find(name)
        if name == self.live:
            raise InputError(f"the generation {name} is live already")
        if found.state == "building":
            raise InputError(
                f"the generation {name} is half built: `cryptique-rag generations build {name}` goes on with it"
            )
        missed = (
            f"live again; what changed in the source between {found.retired_at:%Y-%m-%d %H:%M} UTC and "
            f"{now:%Y-%m-%d %H:%M} UTC is taken over by `ingest` from this generation's own position"
            if found.retired_at
            else ""
        )
        before = replace(
            self.find(self.live),
            state="retired",
            retired_at=now,
            note="not followed since it retired; `ingest` goes on from its own position once it is live again",
        )
        live = replace(found, state="live", live_since=now, note=missed)
        known = {**self.generations, before.name: before, live.name: live}
        return self._changed(live=name, previous=self.live, generations=known)

    def rolled_back(self, *, now: datetime) -> Book:
        """Return the book in which the generation that was live before is live again."""
        if self.previous is None:
            raise InputError("no generation was live before this one: there is nothing to go back to")
        return self.switched(self.previous, now=now)

    def dropping(self, name: str) -> Book:
        """Return the book in which nobody uses a generation any more, so that its collections may be dropped."""
        if name == self.live:
            raise InputError(f"the generation {name} is live: switch to another one first")
        found = self.generations.get(name)
        if found is None or found.state != "dropping":
            found = self.find(name)
        book = self._with(replace(found, state="dropping"))
        return replace(book, previous=None) if self.previous == name else book

    def dropped(self, name: str, *, now: datetime) -> Book:
        """Return the book in which a generation is gone; what it was stays written."""
        return self._with(replace(self.generations[name], state="dropped", dropped_at=now, note=""))

    def _with(self, generation: Generation) -> Book:
        return self._changed(generations={**self.generations, generation.name: generation})

    def _changed(self, **changes: Any) -> Book:
        return replace(self, version=self.version + 1, **changes)


def own_name(base: str, generation: str) -> str:
    """Return the name of a generation's collection: ``vectordocuments``, or ``vectordocuments_<generation>``."""
    return base if generation == FIRST else f"{base}_{generation}"


def own_key(base: str, generation: str) -> str:
    """Return the key of what belongs to one generation: ``position:transaction``, or that and ``@<generation>``.

    No name holds an ``@``.
    """
    return base if generation == FIRST else f"{base}@{generation}"


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.title() for word in rest)
