"""Starting and ending: signals, errors that nobody caught, and the demo estate in its window."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PySide6.QtCore import QCoreApplication, Qt, QTimer
from PySide6.QtWidgets import QApplication, QMessageBox
from pytestqt.qtbot import QtBot

from snaptree import resources
from snaptree.jobs.host_backend import HostBackend
from snaptree.model.errors import SnapTreeError
from snaptree.ui import application
from snaptree.ui.application import Session, make_application, run_window, save_screenshot
from snaptree.ui.settings import HostRequest, Settings

TREE = Path(application.__file__).parent.parent.parent
DEMO_SECONDS = 150


@pytest.fixture
def session(qtbot: QtBot, qapp: QApplication) -> Session:
    made = Session(qapp, Settings(), [])
    with qtbot.waitSignal(made.window.painted):
        made.window.show()
    qtbot.addWidget(made.window, before_close_func=lambda _window: made.close())
    return made


def test_the_desktop_knows_the_application(qapp: QApplication) -> None:
    assert make_application() is qapp
    assert not qapp.windowIcon().isNull()
    entry = resources.path(f"{QApplication.desktopFileName()}.desktop")
    assert entry.is_file(), "Wayland finds the icon by this name"
    assert resources.path(f"{QApplication.desktopFileName()}.metainfo.xml").is_file()
    assert f"Icon={QApplication.desktopFileName()}" in entry.read_text()


def test_libvirts_callbacks_stay_off_the_windows_thread() -> None:
    assert os.environ["QT_NO_GLIB"] == "1"


@pytest.mark.qt_no_exception_capture
def test_an_error_in_a_slot_is_shown_and_the_window_goes_on(
    session: Session, qtbot: QtBot, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("<b>oops</b>")

    with application._errors_are_shown(session.window):
        for _ in range(3):
            QTimer.singleShot(0, fail)
        qtbot.waitUntil(lambda: caplog.text.count("ValueError: <b>oops") == 3)
        boxes = [box for box in session.window.findChildren(QMessageBox) if box.isVisible()]
        assert len(boxes) == 1, "one at a time"
        assert "<b>oops</b>" in boxes[0].text()
        assert boxes[0].textFormat() is Qt.TextFormat.PlainText
        assert "Traceback" in boxes[0].detailedText()
        boxes[0].close()
        QTimer.singleShot(0, fail)
        qtbot.waitUntil(lambda: caplog.text.count("ValueError: <b>oops") == 4)
        for box in session.window.findChildren(QMessageBox):
            box.close()


def test_ctrl_c_closes_the_window(qapp: QApplication, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "test:///default")

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(1.0, interrupt)
    timer.start()
    assert run_window() == 0
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_host_the_users_own_are_opened(qapp: QApplication, qtbot: QtBot) -> None:
    Settings().hosts = [HostRequest("test:///default")]
    seen: list[str] = []

    def look() -> None:
        window = next(each for each in QApplication.topLevelWidgets() if each.objectName() == "" and each.isVisible())
        seen.append(window.windowTitle())
        window.close()

    QTimer.singleShot(1500, look)
    assert run_window() == 0
    assert seen == ["test"], "the one machine of libvirt's test driver is shown"


def test_a_picture_that_cannot_be_written_says_so(qapp: QApplication, tmp_path: Path) -> None:
    with pytest.raises(SnapTreeError, match="Cannot write the picture"):
        save_screenshot(["test:///default"], tmp_path / "nowhere" / "window.png")
    QCoreApplication.sendPostedEvents()


def test_what_was_read_half_built_is_read_again_when_the_demo_is_built(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = HostBackend("test:///default")
    session.estate.add(backend)
    again: list[str] = []
    monkeypatch.setattr(backend, "refresh", lambda: again.append(backend.uri))
    session._demo_built()
    assert again == ["test:///default"]


@pytest.mark.qemu
def test_the_demo_is_shown_while_it_is_built_and_gone_afterwards(tmp_path: Path) -> None:
    """In a process of its own: a process can have one embedded driver."""
    picture = tmp_path / "building.png"
    program = f"""
import sys
from snaptree.ui import application
from snaptree.ui.tree_page import TreePage

def look(self, doing, done, total):
    show(self, doing, done, total)
    if done > total // 2 and not looked:
        looked.append(done)
        application.render_window_png(self.window(), {str(picture)!r})
        print("looked", flush=True)

looked = []
show = TreePage.show_demo_progress
TreePage.show_demo_progress = look
sys.exit(application.run_window(demo=True))
"""
    base = tmp_path / "t"
    base.mkdir()
    environment = {**os.environ, "TMPDIR": str(base), "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": str(TREE)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline()]
        while lines[-1] and "looked" not in lines[-1]:
            lines.append(process.stdout.readline())
        assert "looked" in lines[-1], "".join(lines)
        assert picture.stat().st_size > 10_000
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEMO_SECONDS) == 0, process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 20
    while list(base.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(base.iterdir()) == []


def test_the_first_paint_waits_for_nothing_that_it_does_not_need() -> None:
    slow = ["libvirt", "numpy", "snaptree.hosts", "snaptree.jobs", "snaptree.plans.rules"]
    program = f"import sys, snaptree.ui.application; print(*[name for name in {slow} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=TREE)
    assert found.stdout.split() == []
