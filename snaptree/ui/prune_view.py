"""A tree as it would be after a prune: who goes is struck through, and every row says why it goes or stays."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QModelIndex, QPersistentModelIndex, QPoint, QRect, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPen
from PySide6.QtWidgets import QWidget

from snaptree.plans.wording import plain
from snaptree.ui.snapshot_delegate import PADDING, SnapshotDelegate
from snaptree.ui.snapshot_model import Column, SnapshotModel
from snaptree.ui.snapshot_view import SnapshotView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PySide6.QtGui import QKeyEvent, QResizeEvent

    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.policy import Decision
    from snaptree.ui.machine import Machine
    from snaptree.ui.theme import Colours
    from snaptree.ui.thumbnails import ThumbnailLibrary

BY_HAND = "kept by hand"
"""The reason of what the user keeps whatever the policy says."""
WHY = Column.NOTE
"""The column that says what becomes of a row, where a tree elsewhere has its notes."""

_TITLE = "Kept?"
_MEANING = "A tick: it stays. Space or a click keeps a snapshot by hand, or leaves it to the policy again."
_LEAST_LETTERS = {Column.AGE: 70, Column.WRITTEN: 90}
"""Width of the view, in letters, below which a column is not shown."""
_BOX = 12
_GAP = 8


class PruneModel(SnapshotModel):
    """The rows of a tree with what was decided on each."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._decisions: Mapping[str, Decision] = MappingProxyType({})

    def show_decisions(self, decisions: Mapping[str, Decision]) -> None:
        """Show these from now on; for snapshots that are not among them nothing was decided yet."""
        self._decisions = decisions
        if self.rowCount():
            self.dataChanged.emit(self.index(0, 0), self.index(self.rowCount() - 1, WHY))

    def decision(self, row: int) -> Decision | None:
        """What was decided on the snapshot of a row."""
        row_id = self.row_id(row)
        return self._decisions.get(row_id) if isinstance(row_id, str) else None

    def is_struck_out(self, row: int) -> bool:
        """Whether it goes."""
        decision = self.decision(row)
        return decision is not None and not decision.keeps

    def text(self, row: int, column: Column) -> str:
        """As elsewhere, with the decision and its reasons in the last column."""
        if column is not WHY:
            return super().text(row, column)
        decision = self.decision(row)
        if decision is None:
            return ""
        said = decision.reason.replace(BY_HAND, "by hand")
        return plain(f"{'kept' if decision.keeps else 'goes'}: {said}")

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """As elsewhere."""
        if section == WHY and orientation is Qt.Orientation.Horizontal:
            if role == Qt.ItemDataRole.DisplayRole:
                return _TITLE
            if role == Qt.ItemDataRole.ToolTipRole:
                return _MEANING
        return super().headerData(section, orientation, role)

    def flags(self, index: QModelIndex | QPersistentModelIndex) -> Qt.ItemFlag:
        """Nothing is edited here."""
        return super().flags(index) & ~Qt.ItemFlag.ItemIsEditable

    def _explanation(self, row: int, column: Column) -> str:
        return self.text(row, column) if column is WHY else super()._explanation(row, column)

    def _said_by_signs(self, row: int) -> list[str]:
        why = self.text(row, WHY)
        return [*([why] if why else []), *super()._said_by_signs(row)]

    def _sort_key(self, column: Column, tree: SnapshotTree) -> Callable[[str], Any]:
        if column is not WHY:
            return super()._sort_key(column, tree)
        found = self._decisions
        return lambda name: (found[name].keeps, found[name].reason) if name in found else None


class PruneDelegate(SnapshotDelegate):
    """Paints a box before each decision: ticked if the snapshot stays, in full colour if the user wants it to."""

    def __init__(self, model: PruneModel, view: SnapshotView) -> None:
        super().__init__(model, view)
        self._decided = model

    def box(self, rect: QRect) -> QRect:
        """Where in a cell the box is."""
        return QRect(rect.left() + PADDING, rect.center().y() - _BOX // 2 + 1, _BOX, _BOX)

    def _paint_text(
        self, painter: QPainter, rect: QRect, row: int, column: Column, colours: Colours, *, is_selected: bool
    ) -> None:
        decision = self._decided.decision(row) if column is WHY else None
        if decision is None:
            super()._paint_text(painter, rect, row, column, colours, is_selected=is_selected)
            return
        colour = colours.accent if BY_HAND in decision.reasons else colours.dim
        _paint_box(painter, self.box(rect), colour, is_ticked=decision.keeps)
        beside = rect.adjusted(_BOX + _GAP, 0, 0, 0)
        super()._paint_text(painter, beside, row, column, colours, is_selected=is_selected)


class PruneView(SnapshotView):
    """The tree of one machine in a preview. What the user wants to keep is told, and shown when it was decided anew."""

    keep_wanted = Signal(object)
    """tuple[str, ...]: snapshots that shall be kept by hand; if all of them are, shall not any more."""
    letters_of_note = 30

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        for column in (Column.FREES, Column.MEMORY):
            self.setColumnHidden(column, True)  # of one snapshot alone: here many go together
        self.clicked.connect(self._box_clicked)
        self.setAccessibleName("What goes and what stays")

    def new_model(self, thumbnails: ThumbnailLibrary | None) -> PruneModel:  # noqa: ARG002  the sheet shows no pictures
        """Rows with decisions."""
        self.decided = PruneModel(self)
        return self.decided

    def new_delegate(self) -> PruneDelegate:
        """Boxes before them."""
        self._boxes = PruneDelegate(self.decided, self)
        return self._boxes

    def show_preview(self, machine: Machine | None, decisions: Mapping[str, Decision]) -> None:
        """Show a machine's tree, all of it, with what was decided."""
        shown = self.decided.shown.machine
        self.decided.show_decisions(decisions)
        if machine is not shown:
            if self.folds:
                self.folds = False
            self.show_machine(machine)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Where there is little room, names and reasons get it."""
        for column, letters in _LEAST_LETTERS.items():
            self.setColumnHidden(column, self.width() < letters * self.fontMetrics().averageCharWidth())
        super().resizeEvent(event)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Space keeps what is selected."""
        if event.key() == Qt.Key.Key_Space and self.selected_names():
            self.keep_wanted.emit(self.selected_names())
            return
        super().keyPressEvent(event)

    def _box_clicked(self, index: QModelIndex) -> None:
        row_id = self.decided.row_id(index.row())
        if index.column() != WHY or not isinstance(row_id, str):
            return
        box = self._boxes.box(self.visualRect(index)).adjusted(-PADDING, -PADDING, _GAP, PADDING)
        if box.contains(self._pressed_at):
            self.keep_wanted.emit((row_id,))


def _paint_box(painter: QPainter, rect: QRect, colour: QColor, *, is_ticked: bool) -> None:
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(QPen(colour, 1))
    painter.drawRoundedRect(rect.toRectF().adjusted(0.5, 0.5, -0.5, -0.5), 2.5, 2.5)
    if is_ticked:
        painter.setPen(QPen(colour, 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin))
        left, middle = rect.left(), rect.center().y()
        painter.drawPolyline([QPoint(left + 3, middle), QPoint(left + 5, middle + 3), QPoint(left + 9, middle - 3)])
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)
