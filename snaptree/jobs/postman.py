"""The way from any thread to the window's."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, Signal


class Postman(QObject):
    """Brings calls from other threads to the window's. Those threads keep it alive, whatever becomes of its owner."""

    posted = Signal(object)

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` made on the window's thread, after those posted before it."""
        self.posted.emit(call)
