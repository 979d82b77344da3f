"""Opening the window: Qt is set up, the window painted, and only then libvirt is loaded and the hosts are opened."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

# Before QApplication: with GLib's loop, libvirt's event loop would run in the same context, and its callbacks on
# the window's thread.
os.environ["QT_NO_GLIB"] = "1"

from PySide6.QtCore import (
    QEventLoop,
    QMessageLogContext,
    QObject,
    QTimer,
    QtMsgType,
    Signal,
    Slot,
    qInstallMessageHandler,
)
from PySide6.QtWidgets import QApplication

from snaptree import __version__
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.plans.plan import Finding
from snaptree.ui import icons
from snaptree.ui.activity import title_of
from snaptree.ui.error_dialog import show_error
from snaptree.ui.estate import Estate
from snaptree.ui.main_window import MainWindow
from snaptree.ui.settings import HostRequest, Settings
from snaptree.ui.theme import Theme

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType, TracebackType

    from snaptree.demo import DemoEstate
    from snaptree.hosts.journal import Journal
    from snaptree.ui.machine import Machine

DESKTOP_ID = "org.snaptree.SnapTree"
"""The name of the .desktop file: Wayland finds the window's icon by it."""

_CLOSES_WITHIN_SECONDS = 15.0
_SIGNAL_POLL_MS = 200
_PICTURE_WITHIN_SECONDS = 60.0
_SWITCH_SECONDS = 0.001
_SETTLE_MS = 400

_BEING_BUILT = Finding("demo", "The demo estate is still being built.", "It takes some seconds.")

_log = logging.getLogger("snaptree")


def run_window(
    uris: Sequence[str] = (), *, demo: bool = False, demo_directory: Path | None = None, read_only: bool = False
) -> int:
    """Open the window and return its exit status when it is closed.

    Without `uris` and demo it shows the user's own hosts; at the first start that is libvirt's default host.
    """
    application = make_application()
    settings = Settings()
    requests = [HostRequest(uri, read_only) for uri in uris]
    if not requests and not demo:
        if not settings.hosts:
            settings.hosts = [HostRequest(os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system")]
        requests = [HostRequest(host.uri, host.read_only or read_only) for host in settings.hosts]
    session = Session(application, settings, requests, demo=demo, demo_directory=demo_directory)
    with _errors_are_shown(session.window), _signals_close(session):
        session.window.show()
        status = application.exec()
        session.close()
    return status


def save_screenshot(uris: Sequence[str], path: Path) -> None:
    """Draw the window, with all that it would show of these hosts, into a PNG file. Needs no display.

    Raises SnapTreeError if the file can't be written.
    """
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    before = qInstallMessageHandler(_leave_out_size_hints)
    try:
        _draw_window(uris, path)
    finally:
        qInstallMessageHandler(before)


def _draw_window(uris: Sequence[str], path: Path) -> None:
    application = make_application()
    session = Session(application, Settings(), [HostRequest(uri) for uri in uris])
    session.window.resize(1280, 800)
    session.window.show()
    try:
        _wait_until_read(session.estate, _PICTURE_WITHIN_SECONDS)
        render_window_png(session.window, path)
    finally:
        session.window.close()
        session.close()


def _leave_out_size_hints(_kind: QtMsgType, _context: QMessageLogContext, message: str | None) -> None:
    """Qt's offscreen platform complains with every window that nobody can be told how large it may be."""
    if "propagateSizeHints" not in (message or ""):
        sys.stderr.write(f"{message}\n")


def render_window_png(window: MainWindow, path: Path) -> None:
    """Write a picture of the window as it is now. Raises SnapTreeError if the file can't be written."""
    QApplication.processEvents()
    if not window.grab().save(str(path), "PNG"):
        raise SnapTreeError(f"Cannot write the picture {path}.", hint="Choose a directory that you may write.")


def make_application() -> QApplication:
    """The one application object, with the name under which desktops know it."""
    existing = QApplication.instance()
    application = existing if isinstance(existing, QApplication) else QApplication(["snaptree"])
    # Python's threads pass the interpreter on after 5 ms otherwise, and painting asks for it again and again.
    sys.setswitchinterval(_SWITCH_SECONDS)
    application.setApplicationName("snaptree")
    application.setApplicationDisplayName("SnapTree")
    application.setApplicationVersion(__version__)
    application.setDesktopFileName(DESKTOP_ID)
    application.setWindowIcon(icons.application_icon())
    return application


class Session(QObject):
    """One window with its hosts, from the first paint until everything is closed."""

    _loaded = Signal()
    _journal_opened = Signal(object, str, object)
    """HostRequest, label, and a Journal or the SnapTreeError why there is none"""

    def __init__(
        self,
        application: QApplication,
        settings: Settings,
        requests: Sequence[HostRequest],
        *,
        demo: bool = False,
        demo_directory: Path | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._requests = list(requests)
        self._demo = DemoBuilder(demo_directory, self) if demo else None
        self._journals: dict[Path, Journal] = {}
        """By path. Until `close` the loading thread's own."""
        self.estate = Estate(self)
        self.window = MainWindow(self.estate, settings, Theme(application, settings.theme))
        self._is_closed = False
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.window.painted.connect(self._load_rooms)
        self._loaded.connect(self._open_hosts)
        self._journal_opened.connect(self._open_host)
        self.window.host_wanted.connect(self._add_host)
        self.window.host_removed.connect(self._remove_host)
        application.commitDataRequest.connect(self.window.closing.session_ends)
        if self._demo is not None:
            self._demo.prepared.connect(self._open_demo)
            self._demo.went_on.connect(self._demo_went_on)
            self._demo.built.connect(self._demo_built)
            self._demo.failed.connect(self._demo_failed)
        if requests or demo:
            self.window.page.show_starting()

    def close(self) -> None:
        """Disconnect from all hosts, wait for their threads, and take the demo estate down."""
        self._is_closed = True
        self._loading.shutdown()
        if self._demo is not None:
            self._demo.cancel()
        self.estate.close()
        self.window.thumbnails.close()
        deadline = monotonic() + _CLOSES_WITHIN_SECONDS
        for host in self.estate:
            host.backend.wait_until_closed(max(0.0, deadline - monotonic()))
            host.backend.record_given_up()
        for journal in self._journals.values():
            journal.close()
        if self._demo is not None:
            self._demo.close()
        self.window.deleteLater()

    def _load(self, load: Callable[[], None]) -> None:
        """Have something loaded on a thread, in order, while the window goes on."""
        with suppress(RuntimeError):  # closing already
            self._loading.submit(load).add_done_callback(lambda done: done.result())

    @Slot()
    def _load_rooms(self) -> None:
        """The window is on screen, and need not wait for libvirt and numpy to be loaded."""

        def load() -> None:
            import snaptree.jobs.host_backend  # noqa: F401  loaded for those who need it from now on

            self._loaded.emit()

        self._load(load)

    @Slot()
    def _open_hosts(self) -> None:
        if self._is_closed:
            return
        for request in self._requests:
            self._open(request)
        if self._demo is not None:
            self._demo.start()

    def _read_again(self) -> None:
        """Machines that were read half-built are not looked at again for long, if they are not on screen."""
        for host in self.estate:
            host.backend.refresh()

    def _open_demo(self, uri: str) -> None:
        self._open(HostRequest(uri), "Demo estate")

    def _demo_went_on(self, doing: str, done: int, total: int) -> None:
        self.window.page.show_demo_progress(doing, done, total)
        self.window.hold_changes(_BEING_BUILT)

    def _demo_built(self) -> None:
        self.window.page.show_demo_built()
        self.window.hold_changes(None)
        self._read_again()

    def _demo_failed(self, error: SnapTreeError) -> None:
        self.window.page.show_demo_failed(error)
        self.window.hold_changes(None)

    def _add_host(self, request: HostRequest) -> None:
        self._settings.hosts = [*self._settings.hosts, request]
        self._open(request)

    def _remove_host(self, uri: str) -> None:
        self._settings.hosts = [request for request in self._settings.hosts if request.uri != uri]
        self.estate.remove(uri)

    def _open(self, request: HostRequest, label: str = "") -> None:
        """Show a host, once its journal is open."""
        self._load(partial(self._open_journal, request, label))

    def _open_journal(self, request: HostRequest, label: str) -> None:
        """On the loading thread: the disk may be slow, or another program hold the file."""
        from snaptree.hosts.journal import Journal, journal_path

        path = journal_path(request.uri)
        try:
            journal = self._journals.get(path) or Journal(path)
        except SnapTreeError as error:
            self._journal_opened.emit(request, label, error)
        else:
            self._journals[path] = journal
            self._journal_opened.emit(request, label, journal)

    @Slot(object, str, object)
    def _open_host(self, request: HostRequest, label: str, opened: Journal | SnapTreeError) -> None:
        """Without a journal nothing may be changed."""
        from snaptree.jobs.host_backend import HostBackend

        if self._is_closed or request.uri in self.estate:
            return
        journal = None if isinstance(opened, SnapTreeError) else opened
        if isinstance(opened, SnapTreeError):
            show_error(opened, self.window)
        backend = HostBackend(request.uri, read_only=request.read_only or journal is None, journal=journal)
        self.estate.add(backend, label)
        backend.open()


class DemoBuilder(QObject):
    """Builds the demo estate on a thread, while the window shows what is there already."""

    prepared = Signal(str)
    """It can be connected to at this address."""
    went_on = Signal(str, int, int)
    """What was done last, steps done, steps in all."""
    built = Signal()
    failed = Signal(object)
    """SnapTreeError"""

    def __init__(self, directory: Path | None, parent: QObject) -> None:
        super().__init__(parent)
        self._directory = directory
        self._estate: DemoEstate | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._build, name="demo")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop building soon."""
        self._cancelled.set()

    def close(self) -> None:
        """Wait for the thread and let go of the estate: a throw-away one is removed."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._estate is not None:
            self._estate.close()

    def _build(self) -> None:
        """On the thread."""
        from snaptree.demo import DemoEstate, DemoProgress

        def on_progress(progress: DemoProgress) -> None:
            self.went_on.emit(progress.doing, progress.done, progress.total)

        try:
            self._estate = DemoEstate.prepare(self._directory)
            self.prepared.emit(self._estate.uri)
            self._estate.build(on_progress, self._cancelled.is_set)
        except CancelledError:
            return
        except SnapTreeError as error:
            self.failed.emit(error)
        else:
            self.built.emit()


# What goes wrong, and what comes from outside


@contextmanager
def _errors_are_shown(window: MainWindow) -> Iterator[None]:
    """Exceptions that nobody caught, in slots too: into the log and onto the screen, one at a time."""
    before, before_in_threads = sys.excepthook, threading.excepthook
    shown: list[object] = []

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            window.end()
            return
        _log.error("Unexpected error", exc_info=(kind, error, trace))
        if shown:
            return
        known = error if isinstance(error, SnapTreeError) else None
        details = "".join(traceback.format_exception(kind, error, trace))
        box = show_error(
            known
            or SnapTreeError(
                f"Something in SnapTree itself went wrong: {error}.",
                hint="The rest goes on working. Please report it with the details.",
                details=details,
            ),
            window,
        )
        shown.append(box)
        box.finished.connect(shown.clear)

    sys.excepthook = show
    threading.excepthook = lambda args: _log.error(
        "Unexpected error in a thread", exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    )
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook = before, before_in_threads


@contextmanager
def _signals_close(session: Session) -> Iterator[None]:
    """Ctrl+C, SIGTERM and SIGHUP close the window; the second time without waiting for work in progress.

    Nothing is asked then, nor when the desktop's session ends: who would see it?
    """
    asked: list[int] = []

    def close(number: int, _frame: FrameType | None) -> None:
        if asked:
            QApplication.exit()  # quit() would ask the window, which waits
        asked.append(number)
        # Not at once: a signal may come while the window is being painted, which must not lose it meanwhile.
        QTimer.singleShot(0, session.window, end)

    def end() -> None:
        if not session.window.end():
            work = "; ".join(title_of(operation.plan) for operation in session.window.activity.running)
            sys.stderr.write(f"snaptree: Closes as soon as this is done: {work}. Once more stops it where it can.\n")

    before = {number: signal.signal(number, close) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # Python handles signals only when it runs: wake it up now and then.
    awake = QTimer(session, interval=_SIGNAL_POLL_MS)
    awake.timeout.connect(lambda: None)
    awake.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_until_read(estate: Estate, seconds: float) -> None:
    """Let the event loop run until every host has answered and every machine is read, or so many seconds."""

    def is_read(machine: Machine) -> bool:
        return machine.error is not None or machine.costs is not None

    loop = QEventLoop()

    def look() -> None:
        hosts = list(estate)
        if hosts and all(
            str(host.status.phase) not in ("closed", "connecting")
            and all(is_read(machine) for machine in host.machines())
            for host in hosts
        ):
            loop.quit()

    poll = QTimer(interval=100)
    poll.timeout.connect(look)
    poll.start()
    QTimer.singleShot(int(seconds * 1000), loop.quit)
    loop.exec()
    poll.stop()
    # The views gather changes for a moment before they show them.
    QTimer.singleShot(_SETTLE_MS, loop.quit)
    loop.exec()
