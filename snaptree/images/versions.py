"""Whether an image is as it was when it was read, and what is remembered of it while it is."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Final, Generic, TypeVar

_SETTLED_AFTER: Final = 2_000_000_000
"""Nanoseconds. A file changed later than this may change again without its time of change telling."""

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Version:
    """What changes when an image is written to or replaced."""

    told_by: Hashable
    is_settled: bool = field(compare=False)
    """Whether any change since will show: it shows neither if it came at the same moment as the last one, nor ever of a
    block device."""

    @classmethod
    def of(cls, told_by: Hashable, changed: int | None) -> Version:
        """What an image was when it was looked at; `changed` is in nanoseconds since 1970, None of a device."""
        return cls(told_by, changed is not None and time.time_ns() - changed > _SETTLED_AFTER)


class Remembered(Generic[_Found]):
    """What was found in images, until they change or there is too much of it. Any thread may use it."""

    def __init__(self, most: int, weigh: Callable[[_Found], int] = lambda _: 1) -> None:
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._found: OrderedDict[Hashable, tuple[tuple[Version, ...], _Found]] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Hashable) -> bool:
        """Whether there is anything that may still be true."""
        return key in self._found

    def get(self, key: Hashable, *versions: Version) -> _Found | None:
        """What was found, if the images were what they are now."""
        with self._lock:
            remembered = self._found.get(key)
            if remembered is None or remembered[0] != versions:
                return None
            self._found.move_to_end(key)
            return remembered[1]

    def keep(self, key: Hashable, found: _Found, *versions: Version) -> None:
        """Remember what was found in images that were opened as these; forget what nobody asked for longest.

        What was written to them meanwhile shows in their next version.
        """
        with self._lock:
            self._forget(key)
            if all(version.is_settled for version in versions):
                self._found[key] = versions, found
                self._weight += self._weigh(found)
            while self._weight > self._most:
                self._forget(next(iter(self._found)))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()
            self._weight = 0

    def _forget(self, key: Hashable) -> None:
        if (forgotten := self._found.pop(key, None)) is not None:
            self._weight -= self._weigh(forgotten[1])
