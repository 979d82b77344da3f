"""Python's garbage collection, kept off the worker threads and out of the window's way.

Left alone, Python collects garbage on whichever thread allocates most, which is one that reads snapshots. There it
may destroy QObjects, which Qt allows on their own thread only; and a full collection holds everybody up for 60 ms
once 10,000 snapshots are known. So while hosts are open, garbage is collected on the window's thread, in small bites.
"""

from __future__ import annotations

import gc
import sys
import time

from PySide6.QtCore import QCoreApplication, QObject, Qt, QTimer, Slot

_YOUNG_OBJECTS = 5_000
"""Collected when there are so many more than at the last time: about a millisecond's work."""
_YOUNG_GENERATIONS = 3
_FLOOD_OF_OBJECTS = 40_000
"""So many at once are a large tree that was just read, not garbage: looking through them would take 30 ms."""
_TICK_MS = 2_000
_FULL_SECONDS = 600.0
_SWITCH_SECONDS = 0.001
"""How long a busy thread may keep others from running Python; Python's 5 ms double the window's stalls."""


class GarbageCollector(QObject):
    """Collects on the thread it was made on, from `hold` to the last `release`.

    Young garbage goes after every delivery from a worker, and every other second. All of it goes when the window
    loses the focus, where a pause is not noticed; and every ten minutes if it never does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._holders = 0
        self._switch_interval = sys.getswitchinterval()
        self._last_full = time.monotonic()
        self._timer = QTimer(self, interval=_TICK_MS, timerType=Qt.TimerType.VeryCoarseTimer)
        self._timer.timeout.connect(self._tick)
        # A QGuiApplication has it; this room knows nothing of windows.
        state_changed = getattr(QCoreApplication.instance(), "applicationStateChanged", None)
        if state_changed is not None:
            state_changed.connect(self._state_changed)

    def hold(self) -> None:
        """Take over from Python's own collector, if nobody has yet."""
        self._holders += 1
        if self._holders == 1:
            gc.disable()
            gc.freeze()  # the program itself will not be garbage
            self._switch_interval = sys.getswitchinterval()
            sys.setswitchinterval(_SWITCH_SECONDS)
            self._last_full = time.monotonic()
            self._timer.start()

    def release(self) -> None:
        """Give the work back to Python after the last holder."""
        self._holders -= 1
        if self._holders == 0:
            self._timer.stop()
            sys.setswitchinterval(self._switch_interval)
            gc.unfreeze()
            gc.enable()

    def collect_young(self) -> None:
        """Collect what became garbage lately, if there may be enough of it to be worth it."""
        young, generations, _ = gc.get_count()
        if not self._holders or young <= _YOUNG_OBJECTS:
            return
        if young > _FLOOD_OF_OBJECTS:
            gc.freeze()  # until everything is collected
        else:
            gc.collect(1 if generations > _YOUNG_GENERATIONS else 0)

    def collect_all(self) -> None:
        """Collect everything: up to a tenth of a second."""
        self._last_full = time.monotonic()
        gc.unfreeze()
        gc.collect()

    @Slot()
    def _tick(self) -> None:
        if time.monotonic() - self._last_full > _FULL_SECONDS:
            self.collect_all()
        else:
            self.collect_young()

    @Slot(Qt.ApplicationState)
    def _state_changed(self, state: Qt.ApplicationState) -> None:
        if self._holders and state is not Qt.ApplicationState.ApplicationActive:
            self.collect_all()


_collector: GarbageCollector | None = None


def collector() -> GarbageCollector:
    """The process's one; to be called on the window's thread."""
    global _collector
    if _collector is None:
        _collector = GarbageCollector()
    return _collector
