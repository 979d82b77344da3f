"""The middle of the window: one machine's tree, or why there is none, with what is going on above it."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QHBoxLayout, QLabel, QStackedWidget, QVBoxLayout, QWidget

from snaptree import words
from snaptree.plans.operation import interruption
from snaptree.plans.wording import plain
from snaptree.ui import icons
from snaptree.ui.banner import Banners
from snaptree.ui.estate_view import state_colour, state_icon
from snaptree.ui.inspector import selection_sums
from snaptree.ui.labels import ElidedLabel
from snaptree.ui.message_page import MessagePage
from snaptree.ui.snapshot_view import SnapshotView
from snaptree.ui.text import in_sentence
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from snaptree.jobs.host_backend import HostStatus
    from snaptree.model.errors import SnapTreeError
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine
    from snaptree.ui.thumbnails import ThumbnailLibrary

_COUNTDOWN_MS = 500


class TreePage(QWidget):
    """Header, banners, the tree or a message, and one line about the selection."""

    take_wanted = Signal()
    retry_wanted = Signal()
    add_host_wanted = Signal()
    refresh_wanted = Signal()
    finish_wanted = Signal()
    leave_wanted = Signal()
    """What was interrupted on the machine is to be finished, or left as it is."""

    def __init__(self, parent: QWidget | None = None, thumbnails: ThumbnailLibrary | None = None) -> None:
        super().__init__(parent)
        self._machine: Machine | None = None
        self._status: HostStatus | None = None
        self.banners = Banners(("closing", "demo", "connection", "unfinished", "reading", "read-only"), self)
        self.banners.pressed.connect(self._banner_pressed)
        self.banners.other_pressed.connect(self.leave_wanted)
        self._state = QLabel(self)
        self._state.setFixedSize(icons.SIZE, icons.SIZE)
        self.title = ElidedLabel("", self)
        self.title.setObjectName("heading")
        self.facts = ElidedLabel("", self, dim=True)
        self.view = SnapshotView(self, thumbnails)
        self.view.selection_changed.connect(self._show_sums)
        self.message = MessagePage(self)
        self.message.pressed.connect(self._message_pressed)
        self._on_message: SignalInstance = self.add_host_wanted
        self.sums = ElidedLabel("", self, dim=True)
        self._header = QWidget(self)
        header = QHBoxLayout(self._header)
        header.setContentsMargins(12, 8, 12, 8)
        header.setSpacing(8)
        header.addWidget(self._state)
        header.addWidget(self.title)
        header.addSpacing(4)
        header.addWidget(self.facts, 1)
        self._footer = QWidget(self)
        footer = QHBoxLayout(self._footer)
        footer.setContentsMargins(12, 5, 12, 5)
        footer.addWidget(self.sums)
        table = QWidget(self)
        inner = QVBoxLayout(table)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(0)
        inner.addWidget(self.view, 1)
        inner.addWidget(self._footer)
        self._pages = QStackedWidget(self)
        self._pages.addWidget(self.message)
        self._pages.addWidget(table)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.banners)
        layout.addWidget(self._header)
        layout.addWidget(self._pages, 1)
        self._countdown = QTimer(self, interval=_COUNTDOWN_MS)
        self._countdown.timeout.connect(self._show_connection)
        self.show_no_host()

    # What is shown

    @property
    def machine(self) -> Machine | None:
        """The machine that is shown."""
        return self._machine

    def show_no_host(self) -> None:
        """The window has no host yet."""
        self._set(None, None)
        self._say(
            "host",
            "No host yet",
            "SnapTree shows the virtual machines of libvirt hosts: this computer, or any that you reach over SSH.",
            "&Add a Host…",
            self.add_host_wanted,
        )

    def show_host(self, host: HostEntry, title: str) -> None:
        """A host is selected: how its connection is doing, or that a machine is to be selected."""
        self._set(None, host.status)
        status = host.status
        match str(status.phase):
            case "connecting" | "closed":
                self._say("waiting", f"Connecting to {in_sentence(title)}…", host.uri)
            case "failed" if status.error is not None:
                self.message.say_error(status.error, "&Try Again")
                self._on_message = self.retry_wanted
                self._pages.setCurrentWidget(self.message)
            case _ if not host.machines():
                self._say(
                    "host", f"No virtual machines on {in_sentence(title)}", "Machines appear here as they are made."
                )
            case _:
                count = words.count(len(host.machines()), "virtual machine")
                self._say("host", title, f"{count}. Select one to see its snapshots.")

    def show_machine(self, machine: Machine, search: str = "") -> None:
        """A machine is selected: its tree, or why there is none."""
        self._set(machine, machine.host)
        self.view.show_machine(machine, search)
        tree, name = machine.tree, in_sentence(machine.domain.name)
        if tree is None and machine.error is not None:
            self.message.say_error(machine.error, "&Try Again")
            self._on_message = self.refresh_wanted
            self._pages.setCurrentWidget(self.message)
        elif tree is None:
            self._say("waiting", f"Reading the snapshots of {name}…")
        elif not len(tree) and machine.reading is not None and machine.reading.complete:
            self._say(
                "tree",
                "No snapshots yet",
                f"Take one to be able to bring {name} back to how it is now, whatever happens to it later.",
                "&Take a Snapshot…",
                self.take_wanted,
            )
        else:
            self._pages.setCurrentIndex(1)
        self._show_sums()

    def show_starting(self) -> None:
        """The window is there, and its hosts will be."""
        self._set(None, None)
        self._say("waiting", "Starting…")

    def show_demo_progress(self, doing: str, done: int, total: int) -> None:
        """Say how far the demo estate is."""
        self.banners["demo"].show_message("info", f"Building the demo estate: {doing}", progress=(done, total))

    def show_demo_built(self) -> None:
        """The demo estate is complete."""
        self.banners["demo"].hide()

    def show_demo_failed(self, error: SnapTreeError) -> None:
        """The demo estate could not be built."""
        text = f"The demo estate is not complete. {error}"
        self.banners["demo"].show_message("error", text, details=error.details)

    # Parts

    def _set(self, machine: Machine | None, status: HostStatus | None) -> None:
        self._machine, self._status = machine, status
        self._header.setVisible(machine is not None)
        if machine is not None:
            self.title.set_text(machine.domain.name)
            self.facts.set_text(_facts(machine))
        else:
            self.view.show_machine(None)
        self._show_connection()
        self._show_unfinished()
        self._show_reading()
        self._dress()

    def _show_connection(self) -> None:
        banner, lock, status = self.banners["connection"], self.banners["read-only"], self._status
        self._countdown.stop()
        if status is None:
            banner.hide()
            lock.hide()
            return
        is_read_only = status.host is not None and status.host.read_only
        if str(status.phase) == "lost" or (str(status.phase) == "failed" and self._machine is not None):
            text = _what_is_wrong(status)
            if status.retry_at is not None:
                seconds = max(0, round(status.retry_at - time()))
                text += f" Next try in {seconds} s." if seconds else " Trying…"
                self._countdown.start()
            details = "" if status.error is None else f"{status.error.hint}\n{status.error.details}"
            banner.show_message("warning", text, details=details, button="Try A&gain Now")
        elif status.error is not None and str(status.phase) == "connected" and not is_read_only:
            banner.show_message("warning", str(status.error), details=status.error.details, button="Try A&gain Now")
        else:
            banner.hide()
        if is_read_only and str(status.phase) == "connected":
            why = "" if status.error is None else f" {status.error}"
            lock.show_message("lock", f"Read-only connection: nothing can be changed over it.{why}")
        else:
            lock.hide()

    def _show_unfinished(self) -> None:
        """Something was interrupted: nothing else is changed before that is settled."""
        banner, machine = self.banners["unfinished"], self._machine
        if machine is None or machine.unfinished is None:
            banner.hide()
            return
        banner.show_message("error", interruption(machine.unfinished), button="&Finish…", other="&Leave as It Is…")

    def _show_reading(self) -> None:
        """The tree is there, but reading it again failed."""
        banner, machine = self.banners["reading"], self._machine
        if machine is not None and machine.error is not None and machine.tree is not None:
            text = f"{machine.error} What you see was read before."
            banner.show_message("warning", text, details=machine.error.details, button="Try A&gain Now")
        else:
            banner.hide()

    def _show_sums(self) -> None:
        machine = self._machine
        if machine is None:
            return
        names = self.view.selected_names()
        if not names:
            count = "? snapshots" if machine.snapshot_count is None else words.count(machine.snapshot_count, "snapshot")
            self.sums.set_text(
                f"{count}: on disk {words.figure(machine.disk)}, saved memory {words.figure(machine.memory)}",
                words.figure_in_full(machine.disk),
            )
            return
        sums = selection_sums(machine, names)
        parts = [f"{title.lower()} {words.figure(figure)}" for title, figure in sums]
        copies = dict(sums)["Copies"]
        seconds = None if machine.costs is None else machine.costs.speed.seconds(len(names), copies)
        if seconds is not None:
            parts.insert(2, words.about(seconds))  # after what it frees and copies
        self.sums.set_text(
            f"{len(names):,} selected: {', '.join(parts)}",
            "\n".join(f"{title}: {words.figure_in_full(figure)}" for title, figure in sums),
        )

    def _say(
        self, sign: str, title: str, text: str = "", button: str = "", wanted: SignalInstance | None = None
    ) -> None:
        self.message.say(sign, title, text, button=button)
        if wanted is not None:
            self._on_message = wanted
        self._pages.setCurrentWidget(self.message)

    def _message_pressed(self) -> None:
        self._on_message.emit()

    def _banner_pressed(self, topic: str) -> None:
        wanted = {
            "connection": self.retry_wanted,
            "unfinished": self.finish_wanted,
            "reading": self.refresh_wanted,
        }
        if topic in wanted:  # what else has a button is listened to by who shows it
            wanted[topic].emit()

    def changeEvent(self, event: QEvent) -> None:
        """Font or theme changed."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange):
            self.view.dress()
            self._dress()

    def _dress(self) -> None:
        if self._machine is None:
            return
        state, colours = self._machine.domain.state, colours_of(self.palette())
        self._state.setPixmap(
            icons.pixmap(state_icon(state), state_colour(state, colours), icons.SIZE, self.devicePixelRatioF())
        )


def _what_is_wrong(status: HostStatus) -> str:
    """One sentence or two: a connection that was lost is called so, also while it can't be had again."""
    lost = "The connection was lost."
    if status.error is None:
        return lost
    is_tried_again = str(status.phase) == "lost" and status.retry_at is not None
    return f"{lost} {status.error.summary}" if is_tried_again else status.error.summary


def _facts(machine: Machine) -> str:
    """What stands beside the name: its state, and what all its snapshots have in common."""
    parts = [words.state(machine.domain.state)]
    if not machine.domain.is_persistent:
        parts.append("transient")
    if machine.usual_kind is not None and machine.usual_consistency is not None:
        usual = f"{words.kind(machine.usual_kind)} and {words.consistency(machine.usual_consistency)}"
        parts.append(f"snapshots are {usual} unless marked")
    if machine.reading is not None and not machine.reading.complete:
        parts.append("reading…")
    return plain(" · ".join(parts))
