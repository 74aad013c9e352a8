"""A sequence whose items are made when they are looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

Item = TypeVar("Item", covariant=True)


class Lazy(Sequence[Item]):
    """Give it `__len__` and `item`; indices from the end and slices follow."""

    @abstractmethod
    def item(self, number: int) -> Item:
        """Make an item; `number` is 0 to the length, exclusive."""

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        """An item, or several."""
        places = range(len(self))[number]
        return self.item(places) if isinstance(places, int) else [self.item(at) for at in places]


class Mapped(Lazy[Item]):
    """What a function makes of each item of a sequence."""

    def __init__(self, function: Callable[[Any], Item], items: Sequence[Any]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def item(self, number: int) -> Item:
        """Call the function."""
        return self.function(self.items[number])
