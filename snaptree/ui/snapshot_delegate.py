"""Paints the rows of the snapshot table: lanes, names, badges and figures, straight onto the viewport."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QAbstractItemModel, QModelIndex, QPersistentModelIndex, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPainterPath, QPen
from PySide6.QtWidgets import QLineEdit, QStyle, QStyledItemDelegate, QStyleOptionViewItem, QTableView, QWidget

from snaptree import words
from snaptree.model.estate import Consistency, MemorySnapshot
from snaptree.model.folding import Fold, Now
from snaptree.ui import icons
from snaptree.ui.snapshot_model import FIGURES, Badge, Column, SnapshotModel, Tone
from snaptree.ui.theme import Colours, colours_of

if TYPE_CHECKING:
    from snaptree.model.estate import Snapshot
    from snaptree.model.folding import RowId
    from snaptree.model.lanes import LaneRow

PADDING = 8
"""Left and right of every cell's content."""
_LINE = 2
"""Width of a lane's line. Even, so that it lies on whole pixels around whole coordinates."""
_NODE = 4
"""Radius of a snapshot's mark."""
_BEND = 6
"""Radius of the corner where a branch leaves its lane."""
_WIDE_LANE = 16
_NARROW_LANE = 10
_MANY_LANES = 8
_MOST_FOR_BADGES = 45
"""Percent of the room that a long name leaves to badges, but for those that stay."""
_LEAST_NAME = 5
"""Letters of a name that no badge takes the room of."""
_READABLE_NAME = 20
"""Letters of a name that words of badges don't take the room of: signs say the same. A date and a time of day fit."""
_BADGE_GAP = 6
_SIGN = icons.SIZE + 4
"""Room for the sign of a snapshot's consistency."""
_NARROWEST_WITH_SIGN = 180
"""Width of the column below which names and what is wrong with them get its room."""
_LEAST_EDITOR = 320
"""Width of the line in which a note is written, at least, where there is so much."""
_CONSISTENCY_SIGNS = {
    Consistency.MEMORY: "memory",
    Consistency.FILESYSTEM: "filesystem",
    Consistency.CRASH: "crash",
    Consistency.OFFLINE: "offline",
    Consistency.UNKNOWN: "unknown",
}

# Added up once: Qt's flags are slow to combine, and a frame draws hundreds of texts.
_LEFT = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine)
_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine)
_CENTRE = int(Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextSingleLine)


def row_height(metrics: QFontMetrics) -> int:
    """A multiple of four, so that rows meet on whole pixels at 125, 150 and 175 %, too."""
    return -(-(metrics.height() + 9) // 4) * 4


def lane_pitch(lane_count: int) -> int:
    """From one lane to the next: narrower where there are many."""
    return _WIDE_LANE if lane_count <= _MANY_LANES else _NARROW_LANE


def width_of_lanes(model: SnapshotModel, row: int) -> int:
    """Room that the lanes take before the name. Names stand in line unless that would push them far out."""
    if model.lane_count <= _MANY_LANES:
        return model.lane_count * _WIDE_LANE
    lanes = model.lane_row(row)
    return 0 if lanes is None else (1 + max((lanes.lane, *lanes.through, *lanes.forks))) * _NARROW_LANE


class SnapshotDelegate(QStyledItemDelegate):
    """One delegate for all columns. It asks the model directly: 200 cells are painted in a few milliseconds.

    Notes are edited in a line of their own. What is written is not put into the model: it only shows what a host says.
    """

    written = Signal(str, str)
    """Snapshot, and the note that the user wrote on it."""

    def __init__(self, model: SnapshotModel, view: QTableView) -> None:
        super().__init__(view)
        self._model = model
        self._view = view
        self._edited: Snapshot | None = None
        """Whose note is being edited, as it was when that began."""

    def sizeHint(self, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex) -> QSize:
        """How wide a column must be for this cell; all rows are equally high."""
        row, column = index.row(), Column(index.column())
        metrics = option.fontMetrics
        width = metrics.horizontalAdvance(self._model.text(row, column)) + 2 * PADDING
        if column is Column.TREE:
            badges = self._model.badges(row)
            width += width_of_lanes(self._model, row) + 10 + _SIGN
            if badges:
                width += sum(_badge_width(badge, _small(option.font)) + _BADGE_GAP for badge in badges)
        return QSize(width, row_height(metrics))

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Paint one cell."""
        colours = colours_of(option.palette)
        row, column, rect = index.row(), Column(index.column()), option.rect
        painter.save()
        ground = colours.base
        if option.state & QStyle.StateFlag.State_Selected:
            ground = colours.selected if self._view.hasFocus() else colours.selected_elsewhere
            painter.fillRect(rect, ground)
        if column is Column.TREE:
            if row == self._view.currentIndex().row() and self._view.hasFocus():
                painter.fillRect(QRect(rect.left(), rect.top(), 3, rect.height()), colours.accent)
            painter.setClipRect(rect)
            self._paint_tree(painter, rect, row, colours, ground)
        else:
            is_selected = ground is not colours.base
            self._paint_text(painter, rect, row, column, colours, is_selected=is_selected)
        painter.restore()

    def _paint_text(
        self, painter: QPainter, rect: QRect, row: int, column: Column, colours: Colours, *, is_selected: bool
    ) -> None:
        text = self._model.text(row, column)
        row_id = self._model.row_id(row)
        inner = rect.adjusted(PADDING, 0, -PADDING, 0)
        if column is Column.WRITTEN:
            self._paint_bar(painter, inner, row_id, colours.bar_selected if is_selected else colours.bar)
        is_loud = column in FIGURES and text not in (words.UNKNOWN, words.NONE) and not isinstance(row_id, Fold)
        painter.setPen(colours.text if is_loud else colours.dim)
        # Names and figures differ at their ends, but prose is read from its beginning.
        elide = Qt.TextElideMode.ElideRight if column is Column.NOTE else Qt.TextElideMode.ElideMiddle
        _draw(painter, inner, text, _RIGHT if column in FIGURES else _LEFT, elide)

    def _paint_bar(self, painter: QPainter, rect: QRect, row_id: RowId, colour: QColor) -> None:
        """A bar behind the figure, as long as the snapshot is large."""
        figure = self._model.figure(row_id, Column.WRITTEN)
        if figure is None or not figure.bytes or not self._model.largest or isinstance(row_id, Fold):
            return
        width = max(2, (rect.width() + 8) * figure.bytes // self._model.largest)
        painter.fillRect(QRect(rect.left() - 4, rect.top() + 4, width, rect.height() - 8), colour)

    def _paint_tree(self, painter: QPainter, rect: QRect, row: int, colours: Colours, ground: QColor) -> None:
        lanes = self._model.lane_row(row)
        row_id = self._model.row_id(row)
        left = rect.left() + PADDING
        if lanes is not None:
            _paint_lanes(painter, QRect(left, rect.top(), rect.width(), rect.height()), lanes, self._pitch, colours)
            self._paint_node(painter, self._node_place(rect, lanes), row, colours.lane(lanes.lane), ground)
            left += width_of_lanes(self._model, row) + 6
        inner = QRect(left, rect.top(), rect.right() - left - 4, rect.height())
        if rect.width() >= _NARROWEST_WITH_SIGN:
            self._paint_consistency(painter, QPoint(rect.right() - _SIGN, inner.center().y()), row, colours)
            inner.setRight(inner.right() - _SIGN)
        if isinstance(row_id, Fold) or self._model.opened_fold(row) is not None:
            name = "expand" if isinstance(row_id, Fold) else "collapse"
            icons.icon(name, colours.dim).paint(painter, self.fold_sign(rect, row))
            inner.setLeft(inner.left() + 16)
        text, small = self._model.text(row, Column.TREE), _small(painter.font())
        badges = self._model.badges(row)
        metrics = painter.fontMetrics()
        room = max(inner.width() - metrics.horizontalAdvance(text), inner.width() * _MOST_FOR_BADGES // 100)
        for_words, most = (
            max(room, inner.width() - letters * metrics.averageCharWidth()) for letters in (_READABLE_NAME, _LEAST_NAME)
        )
        badges = those_that_fit(badges, small, room, for_words, most)
        used = sum(_badge_width(badge, small) + _BADGE_GAP for badge in badges)
        is_struck_out = self._model.is_struck_out(row)
        if isinstance(row_id, Now) or is_struck_out:
            font = QFont(painter.font())
            font.setWeight(QFont.Weight.Normal if is_struck_out else QFont.Weight.Bold)
            font.setStrikeOut(is_struck_out)
            painter.setFont(font)
        painter.setPen(colours.dim if isinstance(row_id, Fold) or is_struck_out else colours.text)
        right = inner.left() + _draw(painter, inner.adjusted(0, 0, -used, 0), text)
        for badge in badges:
            right = _paint_badge(painter, QPoint(right + _BADGE_GAP, inner.center().y()), badge, small, colours)

    def _paint_consistency(self, painter: QPainter, left: QPoint, row: int, colours: Colours) -> None:
        """A quiet sign at the right edge, one below the other: what a revert gives. The tooltip says it in words."""
        snapshot = self._model.snapshot(row)
        if snapshot is not None:
            place = QRect(left.x(), left.y() - icons.SIZE // 2 + 1, icons.SIZE, icons.SIZE)
            icons.icon(_CONSISTENCY_SIGNS[snapshot.consistency], colours.dim).paint(painter, place)

    # Editing notes

    def createEditor(
        self,
        parent: QWidget,
        option: QStyleOptionViewItem,  # noqa: ARG002  Qt's own signature
        index: QModelIndex | QPersistentModelIndex,
    ) -> QWidget:
        """A line for the note of a row."""
        editor = QLineEdit(parent)
        editor.setObjectName("in-table")
        editor.setAccessibleName("Note")
        editor.setPlaceholderText("Note")
        snapshot = self._model.snapshot(index.row())
        if snapshot is not None:
            self._edited = snapshot
            editor.setText(snapshot.description)
        return editor

    def updateEditorGeometry(
        self,
        editor: QWidget,
        option: QStyleOptionViewItem,
        index: QModelIndex | QPersistentModelIndex,  # noqa: ARG002  Qt's own signature
    ) -> None:
        """Over the cell, and over what is left of it where that is too narrow to write in."""
        left = min(option.rect.left(), option.rect.right() - _LEAST_EDITOR)
        editor.setGeometry(option.rect.adjusted(max(0, left) - option.rect.left(), 0, 0, 0))

    def setEditorData(self, editor: QWidget, index: QModelIndex | QPersistentModelIndex) -> None:
        """Nothing: the text is the user's from the beginning, whatever is read meanwhile."""

    def setModelData(
        self,
        editor: QWidget,
        model: QAbstractItemModel,  # noqa: ARG002  Qt's own signature
        index: QModelIndex | QPersistentModelIndex,  # noqa: ARG002  Qt's own signature
    ) -> None:
        """Tell what was written, if it is anything new."""
        edited, self._edited = self._edited, None
        if isinstance(editor, QLineEdit) and edited is not None and editor.text() != edited.description:
            self.written.emit(edited.name, editor.text())

    def fold_sign(self, rect: QRect, row: int) -> QRect:
        """Where in a cell the sign stands that opens a fold, or folds in again."""
        lanes = self._model.lane_row(row)
        left = rect.left() + PADDING + (0 if lanes is None else width_of_lanes(self._model, row) + 4)
        return QRect(left, rect.center().y() - icons.SIZE // 2 + 1, icons.SIZE, icons.SIZE)

    @property
    def _pitch(self) -> int:
        return lane_pitch(self._model.lane_count)

    def _node_place(self, rect: QRect, lanes: LaneRow[RowId]) -> QPoint:
        return QPoint(
            rect.left() + PADDING + lanes.lane * self._pitch + self._pitch // 2, rect.top() + rect.height() // 2
        )

    def _paint_node(self, painter: QPainter, centre: QPoint, row: int, colour: QColor, ground: QColor) -> None:
        """Filled: its memory was captured. Hollow: disks only. A target: now. Three dots: a fold."""
        row_id = self._model.row_id(row)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        if isinstance(row_id, Fold):
            painter.setBrush(ground)
            painter.drawRect(QRect(centre.x() - 2, centre.y() - 8, 4, 16))
            painter.setBrush(colour)
            for offset in (-5, 0, 5):
                painter.drawEllipse(centre + QPoint(0, offset), 1.5, 1.5)
        elif isinstance(row_id, Now):
            _ring(painter, centre, _NODE + 2, colour, ground)
            painter.setBrush(colour)
            painter.drawEllipse(centre, _NODE - 1, _NODE - 1)
        else:
            snapshot = self._model.snapshot(row)
            if snapshot is not None and snapshot.memory is not MemorySnapshot.NO:
                painter.setBrush(colour)
                painter.drawEllipse(centre, _NODE + 1, _NODE + 1)
            else:
                _ring(painter, centre, _NODE, colour, ground)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)


def _paint_lanes(painter: QPainter, rect: QRect, row: LaneRow[RowId], pitch: int, colours: Colours) -> None:
    """Draw the lines of one row. Straight ones are filled rectangles: whole pixels, and no seams between rows."""
    middle = rect.top() + rect.height() // 2
    bottom = rect.top() + rect.height()

    def x_of(lane: int) -> int:
        return rect.left() + lane * pitch + pitch // 2

    def vertical(lane: int, top: int, end: int) -> None:
        painter.fillRect(QRect(x_of(lane) - _LINE // 2, top, _LINE, end - top), colours.lane(lane))

    for lane in row.through:
        vertical(lane, rect.top(), bottom)
    if row.enters:
        vertical(row.lane, rect.top(), middle)
    if row.leaves:
        vertical(row.lane, middle, bottom)
    if not row.forks:
        return
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    start = x_of(row.lane)
    # The widest first: where branches share a stretch, the nearest lane's colour lies on top.
    for lane in sorted(row.forks, key=lambda fork: -abs(fork - row.lane)):
        end = x_of(lane)
        bend = min(_BEND, abs(end - start), bottom - middle)
        towards = bend if end > start else -bend
        path = QPainterPath(QPoint(start, middle))
        path.lineTo(end - towards, middle)
        path.quadTo(end, middle, end, middle + bend)
        pen = QPen(colours.lane(lane), _LINE)
        pen.setCapStyle(Qt.PenCapStyle.FlatCap)
        painter.setPen(pen)
        painter.drawPath(path)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)
    for lane in row.forks:
        vertical(lane, middle + min(_BEND, abs(x_of(lane) - start)), bottom)


def _ring(painter: QPainter, centre: QPoint, radius: int, colour: QColor, ground: QColor) -> None:
    painter.setBrush(colour)
    painter.drawEllipse(centre, radius + 1, radius + 1)
    painter.setBrush(ground)
    painter.drawEllipse(centre, radius - 1, radius - 1)


def _small(font: QFont) -> QFont:
    small = QFont(font)
    small.setPixelSize(max(9, round(QFontMetrics(font).height() * 0.68)))
    return small


def those_that_fit(badges: tuple[Badge, ...], font: QFont, room: int, for_words: int, most: int) -> tuple[Badge, ...]:
    """The badges for which there is `room`, and up to `most` those that stay; then how many there are besides.

    Those that stay are signs without words where there is no room `for_words`. The tooltip names all. Widths are in
    pixels.
    """
    if badges and _width_of_needed(badges, font) > for_words:
        badges = tuple(replace(badge, text="") if badge.icon else badge for badge in badges)
    fitting: list[Badge] = []
    left, used = list(badges), 0
    for badge in badges:
        width = _badge_width(badge, font) + _BADGE_GAP
        if used + width <= (most if badge.stays else room):
            fitting.append(badge)
            left.remove(badge)
            used += width
    while left:
        more = Badge(f"+{len(left)}", "")
        if not fitting or used + _badge_width(more, font) + _BADGE_GAP <= most:
            return (*fitting, more)
        left.append(fitting.pop())
        used -= _badge_width(left[-1], font) + _BADGE_GAP
    return tuple(fitting)


def _width_of_needed(badges: tuple[Badge, ...], font: QFont) -> int:
    """Of those that stay, and of how many there are besides."""
    needed = [badge for badge in badges if badge.stays]
    if len(needed) < len(badges):
        needed.append(Badge("+9", ""))
    return sum(_badge_width(badge, font) + _BADGE_GAP for badge in needed)


def _badge_width(badge: Badge, font: QFont) -> int:
    return QFontMetrics(font).horizontalAdvance(badge.text) + 10 if badge.text else icons.SIZE


def _paint_badge(painter: QPainter, left: QPoint, badge: Badge, font: QFont, colours: Colours) -> int:
    """Draw a badge and return its right edge."""
    colour = {
        Tone.QUIET: colours.dim,
        Tone.GOOD: colours.good,
        Tone.WARNING: colours.warning,
        Tone.ERROR: colours.error,
    }
    if not badge.text:
        place = QRect(left.x(), left.y() - icons.SIZE // 2 + 1, icons.SIZE, icons.SIZE)
        icons.icon(badge.icon, colour[badge.tone]).paint(painter, place)
        return place.right()
    metrics = QFontMetrics(font)
    height = metrics.height() + 2
    rect = QRect(left.x(), left.y() - height // 2 + 1, _badge_width(badge, font), height)
    painter.setFont(font)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(QPen(colour[badge.tone] if badge.tone is not Tone.QUIET else colours.faint, 1))
    painter.drawRoundedRect(rect.toRectF().adjusted(0.5, 0.5, -0.5, -0.5), 3, 3)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing, on=False)
    painter.setPen(colour[badge.tone])
    painter.drawText(rect, _CENTRE, badge.text)
    return rect.right()


def _draw(
    painter: QPainter, rect: QRect, text: str, side: int = _LEFT, elide: Qt.TextElideMode = Qt.TextElideMode.ElideMiddle
) -> int:
    """Draw one line, elided if it must be, and return its width."""
    metrics = painter.fontMetrics()
    width = metrics.horizontalAdvance(text)
    if width > rect.width():
        text = metrics.elidedText(text, elide, rect.width())
        width = rect.width()
    painter.drawText(rect, side, text)
    return width
