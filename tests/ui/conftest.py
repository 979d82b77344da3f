"""The real window over real hosts, and how to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PySide6.QtCore import QEventLoop, Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QWidget
from pytestqt.qtbot import QtBot

from snaptree.hosts import watching
from snaptree.plans.operation import Operation
from snaptree.ui.application import Session, make_application
from snaptree.ui.machine import Machine, MachineId
from snaptree.ui.main_window import MainWindow
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.settings import HostRequest, Settings, ThemeChoice
from snaptree.ui.snapshot_view import SnapshotView
from snaptree.ui.theme import Theme

TIMEOUT_MS = 60_000


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Qt's offscreen platform has no window manager to tell of size hints, and says so with every window."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.qt_log_ignore("does not support propagateSizeHints", extend=True))


@pytest.fixture(scope="session")
def qapp_cls() -> Callable[..., QApplication]:
    """The tests' application is the program's."""
    return lambda _arguments: make_application()


@pytest.fixture
def light(qapp: QApplication) -> Iterator[Theme]:
    """The light theme, whatever this computer likes."""
    theme = Theme(qapp, ThemeChoice.LIGHT)
    yield theme
    theme.deleteLater()


class Driver:
    """A window with somebody before it."""

    def __init__(self, qtbot: QtBot, session: Session) -> None:
        self.qtbot = qtbot
        self.session = session
        self.window: MainWindow = session.window
        self.view: SnapshotView = session.window.page.view

    def until(self, condition: Callable[[], object]) -> None:
        """Let the event loop run until something holds."""
        self.qtbot.waitUntil(lambda: bool(condition()), timeout=TIMEOUT_MS)

    def show_machine(self, uri: str, uuid: str) -> None:
        """Choose a machine, and wait until its tree and its costs are shown."""
        self.until(lambda: uri in self.session.estate and self.session.estate.machine(MachineId(uri, uuid)))
        self.window.choose(MachineId(uri, uuid))
        self.until(lambda: self.machine.costs is not None)
        self.settle()

    @property
    def machine(self) -> Machine:
        """The machine that is shown."""
        machine = self.window.machine
        assert machine is not None
        return machine

    def names(self) -> list[str]:
        """The texts of the first column, row by row."""
        model = self.view.snapshot_model
        return [str(model.index(row, 0).data()) for row in range(model.rowCount())]

    def settle(self) -> None:
        """Let what is gathered be shown."""
        shown = self.view.snapshot_model
        self.until(lambda: self.window.machine is shown.shown.machine)

    @property
    def operations(self) -> list[Operation]:
        """What was done since the window opened."""
        activity = self.window.activity
        return [operation for operation in activity.operations if not activity.is_earlier(operation)]

    def last_operation(self) -> Operation:
        """Wait until all work is over; the last of it must have ended well."""
        self.until(lambda: self.operations and all(operation.state.is_over for operation in self.operations))
        operation = max(self.operations, key=lambda each: each.started)
        assert operation.error is None, f"{operation.error} {operation.error.details}"
        return operation

    def dialog(self, kind: type[QDialog] = QDialog) -> QDialog:
        """The dialog that is open, as soon as it is."""

        def found() -> QWidget | None:
            active = QApplication.activeModalWidget()
            return active if isinstance(active, kind) else None

        self.until(found)
        dialog = found()
        assert isinstance(dialog, kind)
        return dialog

    def plan_dialog(self) -> PlanDialog:
        """The preview that is open, as soon as its plan can be run."""
        dialog = self.dialog(PlanDialog)
        assert isinstance(dialog, PlanDialog)
        self.until(dialog.run_button.isEnabled)
        return dialog

    def press(self, key: Qt.Key, widget: QWidget | None = None) -> None:
        QTest.keyClick(widget or self.view, key)


@pytest.fixture
def open_window(qtbot: QtBot, qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Driver]]:
    """Open windows on hosts; they are closed, with all threads ended, when the test is over."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    sessions: list[Session] = []

    def open_on(*uris: str, read_only: bool = False, settings: Settings | None = None) -> Driver:
        session = Session(qapp, settings or Settings(), [HostRequest(uri, read_only) for uri in uris])
        sessions.append(session)
        session.window.resize(1280, 800)
        with qtbot.waitSignal(session.window.painted, timeout=TIMEOUT_MS):
            session.window.show()
        session.window.activateWindow()
        return Driver(qtbot, session)

    yield open_on
    for session in sessions:
        for dialog in session.window.findChildren(QDialog):
            dialog.close()
        session.window.close()
        session.close()


def spin(seconds: float) -> None:
    """Let the event loop run for so long: to see that something does not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
