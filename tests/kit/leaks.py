"""What a test must not leave behind: threads, running timers, windows, file descriptors."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PERMANENT_THREADS = {"libvirt-events", "qemu-reaper"}
"""They serve the whole process by design."""
GRACE_SECONDS = 10
"""How long a thread may take to end that was told to."""


@contextmanager
def no_thread_leaks() -> Iterator[None]:
    """Fail the test if a thread that it started is still there."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    left = [thread for thread in threading.enumerate() if thread not in before and thread.name not in PERMANENT_THREADS]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    alive = [thread.name for thread in left if thread.is_alive()]
    if alive:
        pytest.fail(f"threads still run after the test: {', '.join(alive)}")


@contextmanager
def no_qt_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if a window, a running timer or a running QThread of its own is still there."""
    import shiboken6
    from PySide6.QtCore import QCoreApplication, QEvent, QObject, QThread, QTimer
    from PySide6.QtWidgets import QApplication, QWidget

    started: list[QObject] = []

    def note(kind: Any) -> None:
        start = kind.start

        def noted(self: QObject, *arguments: Any) -> None:
            started.append(self)
            start(self, *arguments)

        monkeypatch.setattr(kind, "start", noted)

    note(QTimer)
    note(QThread)

    def address(window: QWidget) -> object:
        return shiboken6.getCppPointer(window)[0]  # Python's own object for it may come and go

    windows_before = set(map(address, QApplication.topLevelWidgets()))
    yield
    for _ in range(2):  # what is deleted may delete more
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
        QCoreApplication.processEvents()
        gc.collect()
    leaks = [
        f"{_describe(each)} still runs"
        for each in started
        if shiboken6.isValid(each)
        and ((isinstance(each, QTimer) and each.isActive()) or (isinstance(each, QThread) and each.isRunning()))
    ]
    windows: list[QWidget] = [
        window
        for window in QApplication.topLevelWidgets()
        if address(window) not in windows_before and window.parent() is None
    ]
    leaks += [f"{_describe(window)} was not destroyed" for window in windows]
    for window in windows:  # lest the next test is blamed as well
        window.close()
        window.deleteLater()
    if leaks:
        pytest.fail("left behind by the test: " + "; ".join(leaks))


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    """Fail the test if more files are open after it than before."""
    before = _open_files()
    yield
    gc.collect()
    left = {descriptor: target for descriptor, target in _open_files().items() if before.get(descriptor) != target}
    if left:
        pytest.fail(f"left open by the test: {left}")


def _open_files() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)  # noqa: PTH115  a descriptor's target is no path
        except OSError:  # the listing's own
            continue
    return found


def _describe(each: Any) -> str:
    parent = each.parent()
    owner = f" of {type(parent).__name__}" if parent is not None else ""
    return f"{type(each).__name__} {each.objectName()!r}{owner}"
