"""What everything invented is drawn from: hashes of names, and SHA-512 of a seed and a number."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from bson import Int64, ObjectId

Record = dict[str, Any]
T = TypeVar("T")

SECOND_MS: Final = 1_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DICE: Final = struct.Struct(">32H")


def hex_of(*parts: str) -> str:
    """Return 64 hexadecimal digits that only these parts have."""
    return hashlib.sha256("\0".join(("cryptique sites", *parts)).encode()).hexdigest()


def object_id(made_s: int, *parts: str) -> ObjectId:
    """Return the id that only these parts have, made at that second."""
    return ObjectId(f"{made_s:08x}{hex_of(*parts)[:16]}")


def roll(kind: str, seed: int, number: int) -> bytes:
    """Return the 64 bytes that decide everything about one thing of that kind."""
    return hashlib.sha512(f"{kind}:{seed}:{number}".encode()).digest()


def dice_of(digest: bytes, kind: str = "") -> tuple[int, ...]:
    """Return 32 numbers of 16 bits; another kind gives others, for another part of the same thing."""
    return _DICE.unpack(hashlib.sha512(digest + kind.encode()).digest() if kind else digest)


def pick(items: Sequence[T], die: int) -> T:
    """Return the item that a die of 16 bits falls on."""
    return items[die * len(items) >> 16]


def moment(epoch_ms: int) -> datetime:
    """Return the aware time, UTC."""
    return _EPOCH + timedelta(milliseconds=epoch_ms)


def mixed(number: int, die: int) -> int | float:
    """Return the number as one of the types in which the source holds numbers."""
    return float(number) if die & 15 == 3 else Int64(number) if die & 15 == 7 else number
