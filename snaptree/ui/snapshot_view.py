"""The table of snapshots: what is selected, opened, sorted and scrolled to survives every new reading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QItemSelection, QItemSelectionModel, QModelIndex, QPoint, Qt, Signal
from PySide6.QtGui import QContextMenuEvent, QCursor
from PySide6.QtWidgets import (
    QAbstractItemDelegate,
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyleOptionViewItem,
    QTableView,
    QToolTip,
    QWidget,
)

from snaptree.model.folding import Fold, Now
from snaptree.ui.snapshot_delegate import PADDING, SnapshotDelegate, row_height, width_of_lanes
from snaptree.ui.snapshot_model import FIGURES, Column, RowKey, Shown, SnapshotModel, key_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from PySide6.QtGui import QKeyEvent, QMouseEvent, QResizeEvent

    from snaptree.model.tree import SnapshotTree
    from snaptree.ui.machine import Machine, MachineId
    from snaptree.ui.thumbnails import ThumbnailLibrary

_MEASURED_ROWS = 100
_USUAL_AGE = "59 minutes"
"""Names measured to find a good width for the column: enough, and quick."""
_LETTERS_OF_NAME = 20
_LEAST_NOTE = 60
"""Pixels that notes keep however narrow the window is."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the user was in a machine's tree."""

    selected: frozenset[RowKey] = frozenset()
    current: RowKey | None = None
    top: RowKey | None = None
    """The first row in sight."""
    tree: SnapshotTree | None = None
    """The tree that it was in."""
    is_at_end: bool = True
    """The last row was in sight. The first look at a tree is at where the machine is now, which is its end."""


class SnapshotView(QTableView):
    """The tree of one machine. Clicks only select and open folds: nothing here changes anything by itself."""

    selection_changed = Signal()
    note_written = Signal(str, str)
    """Snapshot, and the note that the user wrote on it."""
    menu_wanted = Signal(object)
    """The place, on the screen, where the menu of the selection shall open."""

    letters_of_note = 12
    """What is left to notes at least, where there is room at all."""

    def __init__(self, parent: QWidget | None = None, thumbnails: ThumbnailLibrary | None = None) -> None:
        super().__init__(parent)
        self._model = self.new_model(thumbnails)
        if thumbnails is not None:
            thumbnails.arrived.connect(self._picture_arrived)
        self._places: dict[MachineId, _Place] = {}
        self._unfolded: dict[MachineId, frozenset[str]] = {}
        self._is_restoring = False
        self._is_fitting = False
        self._pressed_at = QPoint()
        self._names_are_set = False
        """The user has chosen the width of the first column."""
        self._held: tuple[Machine | None, str] | None = None
        """What is to be shown once the note that is being edited is written: machine, and what is searched for."""
        self._wanted: int | None = None
        """Width of the names that are shown; None before they are measured."""
        self.setModel(self._model)
        self._delegate = self.new_delegate()
        self._delegate.written.connect(self.note_written)
        self.setItemDelegate(self._delegate)
        self.setAccessibleName("Snapshots")
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setTabKeyNavigation(False)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setCornerButtonEnabled(False)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setMinimumSectionSize(1)
        self._set_row_height()
        self._set_up_header()
        self.clicked.connect(self._clicked)
        self._model.modelAboutToBeReset.connect(self._remember_place)
        self._model.modelReset.connect(self._restore_place)
        self._model.dataChanged.connect(self._rows_changed)
        self.selectionModel().selectionChanged.connect(self._selection_changed)

    def new_model(self, thumbnails: ThumbnailLibrary | None) -> SnapshotModel:
        """The rows; once."""
        return SnapshotModel(self, thumbnails)

    def new_delegate(self) -> SnapshotDelegate:
        """What paints them; once."""
        return SnapshotDelegate(self._model, self)

    def _set_up_header(self) -> None:
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setSectionsMovable(True)
        header.setFirstSectionMovable(False)
        header.resizeSection(Column.NOTE, _LEAST_NOTE)
        header.setStretchLastSection(True)
        header.setMinimumSectionSize(40)
        header.setSortIndicatorClearable(True)
        header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        width = self.fontMetrics().horizontalAdvance
        for column, widest in (
            (Column.TREE, "m" * 22),
            (Column.AGE, _USUAL_AGE),
            (Column.WRITTEN, "~888.8 MiB"),
            (Column.FREES, "≤ 888.8 MiB"),
            (Column.MEMORY, "888.8 MiB"),
        ):
            header.resizeSection(column, width(widest) + 2 * PADDING)
        header.sectionResized.connect(self._section_resized)
        self.setSortingEnabled(True)

    # What is shown

    @property
    def snapshot_model(self) -> SnapshotModel:
        """The rows, for whoever needs what a row stands for."""
        return self._model

    def show_machine(self, machine: Machine | None, search: str = "") -> None:
        """Show a machine's tree, or more of it, or none; the user's place in each machine's tree is kept.

        While a note is being edited its machine stays as it is: the row would move away below the text.
        """
        before = self._model.shown.machine
        if self.is_editing:
            if machine is not None and before is not None and machine.id == before.id:
                self._held = machine, search
                return
            self.setFocus()  # which ends the editing, and tells what was written
        self._held = None
        unfolded = frozenset[str]() if machine is None else self._unfolded.get(machine.id, frozenset())
        place = self._places.get(machine.id, _Place()) if machine is not None else _Place()
        if before is not None and machine is not None and before.id == machine.id:
            selected = frozenset(self.selected_names())
        else:
            selected = frozenset(name for kind, name in place.selected if kind == "snapshot")
        self._model.show(Shown(machine, unfolded, selected, self._model.shown.folds, search))
        if machine is not None and machine is not before:
            self._fit_names()

    @property
    def is_editing(self) -> bool:
        """Whether a note is being edited."""
        return self.state() is QAbstractItemView.State.EditingState

    def edit_note(self) -> bool:
        """Let the user edit the note of the selected snapshot in its row. Notes of several lines don't fit there."""
        names = self.selected_names()
        row = self._model.row_of(("snapshot", names[0])) if len(names) == 1 else None
        snapshot = None if row is None else self._model.snapshot(row)
        if row is None or snapshot is None or "\n" in snapshot.description:
            return False
        index = self._model.index(row, Column.NOTE)
        self.selectionModel().setCurrentIndex(index, QItemSelectionModel.SelectionFlag.NoUpdate)
        self.scrollTo(index)
        self.edit(index)
        return True

    def closeEditor(self, editor: QWidget, _hint: QAbstractItemDelegate.EndEditHint) -> None:
        """Editing is over: show what was read meanwhile. Tab does not go on to the next note."""
        super().closeEditor(editor, QAbstractItemDelegate.EndEditHint.NoHint)
        held, self._held = self._held, None
        if held is not None:
            self.show_machine(*held)

    @property
    def folds(self) -> bool:
        """Whether long stretches in which nothing happens are folded."""
        return self._model.shown.folds

    @folds.setter
    def folds(self, folds: bool) -> None:
        self._model.show(replace(self._model.shown, folds=folds))

    def selected_names(self) -> tuple[str, ...]:
        """The selected snapshots, in the order of the rows."""
        rows = sorted(index.row() for index in self.selectionModel().selectedRows())
        return tuple(row_id for row in rows if isinstance(row_id := self._model.row_id(row), str))

    def now_is_selected(self) -> bool:
        """Whether the row of the running state is among the selected ones."""
        return any(isinstance(self._model.row_id(index.row()), Now) for index in self.selectionModel().selectedRows())

    def select(self, names: Iterable[str]) -> None:
        """Select snapshots by name and bring the first one into sight; folds that hide one are opened."""
        keys: list[RowKey] = [("snapshot", name) for name in names]
        hidden = {name for kind, name in keys if self._model.row_of((kind, name)) is None}
        self._unfold(
            name for hides in self._model.folds if not hidden.isdisjoint(hides.hidden) for name in hides.hidden
        )
        self._select(keys, keys[0] if keys else None)
        self.scrollTo(self.currentIndex())

    # Folds

    def toggle_fold(self, row: int) -> None:
        """Open a fold, or fold in again the stretch that begins here."""
        row_id, opened = self._model.row_id(row), self._model.opened_fold(row)
        place = self.rowViewportPosition(row)
        if isinstance(row_id, Fold):
            self._unfold(row_id.hidden)
            self._go_to(("snapshot", row_id.first), place)
        elif opened is not None:
            self._set_unfolded(self._model.shown.unfolded - frozenset(opened.hidden))
            self._go_to(("fold", opened.first), place)

    def _unfold(self, names: Iterable[str]) -> None:
        self._set_unfolded(self._model.shown.unfolded | frozenset(names))

    def _set_unfolded(self, unfolded: frozenset[str]) -> None:
        machine = self._model.shown.machine
        if machine is not None:
            self._unfolded[machine.id] = unfolded
            self._model.show(replace(self._model.shown, unfolded=unfolded))

    def _go_to(self, key: RowKey, place: int | None = None) -> None:
        """Make a row the current one, and have it at a place on the screen (pixels from the top)."""
        row = self._model.row_of(key)
        if row is not None:
            if place is not None:
                self.verticalScrollBar().setValue(self.verticalHeader().sectionPosition(row) - place)
            self.selectionModel().setCurrentIndex(self._model.index(row, 0), QItemSelectionModel.SelectionFlag.NoUpdate)

    # Qt's side

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter and Space open a fold; Right opens, Left folds in."""
        current = self.currentIndex()
        if current.isValid():
            row = current.row()
            is_fold = isinstance(self._model.row_id(row), Fold)
            opens = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space, Qt.Key.Key_Right)
            if (is_fold and opens) or (self._model.opened_fold(row) is not None and event.key() == Qt.Key.Key_Left):
                self.toggle_fold(row)
                return
        super().keyPressEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """A click beside the rows selects nothing."""
        self._pressed_at = event.position().toPoint()
        if not self.indexAt(self._pressed_at).isValid():
            self.clearSelection()
        super().mousePressEvent(event)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        """Ask for the menu at the mouse, or below the current row for the keyboard's menu key."""
        place: QPoint = event.globalPos()
        if event.reason() is QContextMenuEvent.Reason.Keyboard:
            place = self.viewport().mapToGlobal(self.visualRect(self.currentIndex()).bottomLeft())
        self.menu_wanted.emit(place)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Names get what they need of the new width."""
        super().resizeEvent(event)
        self._fit_names()

    def _picture_arrived(self, machine_id: MachineId, name: str) -> None:
        """A tooltip that is on screen gets the picture that it lacked."""
        machine, row = self._model.shown.machine, self._model.row_of(("snapshot", name))
        if not QToolTip.isVisible() or machine is None or machine.id != machine_id or row is None:
            return
        index, place = self._model.index(row, Column.TREE), QCursor.pos()
        if self.indexAt(self.viewport().mapFromGlobal(place)) == index:
            text = index.data(Qt.ItemDataRole.ToolTipRole)
            QToolTip.showText(place, text, self.viewport(), self.visualRect(index))

    def dress(self) -> None:
        """Take sizes and colours anew: font or theme changed."""
        self._wanted = None
        self._set_row_height()
        self.viewport().update()

    def _clicked(self, index: QModelIndex) -> None:
        row = index.row()
        sign = self._delegate.fold_sign(self.visualRect(index), row)
        is_on_sign = index.column() == Column.TREE and sign.contains(self._pressed_at)
        if isinstance(self._model.row_id(row), Fold) or (self._model.opened_fold(row) is not None and is_on_sign):
            self.toggle_fold(row)

    def _selection_changed(self, _selected: QItemSelection, _deselected: QItemSelection) -> None:
        if not self._is_restoring:
            self.selection_changed.emit()

    def _set_row_height(self) -> None:
        self.verticalHeader().setDefaultSectionSize(row_height(self.fontMetrics()))

    def _fit_names(self) -> None:
        """Make the first column as wide as its names, within reason: notes want some room, too.

        What the user has set stays.
        """
        if self._names_are_set:
            return
        header, letter = self.horizontalHeader(), self.fontMetrics().averageCharWidth()
        if self._wanted is None:
            self._wanted = self._measure(Column.TREE)
            self._fit_ages()
        others = sum(header.sectionSize(column) for column in (Column.AGE, *FIGURES))
        bar = self.style().pixelMetric(QStyle.PixelMetric.PM_ScrollBarExtent)
        at_most = self.width() - bar - others - self.letters_of_note * letter
        lanes = width_of_lanes(self._model, 0) if self._model.rowCount() else 0
        width = max(min(self._wanted, at_most), lanes + _LETTERS_OF_NAME * letter)
        self._is_fitting = True
        header.resizeSection(Column.TREE, width)
        self._is_fitting = False

    def _fit_ages(self) -> None:
        """Make room for what is older than usual: "1 year, 35 days"."""
        usual = self.fontMetrics().horizontalAdvance(_USUAL_AGE) + 2 * PADDING
        self.horizontalHeader().resizeSection(Column.AGE, max(usual, self._measure(Column.AGE)))

    def _measure(self, column: Column) -> int:
        """The width that a column's last rows need."""
        option = QStyleOptionViewItem()
        self.initViewItemOption(option)
        rows = range(max(0, self._model.rowCount() - _MEASURED_ROWS), self._model.rowCount())
        return max((self._delegate.sizeHint(option, self._model.index(row, column)).width() for row in rows), default=0)

    def _rows_changed(self, first: QModelIndex, _last: QModelIndex) -> None:
        if first.column() == Column.TREE:
            self._wanted = None

    def _section_resized(self, section: int, _before: int, _now: int) -> None:
        if section == Column.TREE and not self._is_fitting:
            self._names_are_set = True

    # The user's place

    def _remember_place(self) -> None:
        self._is_restoring = True
        machine = self._model.shown.machine
        if machine is None or not self._model.rowCount():
            return
        top, current, bar = self.rowAt(0), self.currentIndex(), self.verticalScrollBar()
        self._places[machine.id] = _Place(
            selected=frozenset(
                key_of(self._model.row_id(index.row())) for index in self.selectionModel().selectedRows()
            ),
            current=key_of(self._model.row_id(current.row())) if current.isValid() else None,
            top=key_of(self._model.row_id(top)) if top >= 0 else None,
            tree=self._model.tree,
            is_at_end=bar.value() == bar.maximum(),
        )

    def _restore_place(self) -> None:
        self._wanted = None
        machine = self._model.shown.machine
        place = _Place() if machine is None else self._places.get(machine.id, _Place())
        selected = _still_there(place.selected, place.tree, self._model.tree)
        current = place.current
        if current is not None and current not in selected:
            current = next(iter(_still_there((current,), place.tree, self._model.tree)))
        self._select(selected, current)
        top = self._model.row_of(place.top) if place.top is not None else None
        if place.is_at_end:
            self.scrollToBottom()
        elif top is not None:
            self.scrollTo(self._model.index(top, 0), QAbstractItemView.ScrollHint.PositionAtTop)
        self._is_restoring = False
        self.selection_changed.emit()

    def _select(self, keys: Iterable[RowKey], current: RowKey | None) -> None:
        selection = QItemSelection()
        for key in keys:
            row = self._model.row_of(key)
            if row is not None:
                selection.select(self._model.index(row, 0), self._model.index(row, len(Column) - 1))
        self.selectionModel().select(selection, QItemSelectionModel.SelectionFlag.ClearAndSelect)
        if current is not None:
            self._go_to(current)


def _still_there(keys: Collection[RowKey], before: SnapshotTree | None, now: SnapshotTree | None) -> list[RowKey]:
    """The rows of these that are still there, by whatever name; if none is, the row that stands for one of them."""
    if before is None or now is None:
        return list(keys)
    there: list[RowKey] = []
    for kind, name in keys:
        if kind != "snapshot" or name in now:
            there.append((kind, name))
        elif new_name := _renamed(name, before, now):
            there.append((kind, new_name))
    if there or not keys:
        return there
    _, name = next(iter(keys))
    left = next((each for each in before.ancestors(name) if each in now), None) if name in before else None
    return [("now", "") if left is None else ("snapshot", left)]


def _renamed(name: str, before: SnapshotTree, now: SnapshotTree) -> str | None:
    """What a snapshot that is gone by its name is called since: the new one that was taken then, of the same disks."""
    if name not in before:
        return None
    was = before[name]
    new = (each for each in now if each.name not in before)
    return next((each.name for each in new if (each.created, each.disks) == (was.created, was.disks)), None)
