"""How fast something goes that is measured now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_RECENT_SECONDS: Final = 10.0
"""What was longer ago says nothing of now: limits are changed on the way."""
_LEAST_SECONDS: Final = 1.0
"""In less, the size of the pieces would say more than their number."""


class Rate:
    """Bytes per second of late, of what comes in pieces: half a MiB at a time where QEMU copies slowly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        """When so much was first seen to be done. The first piece is where counting begins: it came at once."""

    def measure(self, done: int) -> float | None:
        """Take in how many bytes are done by now; None until that tells anything."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        if done and (not self._seen or done > self._seen[-1][1]):
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RECENT_SECONDS:
            self._seen.popleft()
        if not self._seen or now - self._seen[0][0] < _LEAST_SECONDS:
            return None
        since, before = self._seen[0]
        return (done - before) / (now - since)
