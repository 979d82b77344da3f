"""The window: where its parts stand, and who tells whom."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from PySide6.QtCore import QByteArray, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QAction, QActionGroup, QContextMenuEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import QApplication, QMainWindow, QMenu, QMessageBox, QSplitter, QToolBar, QWidget

from snaptree import __version__
from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import unknown
from snaptree.plans.intention import Describe
from snaptree.plans.operation import last_undoable
from snaptree.ui import icons
from snaptree.ui.actions import Actions
from snaptree.ui.activity import Activity, title_of
from snaptree.ui.availability import Selection, why_no_cure
from snaptree.ui.changed_settings import selected_moments
from snaptree.ui.closing import Closing
from snaptree.ui.commands import Commands
from snaptree.ui.connect_dialog import ConnectDialog
from snaptree.ui.credentials_dialog import CredentialsDialog
from snaptree.ui.error_dialog import show_error
from snaptree.ui.estate_model import EstateModel, host_title
from snaptree.ui.estate_view import EstateView
from snaptree.ui.inspector import MEANT_WIDTH, Inspector
from snaptree.ui.machine import MachineId
from snaptree.ui.settings import HostRequest, SafetySnapshot, Settings, ThemeChoice
from snaptree.ui.text import in_sentence, note_of, window_title
from snaptree.ui.thumbnails import ThumbnailLibrary
from snaptree.ui.tree_page import TreePage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PySide6.QtCore import QPoint
    from PySide6.QtGui import QCloseEvent, QPaintEvent, QResizeEvent

    from snaptree.jobs.host_backend import CredentialsRequest
    from snaptree.plans.advice import Cure
    from snaptree.plans.plan import Finding
    from snaptree.ui.changed_settings import Moments
    from snaptree.ui.estate import Estate, HostEntry
    from snaptree.ui.machine import Machine
    from snaptree.ui.theme import Theme

T = TypeVar("T", bound=StrEnum)

_FRAME = 32
"""Height of a window's frame, about: it is not known before the window is shown."""
_NARROW = 860
"""Width of the window below which the tree gets the inspector's room."""
_LEAST_TREE = 300
_GATHER_MS = 30
"""Changes within this time are shown together."""


def _how_far(machine: Machine | None) -> int:
    """How much of a machine's tree is read: 0 nothing, 1 a part, 2 all."""
    return 0 if machine is None or machine.reading is None else 1 + machine.reading.complete


class MainWindow(QMainWindow):
    """Estate on the left, tree in the middle, inspector on the right, activity below."""

    painted = Signal()
    """The window is on screen for the first time."""
    host_wanted = Signal(object)
    """The user added the host of this HostRequest."""
    host_removed = Signal(str)
    """The user is done with the host at this address."""

    def __init__(self, estate: Estate, settings: Settings, theme: Theme) -> None:
        super().__init__()
        self._estate = estate
        self._settings = settings
        self._theme = theme
        self._chosen: MachineId | str | None = None
        self._search = ""
        self._under_way = ""
        """What changed the machine when the actions were last offered."""
        self._was_painted = False
        self._is_narrow = False
        self._shows_inspector_when_wide = False
        self.setWindowTitle("SnapTree")
        self.actions_ = Actions(self)
        self.model = EstateModel(estate, self)
        self.estate_view = EstateView(self.model, settings, self)
        self.thumbnails = ThumbnailLibrary(self)
        self.page = TreePage(self, self.thumbnails)
        self.inspector = Inspector(self.actions_, self, self.thumbnails)
        self.activity = Activity(self)
        self.commands = Commands(estate, settings, self.activity, self)
        self.closing = Closing(estate, self.activity, self.page.banners["closing"], self)
        self._is_showing = False
        self._gather = QTimer(self, singleShot=True, interval=_GATHER_MS)
        self._gather.timeout.connect(self._show_news)
        self._lay_out()
        self._build_menus()
        self._connect()
        self._restore_shape()
        self._show_chosen()

    # Building

    def _lay_out(self) -> None:
        self._columns = QSplitter(Qt.Orientation.Horizontal, self)
        self._columns.setObjectName("columns")
        for part, stretch in ((self.estate_view, 0), (self.page, 1), (self.inspector, 0)):
            self._columns.addWidget(part)
            self._columns.setStretchFactor(self._columns.count() - 1, stretch)
        self._columns.setCollapsible(1, False)
        self.page.setMinimumWidth(_LEAST_TREE)
        self._columns.setSizes([300, 660, MEANT_WIDTH])
        self._rows = QSplitter(Qt.Orientation.Vertical, self)
        self._rows.addWidget(self._columns)
        self._rows.addWidget(self.activity)
        self._rows.setStretchFactor(0, 1)
        self._rows.setStretchFactor(1, 0)
        self._rows.setCollapsible(0, False)
        self._rows.setSizes([650, 110])
        for splitter in (self._columns, self._rows):
            splitter.setHandleWidth(1)
        self.setCentralWidget(self._rows)
        bar = QToolBar("Toolbar", self)
        bar.setObjectName("toolbar")
        bar.setMovable(False)
        bar.setContextMenuPolicy(Qt.ContextMenuPolicy.PreventContextMenu)
        bar.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        bar.setIconSize(QSize(icons.SIZE, icons.SIZE))
        actions = self.actions_
        bar.addActions([actions.take, actions.revert, actions.delete])
        bar.addSeparator()
        bar.addAction(actions.pin)
        bar.addAction(actions.undo)
        bar.addSeparator()
        bar.addAction(actions.refresh)
        spacer = QWidget(bar)
        spacer.setSizePolicy(spacer.sizePolicy().Policy.Expanding, spacer.sizePolicy().Policy.Preferred)
        bar.addWidget(spacer)
        bar.addAction(actions.add_host)
        self.addToolBar(bar)
        # Del deletes snapshots where snapshots have the focus, and nowhere else.
        self.removeAction(actions.delete)
        self.page.view.addAction(actions.delete)

    def _build_menus(self) -> None:
        actions = self.actions_
        host = self._menu("&Host")
        host.addActions([actions.add_host, actions.remove_host, actions.retry])
        host.addSeparator()
        host.addAction(actions.quit)
        snapshot = self._menu("&Snapshot")
        snapshot.addActions([actions.take, actions.take_group])
        snapshot.addActions([actions.revert, actions.revert_with_choices, actions.revert_group, actions.delete])
        snapshot.addActions([actions.prune, actions.drop_memory])
        snapshot.addSeparator()
        snapshot.addActions([actions.note, actions.pin, actions.known_good, actions.rename])
        snapshot.addSeparator()
        snapshot.addActions([actions.compare, actions.look, actions.unlook])
        snapshot.addSeparator()
        snapshot.addAction(actions.undo)
        snapshot.addSeparator()
        safety = snapshot.addMenu("&Safety Snapshot before a Revert")
        self._choices(
            safety,
            {
                SafetySnapshot.ALWAYS: "&Always; Ask Only if Settings or the State Change",
                SafetySnapshot.ASK: "As&k Each Time",
                SafetySnapshot.NEVER: "&Never",
            },
            self._settings.safety_snapshot,
            self._safety_chosen,
        )
        view = self._menu("&View")
        view.addActions([actions.refresh, actions.find])
        view.addSeparator()
        view.addActions([actions.folds, actions.inspector, actions.activity])
        view.addSeparator()
        self._choices(
            view.addMenu("Colou&rs"),
            {
                ThemeChoice.SYSTEM: "Like the &System",
                ThemeChoice.LIGHT: "&Light",
                ThemeChoice.DARK: "&Dark",
            },
            self._theme.choice,
            self._theme_chosen,
        )
        self._menu("H&elp").addAction(actions.about)

    def _menu(self, title: str) -> QMenu:
        menu = self.menuBar().addMenu(title)
        menu.setToolTipsVisible(True)
        return menu

    def _choices(self, menu: QMenu, texts: Mapping[T, str], chosen: T, on_chosen: Callable[[QAction], None]) -> None:
        group = QActionGroup(self)
        for value, text in texts.items():
            action = menu.addAction(text)
            action.setCheckable(True)
            action.setChecked(value is chosen)
            action.setData(value.value)
            group.addAction(action)
        group.triggered.connect(on_chosen)

    def _connect(self) -> None:
        actions = self.actions_
        actions.take.triggered.connect(self._take)
        actions.take_group.triggered.connect(self._take_group)
        actions.revert.triggered.connect(self._revert)
        actions.revert_group.triggered.connect(self._revert_group)
        actions.revert_with_choices.triggered.connect(self._revert_with_choices)
        actions.delete.triggered.connect(self._delete)
        actions.prune.triggered.connect(self._prune)
        actions.drop_memory.triggered.connect(self._drop_memory)
        actions.note.triggered.connect(self._edit_note)
        actions.pin.triggered.connect(self._pin)
        actions.known_good.triggered.connect(self._mark_known_good)
        actions.rename.triggered.connect(self._rename)
        actions.compare.triggered.connect(self._compare)
        actions.look.triggered.connect(self._look)
        actions.unlook.triggered.connect(self._unlook)
        actions.undo.triggered.connect(self._undo)
        actions.refresh.triggered.connect(self._estate.refresh)
        actions.find.triggered.connect(self.estate_view.start_search)
        actions.add_host.triggered.connect(self.add_host)
        actions.remove_host.triggered.connect(self._remove_host)
        actions.retry.triggered.connect(self._retry)
        actions.folds.toggled.connect(self._fold)
        actions.inspector.toggled.connect(self.inspector.setVisible)
        actions.activity.toggled.connect(self.activity.setVisible)
        actions.quit.triggered.connect(self.close)
        actions.about.triggered.connect(self._about)
        # Qt opens menus with the Menu key, which many keyboards lack.
        QShortcut(QKeySequence("Shift+F10"), self).activated.connect(self._menu_by_keyboard)
        self.estate_view.chosen.connect(self._choose)
        self.estate_view.search_changed.connect(self._search_changed)
        self.estate_view.menu_wanted.connect(self._estate_menu)
        self.page.view.selection_changed.connect(self._selection_changed)
        self.page.view.menu_wanted.connect(self._snapshot_menu)
        self.page.view.note_written.connect(self._note_written)
        self.inspector.note.written.connect(self._write_note)
        self.page.take_wanted.connect(self._take)
        self.page.retry_wanted.connect(self._retry)
        self.page.refresh_wanted.connect(self._estate.refresh)
        self.page.add_host_wanted.connect(self.add_host)
        self.page.finish_wanted.connect(partial(self._recover, leave=False))
        self.page.leave_wanted.connect(partial(self._recover, leave=True))
        self.inspector.cure_wanted.connect(self._cure)
        self.inspector.changed.asked.connect(self._tell_changed_settings)
        self.inspector.changed.opened.connect(self.commands.compare)
        self.activity.began.connect(partial(actions.activity.setChecked, True))
        self.activity.changed.connect(self._offer_anew)
        estate = self._estate
        estate.hosts_changed.connect(self._hosts_changed)
        estate.host_changed.connect(self._host_changed)
        estate.machines_changed.connect(self._machines_changed)
        estate.machine_changed.connect(self._machine_changed)
        estate.operation_changed.connect(self.activity.show_operation)
        estate.done_elsewhere.connect(self.activity.show_elsewhere)
        estate.history_read.connect(self.activity.show_earlier)
        estate.credentials_needed.connect(self._ask_credentials)
        self._theme.changed.connect(self._dress)

    # What is chosen

    @property
    def chosen(self) -> MachineId | str | None:
        """The machine that is shown, or the address of the host that is, or None."""
        return self._chosen

    @property
    def machine(self) -> Machine | None:
        """The machine that is shown."""
        return self._estate.machine(self._chosen) if isinstance(self._chosen, MachineId) else None

    def choose(self, where: MachineId | str | None) -> None:
        """Show a machine, or a host by its address."""
        self.estate_view.list.choose(where)
        self._choose(where)

    def hold_changes(self, reason: Finding | None) -> None:
        """Switch all changing actions off for a reason, or back on."""
        if reason != self.actions_.held:
            self.actions_.held = reason
            self._selection_changed()

    def selection(self) -> Selection:
        """What is selected in the tree."""
        view = self.page.view
        machine = self.machine
        under_way = "" if machine is None else self.activity.under_way(machine.id.uri, machine.id.uuid)
        return Selection(machine, view.selected_names(), view.now_is_selected(), under_way)

    def _choose(self, where: MachineId | str | None) -> None:
        self._chosen = where
        for host in self._estate:
            is_chosen = isinstance(where, MachineId) and where.uri == host.uri
            host.backend.look_at(where.uuid if is_chosen and isinstance(where, MachineId) else None)
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Show what is known now of what is chosen."""
        self._gather.stop()
        machine, host = self.machine, self._host()
        self._is_showing = True
        self.actions_.remove_host.setEnabled(host is not None)
        self.actions_.retry.setEnabled(host is not None and str(host.status.phase) in ("lost", "failed"))
        if machine is not None:
            self.page.show_machine(machine, self._search)
            self.setWindowTitle(window_title(machine.domain.name))
        elif host is not None:
            self.page.show_host(host, host_title(host))
            self.setWindowTitle(window_title(host_title(host)))
        else:
            self.page.show_no_host()
            self.setWindowTitle("SnapTree")
        self._is_showing = False
        self._selection_changed()
        self._offer_undo()

    def _show_news(self) -> None:
        """Show what is chosen again, if anything about it is news."""
        machine = self.machine
        if machine is None or machine is not self.page.machine:
            self._show_chosen()

    def _selection_changed(self) -> None:
        if self._is_showing:
            return  # once, when all of it is shown
        selection = self.selection()
        self._under_way = selection.under_way
        self.actions_.offer(selection)
        if selection.machine is not None:
            self.inspector.show_selection(selection)
        else:
            self._show_host()
        self._offer_cures()

    def _show_host(self) -> None:
        host = self._host()
        rows = [row for row in self.model.rows if host is not None and row.entry.uri == host.uri]
        disk = rows[0].total if rows else unknown("not read yet")
        self.inspector.show_host(host, "" if host is None else host_title(host), disk)

    def _host(self) -> HostEntry | None:
        """The host that is shown, or of the machine that is; the first one if nothing is chosen."""
        uri = self._chosen.uri if isinstance(self._chosen, MachineId) else self._chosen
        if uri is not None and uri in self._estate:
            return self._estate[uri]
        return next(iter(self._estate), None)

    # News

    def _hosts_changed(self) -> None:
        uri = self._chosen.uri if isinstance(self._chosen, MachineId) else self._chosen
        if uri is not None and uri not in self._estate:
            # What is shown instead is selected in the list, too.
            first = next(iter(self._estate), None)
            self.choose(None if first is None else first.uri)
        self._show_chosen()

    def _host_changed(self, _uri: str) -> None:
        self._show_chosen()

    def _machines_changed(self, uri: str) -> None:
        if self._chosen is None:
            self._choose_first(uri)
        if isinstance(self._chosen, MachineId) and self._chosen.uri == uri and self.machine is None:
            # The machine is gone: its host is what is left to look at.
            self.choose(uri)
        self._gather.start()

    def _choose_first(self, uri: str) -> None:
        """Show the machine of last time, or the first one."""
        machines = self._estate[uri].machines()
        if machines:
            remembered = self._settings.text("machine")
            first = next((machine for machine in machines if machine.id.uuid == remembered), None)
            rows = [row for row in self.model.rows if row.entry.uri == uri]
            self.choose((first or rows[0].machines[0]).id if first or (rows and rows[0].machines) else uri)

    def _machine_changed(self, machine_id: MachineId) -> None:
        if machine_id == self._chosen:
            # The first part of a tree, and the whole of it, are shown at once.
            shown, known = self.page.machine, self.machine
            if shown is None or shown.id != machine_id or _how_far(shown) < _how_far(known):
                self._show_chosen()
            elif not self._gather.isActive():
                self._gather.start()

    def _ask_credentials(self, request: CredentialsRequest) -> None:
        CredentialsDialog(request, self).open()

    def _offer_anew(self) -> None:
        """What changes the machine has begun, or is over. Its progress changes nothing that is offered."""
        if self.selection().under_way != self._under_way:
            self._selection_changed()
        self._offer_undo()
        self._offer_cures()

    def _offer_cures(self) -> None:
        """Those of a host's findings are for machines that are not shown."""
        host = self._host()
        if host is not None:
            self.inspector.findings.offer(partial(self._why_no_cure, host.uri))

    def _why_no_cure(self, uri: str, cure: Cure) -> Finding | None:
        machine = self._estate.machine(MachineId(uri, cure.uuid))
        return self.actions_.held or why_no_cure(machine, self.activity.under_way(uri, cure.uuid))

    def _offer_undo(self) -> None:
        machine = self.machine
        operation = last_undoable(self.activity.operations, None if machine is None else machine.id.uuid)
        undo = operation.plan.undo if operation is not None and not self._under_way else None
        self.actions_.offer_undo("" if undo is None else undo.text)

    # Deeds

    def _take(self) -> None:
        machine = self.machine
        if machine is not None and self.actions_.take.isEnabled():
            self.commands.take(machine)

    def _take_group(self) -> None:
        machine = self.machine
        if machine is not None:
            self.commands.take_group(machine)

    def _revert_group(self) -> None:
        selection = self.selection()
        if selection.machine is not None and selection.group:
            self.commands.revert_group(selection.machine, selection.group)

    def _revert(self) -> None:
        selection = self.selection()
        if selection.machine is not None and len(selection.snapshots) == 1:
            self.commands.revert(selection.machine, selection.snapshots[0])

    def _revert_with_choices(self) -> None:
        selection = self.selection()
        if selection.machine is not None and len(selection.snapshots) == 1:
            self.commands.revert_with_choices(selection.machine, selection.snapshots[0])

    def _delete(self) -> None:
        selection = self.selection()
        if selection.machine is not None and selection.snapshots:
            self.commands.delete(selection.machine, selection.snapshots)

    def _prune(self) -> None:
        machine = self.machine
        if machine is not None:
            self.commands.prune(machine)

    def _drop_memory(self) -> None:
        selection = self.selection()
        if selection.machine is not None and len(selection.snapshots) == 1:
            self.commands.drop_memory(selection.machine, selection.snapshots[0])

    def _edit_note(self) -> None:
        """In its row; in the inspector, if it has several lines."""
        if not self.page.view.edit_note():
            self.actions_.inspector.setChecked(True)
            self.inspector.note.setFocus(Qt.FocusReason.ShortcutFocusReason)

    def _note_written(self, snapshot: str, note: str) -> None:
        shown = self.page.view.snapshot_model.shown.machine
        if shown is not None:
            self._write_note(shown.id, snapshot, note)

    def _write_note(self, machine_id: MachineId, snapshot: str, note: str) -> None:
        machine = self._estate.machine(machine_id)
        if machine is not None:
            self.commands.describe(machine, Describe((snapshot,), note=note_of(note)))

    def _pin(self) -> None:
        selection = self.selection()
        if selection.machine is not None:
            self.commands.describe(selection.machine, Describe(selection.snapshots, pinned=not selection.is_pinned))

    def _mark_known_good(self) -> None:
        selection = self.selection()
        if selection.machine is not None:
            marked = Describe(selection.snapshots, known_good=not selection.is_known_good)
            self.commands.describe(selection.machine, marked)

    def _rename(self) -> None:
        selection = self.selection()
        if selection.machine is not None and len(selection.snapshots) == 1:
            self.commands.rename(selection.machine, selection.snapshots[0])

    def _compare(self) -> None:
        moments = selected_moments(self.selection())
        if moments is not None:
            self.commands.compare(moments)

    def _tell_changed_settings(self, moments: Moments) -> None:
        """Have the inspector's question answered by the host."""
        self._estate[moments.machine.uri].backend.compare(
            moments.machine.uuid,
            moments.before,
            moments.after,
            partial(self.inspector.changed.answer, moments),
            only_latest=True,
        )

    def _look(self) -> None:
        selection = self.selection()
        if selection.machine is not None and len(selection.snapshots) == 1:
            self.commands.look(selection.machine, selection.snapshots[0])

    def _unlook(self) -> None:
        machine = self.machine
        if machine is not None:
            self.commands.unlook(machine)

    def _undo(self) -> None:
        machine = self.machine
        operation = last_undoable(self.activity.operations, None if machine is None else machine.id.uuid)
        if operation is not None:
            self.commands.undo(self.activity.host_of(operation), operation)

    def _recover(self, *, leave: bool) -> None:
        machine = self.machine
        if machine is not None:
            self.commands.recover(machine, leave=leave)

    def _cure(self, cure: Cure) -> None:
        host = self._host()
        if host is not None:
            self.commands.cure(host.uri, cure)

    def add_host(self) -> None:
        """Ask for another host."""
        dialog = ConnectDialog([host.uri for host in self._estate], self)
        dialog.chosen.connect(self._host_chosen)
        dialog.open()

    def _host_chosen(self, request: HostRequest) -> None:
        self.host_wanted.emit(request)
        self.choose(request.uri)

    def _remove_host(self) -> None:
        host = self._host()
        if host is None:
            return
        if work := self.activity.work_on(host.uri):
            title = in_sentence(host_title(host))
            hint = "Wait for it or cancel it, which is done below. Then remove the host."
            show_error(SnapTreeError(f"On {title} there is still work: {title_of(work[0].plan)}.", hint=hint), self)
            return
        self.host_removed.emit(host.uri)

    def _retry(self) -> None:
        host = self._host()
        if host is not None:
            if str(host.status.phase) == "connected":
                host.backend.refresh()
            else:
                host.backend.reconnect_now()

    def _search_changed(self, text: str) -> None:
        self._search = text
        self._show_chosen()

    def _fold(self, folds: bool) -> None:
        self.page.view.folds = folds

    def _safety_chosen(self, action: QAction) -> None:
        self._settings.safety_snapshot = SafetySnapshot(action.data())

    def _theme_chosen(self, action: QAction) -> None:
        self._settings.theme = ThemeChoice(action.data())
        self._theme.choose(self._settings.theme)

    def _about(self) -> None:
        box = QMessageBox(self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.setWindowTitle("About SnapTree")
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText(f"SnapTree {__version__}")
        box.setInformativeText(
            "The snapshots of libvirt virtual machines as trees, with their costs, changed safely.\n\n"
            "Free software under the GNU General Public License, version 3 or later."
        )
        box.setIconPixmap(icons.application_icon().pixmap(QSize(64, 64)))
        box.open()

    # Menus

    def _snapshot_menu(self, place: QPoint) -> None:
        actions = self.actions_
        changes = [actions.take, actions.revert, actions.revert_with_choices, actions.delete, actions.drop_memory]
        if self.selection().group:
            changes.insert(3, actions.revert_group)
        words = [actions.note, actions.pin, actions.known_good, actions.rename]
        self._pop_up(
            [*changes, None, *words, None, actions.compare, actions.look, None, actions.undo, None, actions.refresh],
            place,
        )

    def _estate_menu(self, place: QPoint) -> None:
        actions = self.actions_
        parts: list[QAction | None] = []
        if isinstance(self._chosen, MachineId):
            parts = [actions.take, actions.take_group, actions.prune, None]
        if self.machine is not None and self.machine.looks_at is not None:
            parts.insert(3, actions.unlook)
        self._pop_up([*parts, actions.retry, actions.remove_host, None, actions.add_host], place)

    def _menu_by_keyboard(self) -> None:
        """Open the menu of what has the focus, as the Menu key does."""
        widget = self.focusWidget()
        if widget is not None:
            place = widget.rect().center()
            asked = QContextMenuEvent(QContextMenuEvent.Reason.Keyboard, place, widget.mapToGlobal(place))
            QApplication.sendEvent(widget, asked)

    def _pop_up(self, parts: list[QAction | None], place: QPoint) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.setToolTipsVisible(True)
        for action in parts:
            if action is None:
                menu.addSeparator()
            else:
                menu.addAction(action)
        menu.popup(place)

    # Shape

    def _restore_shape(self) -> None:
        room = self.screen().availableSize()
        self.resize(min(1280, room.width()), min(800, room.height() - _FRAME))
        self.restoreGeometry(self._settings.shape("window"))
        for name, part in self._shapes().items():
            part.restoreState(self._settings.shape(name))
        self.inspector.setVisible(False)
        self.activity.setVisible(False)
        for name, (action, by_default) in self._panels().items():
            action.setChecked(self._settings.text(name, by_default) == "shown")

    def _shapes(self) -> dict[str, QSplitter]:
        return {"columns": self._columns, "rows": self._rows}

    def _panels(self) -> dict[str, tuple[QAction, str]]:
        """Panels that can be hidden. Activity shows itself as soon as there is any."""
        return {"inspector": (self.actions_.inspector, "shown"), "activity": (self.actions_.activity, "hidden")}

    def _save_shape(self) -> None:
        self._settings.set_shape("window", self.saveGeometry())
        for name, part in self._shapes().items():
            self._settings.set_shape(name, QByteArray(part.saveState()))
        for name, (action, _) in self._panels().items():
            is_shown = action.isChecked() or (action is self.actions_.inspector and self._shows_inspector_when_wide)
            self._settings.set_text(name, "shown" if is_shown else "hidden")
        if isinstance(self._chosen, MachineId):
            self._settings.set_text("machine", self._chosen.uuid)

    def _dress(self) -> None:
        self.actions_.dress()
        self.estate_view.dress()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Tell once that the window is there."""
        super().paintEvent(event)
        if not self._was_painted:
            self._was_painted = True
            QTimer.singleShot(0, self.painted.emit)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """A window that becomes narrow hides the inspector until it is wide again, or asked for."""
        super().resizeEvent(event)
        is_narrow = event.size().width() < _NARROW
        if is_narrow == self._is_narrow:
            return
        self._is_narrow, inspector = is_narrow, self.actions_.inspector
        if is_narrow:
            self._shows_inspector_when_wide = inspector.isChecked()
            inspector.setChecked(False)
        elif self._shows_inspector_when_wide:
            self._shows_inspector_when_wide = False
            inspector.setChecked(True)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Remember the window's shape; with work going on, or waiting, ask first."""
        if not self.closing.may_close():
            event.ignore()
            return
        self._save_shape()
        super().closeEvent(event)

    def end(self) -> bool:
        """Close without a question, as soon as no work is going on. Returns whether that was at once."""
        self.closing.told_to_end()
        return self.close()
