"""The book of generations as MongoDB keeps it: one record, read in one look and changed in one write.

Nothing here needs Prefect, whose import takes longer than a rollback may.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from tasks.domain.collections import STORE
from tasks.domain.errors import WorkTakenError
from tasks.domain.generations import Book

BOOK_ID = "generations"


class GenerationBook:
    """The book in a store's database. Errors are the driver's."""

    def __init__(self, database: Database[dict[str, Any]]) -> None:
        self._store: Collection[dict[str, Any]] = database.get_collection(
            STORE, write_concern=WriteConcern(w="majority", j=True), read_concern=ReadConcern("majority")
        )

    def read(self) -> Book:
        """Return which generations there are, and which of them is live."""
        return Book.from_record(self._store.find_one({"_id": BOOK_ID}))

    def change(self, change: Callable[[Book], Book], *, tries: int = 1) -> Book:
        """Write what ``change`` makes of the book, if nobody changed it since it was read, and return that.

        Tried again, from reading on, where somebody did. Raises ``WorkTakenError`` when ``tries`` are used up, and what
        ``change`` raises.
        """
        for _ in range(tries):
            seen = self.read()
            book = change(seen)
            row = {"_id": BOOK_ID, **book.to_record(), "updatedAt": datetime.now(UTC)}
            if seen.version == 0:
                with suppress(DuplicateKeyError):
                    self._store.insert_one(row)
                    return book
            elif self._store.replace_one({"_id": BOOK_ID, "version": seen.version}, row).matched_count:
                return book
        raise WorkTakenError(
            "somebody else changed the generations at the same moment: look at `cryptique-rag generations`, and give "
            "the command again if it is still meant"
        )
