"""Python's garbage collection, kept off the worker threads and out of the window's way.

Left alone, Python collects garbage on whichever thread allocates most, which is one that reads snapshots. There it
may destroy QObjects, which Qt allows on their own thread only; and a full collection holds everybody up for 60 ms
once 10,000 snapshots are known (measured; PERFORMANCE.md, "worst stall").
"""

from __future__ import annotations

import gc
import sys

from PySide6.QtCore import QObject, Qt, QTimer

_YOUNG_OBJECTS = 5_000
"""Collected when there are so many more than at the last time: about a millisecond's work."""
_YOUNG_GENERATIONS = 3
_FLOOD_OF_OBJECTS = 40_000
"""So many at once are a large tree that was just read, not garbage: looking through them would take 30 ms."""
_IDLE_INTERVAL_MS = 2_000
_SWITCH_SECONDS = 0.001
"""How long a busy thread may keep others from running Python; with the default of 5 ms, stalls double."""


class GarbageCollector(QObject):
    """Takes over from Python's own collector. Make one on the window's thread, and let it live as long as the window.

    Short-lived garbage is collected after every delivery from a worker, and every other second. All of it is only
    collected when `collect_all` is called: when the window is not being used.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        gc.disable()
        gc.freeze()  # the program itself will not be garbage
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._timer = QTimer(self, interval=_IDLE_INTERVAL_MS, timerType=Qt.TimerType.VeryCoarseTimer)
        self._timer.timeout.connect(collect_young)
        self._timer.start()

    def collect_all(self) -> None:
        """Collect everything. Takes a while: call it when nobody would notice, such as when the window loses focus."""
        gc.unfreeze()
        gc.collect()

    def stop(self) -> None:
        """Give the work back to Python."""
        self._timer.stop()
        gc.unfreeze()
        gc.enable()


def collect_young() -> None:
    """Collect what became garbage lately, if there may be enough of it. Does nothing while Python does it itself."""
    young, generations, _ = gc.get_count()
    if gc.isenabled() or young <= _YOUNG_OBJECTS:
        return
    if young > _FLOOD_OF_OBJECTS:
        gc.freeze()  # until collect_all
    else:
        gc.collect(1 if generations > _YOUNG_GENERATIONS else 0)
