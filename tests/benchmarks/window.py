"""The real window in this process, drawn off screen, with watchers on what it paints and how long it is deaf."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from PySide6.QtCore import (
    QCoreApplication,
    QDeadlineTimer,
    QEvent,
    QEventLoop,
    QMessageLogContext,
    QObject,
    Qt,
    QTimer,
    QtMsgType,
    qInstallMessageHandler,
)

from snaptree.ui.application import Session, make_application
from snaptree.ui.machine import Machine
from snaptree.ui.main_window import MainWindow
from snaptree.ui.settings import HostRequest, Settings

LONGEST_SECONDS = 180


class Deafness(QObject):
    """How long the window's event loop was busy with one thing: gaps between the ticks of a timer of 1 ms."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = QTimer(self, interval=1, timerType=Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self.longest = 0.0
        """Seconds."""

    def start(self) -> None:
        self.longest = 0.0
        self._last = time.perf_counter()
        self._timer.start()

    def stop(self) -> float:
        self._tick()
        self._timer.stop()
        return self.longest

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now


class TreePaints(QObject):
    """When the tree of a machine was first painted with any row, with all of them, and with all their costs."""

    def __init__(self, window: MainWindow) -> None:
        super().__init__(window)
        self._view = window.page.view
        self._view.viewport().installEventFilter(self)
        self.first: float | None = None
        self.complete: float | None = None
        self.costed: float | None = None
        """As time.perf_counter gives it; None before that."""

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        if event.type() is QEvent.Type.Paint:
            # The view paints after this; what is posted here comes when it has.
            QTimer.singleShot(0, self, self._painted)
        return False

    def _painted(self) -> None:
        machine, now = self._view.snapshot_model.shown.machine, time.perf_counter()
        if machine is None or machine.tree is None or not len(machine.tree):
            return
        self.first = self.first or now
        if machine.reading is not None and machine.reading.complete:
            self.complete = self.complete or now
            if machine.costs is not None:
                self.costed = self.costed or now


@contextlib.contextmanager
def open_window() -> Iterator[Session]:
    """A painted window without a host yet."""
    application = make_application()
    qInstallMessageHandler(_print_message)
    session = Session(application, Settings(), [])
    painted: list[bool] = []
    session.window.painted.connect(lambda: painted.append(True))
    session.window.show()
    run_until(lambda: bool(painted))
    try:
        yield session
    finally:
        session.window.close()
        session.close()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def connect_window(session: Session, uri: str) -> None:
    """Have the window show a host, as if the user had added it."""
    session.window.host_wanted.emit(HostRequest(uri))


def run_until(is_done: Callable[[], bool], seconds: float = LONGEST_SECONDS) -> None:
    """Let the event loop run until something is so. Raises TimeoutError."""
    deadline = QDeadlineTimer(int(seconds * 1000))
    while not is_done():
        if deadline.hasExpired():
            raise TimeoutError(f"The window did not get there in {seconds:.0f} s.")
        QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)


def machines(session: Session) -> tuple[Machine, ...]:
    """Every machine that the window knows."""
    return tuple(machine for host in session.estate for machine in host.machines())


def _print_message(_kind: QtMsgType, _context: QMessageLogContext, text: str) -> None:
    """Qt's messages, but for what its offscreen platform says of every window."""
    if "propagateSizeHints" not in text:
        sys.stderr.write(f"{text}\n")
