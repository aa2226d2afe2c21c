"""The reservoir: a bounded sample of what taught, in equal shares of the streams it came from."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Stratum(Generic[Item]):
    items: list[Item] = field(default_factory=list)
    seen: int = 0


class Reservoir(Generic[Item]):
    """Items by stratum; where it is full, the largest stratum gives up one at random.

    A stratum of its own keeps a fair sample of late and early items alike: a new one replaces an old one with the
    chance its capacity has over what was seen, but never less than one in ``memory`` times the capacity, so that what
    is very old fades.

    Parameters
    ----------
    capacity
        Most items in all.
    seed
        Of the drawing.
    memory
        How many times its size a stratum remembers.
    """

    def __init__(self, capacity: int, seed: int = 0, memory: float = 8.0) -> None:
        if capacity < 1:
            raise ValueError(f"a reservoir of {capacity} holds nothing")
        self._capacity, self._memory = capacity, memory
        self._random = random.Random(seed)
        self._strata: dict[str, _Stratum[Item]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def strata(self) -> dict[str, int]:
        """Items kept of each stratum."""
        return {name: len(stratum.items) for name, stratum in self._strata.items()}

    def add(self, name: str, item: Item) -> None:
        """Offer an item of a stratum."""
        stratum = self._strata.setdefault(name, _Stratum())
        stratum.seen += 1
        if self._size >= self._capacity:
            name, largest = max(self._strata.items(), key=lambda each: len(each[1].items))
            if len(stratum.items) >= len(largest.items):
                kept = len(stratum.items)
                chance = max(kept / stratum.seen, 1.0 / self._memory)
                if self._random.random() < chance:
                    stratum.items[self._random.randrange(kept)] = item
                return
            largest.items.pop(self._random.randrange(len(largest.items)))
            self._size -= 1
            if not largest.items:
                del self._strata[name]
        stratum.items.append(item)
        self._size += 1

    def forget(self, name: str) -> None:
        """Drop a stratum."""
        stratum = self._strata.pop(name, None)
        self._size -= len(stratum.items) if stratum is not None else 0

    def sample(self, count: int) -> list[Item]:
        """Items drawn at random, each stratum as likely as any other; fewer only where it is empty."""
        strata = [stratum for stratum in self._strata.values() if stratum.items]
        if not strata:
            return []
        return [self._random.choice(self._random.choice(strata).items) for _ in range(count)]
