"""Tallies: a number for each of many addresses, sorted and packed, so that a million of them merge within seconds.

Keys have one width: 20 bytes for a wallet, 16 for a visitor. In memory and in the store a tally is two runs of bytes,
the sorted keys and their numbers, and equal tallies are equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from bson.binary import Binary
from numpy.typing import NDArray

WALLET_BYTES = 20
VISITOR_BYTES = 16
_WALLETS = np.dtype(f"S{WALLET_BYTES}")

#: How the numbers of one key become one: counts are added, of moments the earliest stays.
Joining = Literal["sum", "min"]
_LARGEST_UINT32 = 2**32 - 1
_K = TypeVar("_K")


@cache
def _nothing(width: int) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Return arrays without items, which all empty tallies share: there is nothing in them to change."""
    return np.empty(0, f"S{width}"), np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """``keys`` are sorted and distinct, of numpy's type S20 or S16; ``numbers`` are int64, in the same order.

    A numpy item of type S loses the zero bytes at its end: read keys with ``key_bytes`` alone.
    """

    keys: NDArray[np.bytes_]
    numbers: NDArray[np.int64]
    joining: Joining = "sum"

    @classmethod
    def empty(cls, width: int, joining: Joining = "sum") -> Tally:
        """Return the tally of nothing."""
        return cls(*_nothing(width), joining)

    @classmethod
    def from_numbers(cls, numbers: Mapping[bytes, int], width: int, joining: Joining = "sum") -> Tally:
        """Return the tally of these keys, each ``width`` bytes long."""
        keys = np.frombuffer(b"".join(numbers), dtype=f"S{width}")
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], np.fromiter(numbers.values(), np.int64, len(numbers))[order], joining)

    @classmethod
    def of_addresses(cls, numbers: Mapping[str, int], joining: Joining = "sum") -> Tally:
        """Return the tally of wallets named as ``0x`` and 40 hexadecimal digits."""
        if not numbers:
            return cls.empty(WALLET_BYTES, joining)
        # Hexadecimal digits sort as the bytes that they stand for. Most days of a contract have one wallet.
        addresses = sorted(numbers) if len(numbers) > 1 else list(numbers)
        keys = np.frombuffer(bytes.fromhex("".join([address[2:] for address in addresses])), dtype=_WALLETS)
        return cls(keys, np.array([numbers[address] for address in addresses], np.int64), joining)

    @classmethod
    def merged(cls, tallies: Sequence[Tally]) -> Tally:
        """Return the tally of all keys of all tallies, of which there is at least one."""
        first = tallies[0]
        filled = [tally for tally in tallies if len(tally.keys)]
        if len(filled) < 2:
            return filled[0] if filled else first
        keys = np.concatenate([tally.keys for tally in filled])
        numbers = np.concatenate([tally.numbers for tally in filled])
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        joined = np.add.reduceat(numbers, starts) if first.joining == "sum" else np.minimum.reduceat(numbers, starts)
        return cls(keys[starts], joined, first.joining)

    def __len__(self) -> int:
        """Return how many distinct keys there are."""
        return len(self.keys)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Tally)
            and self.joining == other.joining
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.numbers, other.numbers)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    def shared(self, other: Tally) -> int:
        """Return how many keys both have."""
        return len(np.intersect1d(self.keys, other.keys, assume_unique=True))

    @property
    def width(self) -> int:
        """Return how many bytes a key has."""
        return int(self.keys.dtype.itemsize)

    def key_bytes(self, position: int) -> bytes:
        """Return the key at that position, whole."""
        return self.keys[position : position + 1].tobytes()

    def items(self) -> Iterable[tuple[bytes, int]]:
        """Yield each key with its number, in the order of the keys."""
        run, width = self.keys.tobytes(), self.width
        for position, number in enumerate(self.numbers.tolist()):
            yield run[position * width : (position + 1) * width], number

    def addresses(self) -> dict[str, int]:
        """Return the number of each wallet, named as ``0x`` and 40 hexadecimal digits."""
        return {"0x" + key.hex(): number for key, number in self.items()}

    def top(self, most: int) -> list[tuple[bytes, int]]:
        """Return the keys with the largest numbers; of equal ones the smaller key comes first."""
        if len(self.keys) > 8 * most:
            # All that may be among them, with those that tie with the last one.
            least = np.partition(self.numbers, -most)[-most]
            chosen = np.flatnonzero(self.numbers >= least)
        else:
            chosen = np.arange(len(self.keys))
        order = chosen[np.argsort(-self.numbers[chosen], kind="stable")][:most]
        return [(self.key_bytes(position), int(self.numbers[position])) for position in order]

    def halves(self) -> tuple[Tally, Tally]:
        """Return two tallies that merge to this one."""
        middle = len(self.keys) // 2
        return (
            Tally(self.keys[:middle], self.numbers[:middle], self.joining),
            Tally(self.keys[middle:], self.numbers[middle:], self.joining),
        )

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values."""
        small = not len(self.numbers) or (self.numbers.min() >= 0 and self.numbers.max() <= _LARGEST_UINT32)
        numbers = self.numbers.astype("<u4" if small else "<i8").tobytes()
        return {"keys": Binary(self.keys.tobytes()), "numbers": Binary(numbers)}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any], width: int, joining: Joining = "sum") -> Tally:
        """Return the tally of what ``stored`` gave. Raises ``ValueError`` where the runs don't belong together."""
        keys = np.frombuffer(bytes(stored["keys"]), dtype=f"S{width}")
        run = bytes(stored["numbers"])
        kind = "<u4" if len(run) == 4 * len(keys) else "<i8"
        numbers = np.frombuffer(run, dtype=kind).astype(np.int64)
        if len(numbers) != len(keys):
            raise ValueError(f"{len(keys)} keys, but {len(numbers)} numbers")
        return cls(keys, numbers, joining)


def add_up(counts: Iterable[Mapping[_K, int]]) -> dict[_K, int]:
    """Return the sum of counts, key by key."""
    total: dict[_K, int] = {}
    for count in counts:
        for key, number in count.items():
            total[key] = total.get(key, 0) + number
    return total
