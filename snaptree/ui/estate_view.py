"""The left side of the window: search, order, and the list of hosts and machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QItemSelectionModel, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt, Signal
from PySide6.QtGui import QAction, QActionGroup, QColor, QContextMenuEvent, QFont, QPainter
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QMenu,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QToolButton,
    QTreeView,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.estate import DomainState
from snaptree.model.text import quoted
from snaptree.ui import icons
from snaptree.ui.estate_model import Column, EstateModel, Order
from snaptree.ui.findings import sign_of
from snaptree.ui.labels import PlainLabel
from snaptree.ui.machine import MachineId
from snaptree.ui.text import tooltip
from snaptree.ui.theme import Colours, colours_of

if TYPE_CHECKING:
    from PySide6.QtCore import QPoint
    from PySide6.QtGui import QKeyEvent, QResizeEvent

    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine
    from snaptree.ui.settings import Settings

_MARGIN = 6
_NAME_LETTERS = 12
"""Of names, that are shown before the number of snapshots is."""
_ORDERS = {
    Order.NAME: "&Name",
    Order.COST: "&Disk use",
    Order.AGE: "&Age of the oldest snapshot",
    Order.DEPTH: "D&epth in layers",
    Order.COUNT: "Number of &snapshots",
    Order.FINDINGS: "&Worst finding",
}

_STATE_ICONS = {
    DomainState.RUNNING: "running",
    DomainState.BLOCKED: "running",
    DomainState.PAUSED: "paused",
    DomainState.SUSPENDED: "paused",
    DomainState.OFF: "off",
    DomainState.SHUTTING_DOWN: "off",
    DomainState.CRASHED: "crashed",
}

_HOST_ICONS = {"connecting": "waiting", "connected": "host", "lost": "warning", "failed": "error", "closed": "off"}


def state_icon(state: DomainState) -> str:
    """The icon of a machine's state; its shape tells the state without its colour."""
    return _STATE_ICONS.get(state, "unknown")


def state_colour(state: DomainState, colours: Colours) -> QColor:
    """The colour that goes with a state."""
    if state in (DomainState.RUNNING, DomainState.BLOCKED):
        return colours.good
    return colours.error if state is DomainState.CRASHED else colours.dim


class EstateDelegate(QStyledItemDelegate):
    """Paints hosts and machines directly: a list of hundreds scrolls without a thought."""

    def __init__(self, model: EstateModel, view: QTreeView) -> None:
        super().__init__(view)
        self._model = model
        self._view = view

    def sizeHint(self, option: QStyleOptionViewItem, _index: QModelIndex | QPersistentModelIndex) -> QSize:
        """All rows are equally high."""
        return QSize(40, option.fontMetrics.height() + 10)

    def paint(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Paint one cell."""
        colours = colours_of(option.palette)
        painter.save()
        rect = option.rect.adjusted(_MARGIN if index.column() else 2, 0, -_MARGIN, 0)
        machine = self._model.machine(index)
        host = self._model.host(index)
        if machine is not None:
            is_selected = bool(option.state & QStyle.StateFlag.State_Selected)
            self._paint_machine(painter, rect, machine, Column(index.column()), colours, is_selected=is_selected)
        elif host is not None:
            self._paint_host(painter, rect, host, index, colours)
        painter.restore()

    def _paint_host(
        self,
        painter: QPainter,
        rect: QRect,
        host: HostEntry,
        index: QModelIndex | QPersistentModelIndex,
        colours: Colours,
    ) -> None:
        """One cell across all columns: name on the left, total on the right."""
        text = str(index.data(Qt.ItemDataRole.DisplayRole) or "")
        total = str(self._model.sibling(index.row(), Column.MEASURE, index).data() or "")
        if total:
            self._paint_text(painter, rect, total, colours.dim, Qt.AlignmentFlag.AlignRight)
            rect = rect.adjusted(0, 0, -painter.fontMetrics().horizontalAdvance(total) - 8, 0)
        if index.column() == Column.NAME:
            phase = str(host.status.phase)
            colour = {"lost": colours.warning, "failed": colours.error}.get(phase, colours.dim)
            rect = self._paint_icon(painter, rect, _HOST_ICONS.get(phase, "host"), colour)
            if host.status.host is not None and host.status.host.read_only:
                rect = self._paint_mark(painter, rect, "lock", colours.dim)
            if host.findings:
                rect = self._paint_mark(painter, rect, *sign_of(host.findings[0], colours))
            font = QFont(painter.font())
            font.setWeight(QFont.Weight.DemiBold)
            painter.setFont(font)
            self._paint_text(painter, rect, text, colours.text)

    def _paint_machine(
        self,
        painter: QPainter,
        rect: QRect,
        machine: Machine,
        column: Column,
        colours: Colours,
        *,
        is_selected: bool,
    ) -> None:
        text = self._model.cell_text(machine, column)
        if column is Column.NAME:
            state = machine.domain.state
            rect = self._paint_icon(painter, rect, state_icon(state), state_colour(state, colours))
            if machine.worst is not None:
                rect = self._paint_mark(painter, rect, *sign_of(machine.worst, colours))
            if machine.looks_at is not None:
                rect = self._paint_mark(painter, rect, "look", colours.dim)
            self._paint_text(painter, rect, text, colours.text)
            return
        if column is Column.MEASURE and self._model.order not in (Order.AGE, Order.DEPTH):
            self._paint_bar(painter, rect, machine, colours.bar_selected if is_selected else colours.bar)
        known = text not in ("?", "—")
        self._paint_text(painter, rect, text, colours.text if known else colours.dim, Qt.AlignmentFlag.AlignRight)

    def _paint_bar(self, painter: QPainter, rect: QRect, machine: Machine, colour: QColor) -> None:
        """A bar behind the figure, as long as the machine is costly."""
        if not machine.disk.bytes or not self._model.largest:
            return
        width = max(2, (rect.width() + 6) * machine.disk.bytes // self._model.largest)
        painter.fillRect(QRect(rect.left() - 2, rect.top() + 4, width, rect.height() - 8), colour)

    def _paint_icon(self, painter: QPainter, rect: QRect, name: str, colour: QColor) -> QRect:
        side = icons.SIZE
        place = QRect(rect.left(), rect.center().y() - side // 2 + 1, side, side)
        icons.icon(name, colour).paint(painter, place)
        return rect.adjusted(side + 6, 0, 0, 0)

    def _paint_mark(self, painter: QPainter, rect: QRect, name: str, colour: QColor) -> QRect:
        """An icon at the right end. Returns the room that is left."""
        side = icons.SIZE
        place = QRect(rect.right() - side + 1, rect.center().y() - side // 2 + 1, side, side)
        icons.icon(name, colour).paint(painter, place)
        return rect.adjusted(0, 0, -side - 4, 0)

    def _paint_text(
        self,
        painter: QPainter,
        rect: QRect,
        text: str,
        colour: QColor,
        alignment: Qt.AlignmentFlag = Qt.AlignmentFlag.AlignLeft,
    ) -> None:
        painter.setPen(colour)
        shown = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, rect.width())
        painter.drawText(rect, alignment | Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine, shown)


class EstateList(QTreeView):
    """Hosts and machines. What is selected, folded in and scrolled to survives every change of the list."""

    chosen = Signal(object)
    """A MachineId, a host's address (str), or None."""
    menu_wanted = Signal(object)
    """The place, on the screen, where the menu of what is chosen shall open."""

    def __init__(self, model: EstateModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._wanted: MachineId | str | None = None
        self._folded_in: set[str] = set()
        self._scrolled_to = 0
        self._is_restoring = False
        self.setModel(model)
        self.setItemDelegate(EstateDelegate(model, self))
        self.setAccessibleName("Hosts and virtual machines")
        self.setUniformRowHeights(True)
        self.setIndentation(14)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setExpandsOnDoubleClick(True)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(Column.NAME, QHeaderView.ResizeMode.Stretch)
        width = self.fontMetrics().horizontalAdvance
        for column, widest in ((Column.SNAPSHOTS, "Snaps"), (Column.MEASURE, "~888.8 MiB")):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
            header.resizeSection(column, width(widest) + 2 * _MARGIN + 4)
        self._snapshots_width = header.sectionSize(Column.SNAPSHOTS)
        header.setSectionsClickable(False)
        header.setMinimumSectionSize(30)
        model.modelAboutToBeReset.connect(self._remember)
        model.modelReset.connect(self._restore)
        self.expanded.connect(self._was_expanded)
        self.collapsed.connect(self._was_collapsed)
        self.selectionModel().currentChanged.connect(self._current_changed)
        self._restore()

    def drawRow(
        self, painter: QPainter, option: QStyleOptionViewItem, index: QModelIndex | QPersistentModelIndex
    ) -> None:
        """Fill the whole row of what is selected, beside the name too; the style would outline it."""
        if self._wanted is not None and self._model.where(index) == self._wanted:
            colours = colours_of(self.palette())
            rect = QRect(0, option.rect.top(), self.viewport().width(), option.rect.height())
            painter.fillRect(rect, colours.selected if self.hasFocus() else colours.selected_elsewhere)
        super().drawRow(painter, option, index)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Where it is narrow, names are worth more than the number of snapshots."""
        super().resizeEvent(event)
        header, metrics = self.header(), self.fontMetrics()
        is_hidden = header.isSectionHidden(Column.SNAPSHOTS)
        taken = header.sectionSize(Column.MEASURE) + self._snapshots_width + 2 * self.indentation() + icons.SIZE
        is_narrow = self.viewport().width() - taken < metrics.averageCharWidth() * _NAME_LETTERS
        if is_narrow != is_hidden:
            header.setSectionHidden(Column.SNAPSHOTS, is_narrow)

    def choose(self, where: MachineId | str | None) -> None:
        """Select a machine, or a host by its address, now or as soon as it is listed."""
        self._wanted = where
        self._select_wanted()

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        """Ask for the menu at the mouse, or at the current row for the keyboard's menu key."""
        place: QPoint = event.globalPos()
        if event.reason() is QContextMenuEvent.Reason.Keyboard:
            place = self.viewport().mapToGlobal(self.visualRect(self.currentIndex()).bottomLeft())
        self.menu_wanted.emit(place)

    def _current_changed(self, current: QModelIndex, _previous: QModelIndex) -> None:
        if self._is_restoring:
            return
        self._wanted = self._model.where(current)
        self.chosen.emit(self._wanted)

    def _remember(self) -> None:
        self._is_restoring = True
        self._scrolled_to = self.verticalScrollBar().value()

    def _restore(self) -> None:
        self._is_restoring = True
        for number, row in enumerate(self._model.rows):
            is_open = row.entry.uri not in self._folded_in or bool(self._model.search)
            self.setExpanded(self._model.index(number, 0), is_open)
            self.setFirstColumnSpanned(number, QModelIndex(), True)
        self._is_restoring = False
        self._select_wanted()
        self.verticalScrollBar().setValue(self._scrolled_to)

    def _select_wanted(self) -> None:
        index = self._model.index_of(self._wanted)
        if not index.isValid():
            return
        self._is_restoring = True
        flags = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows
        self.selectionModel().setCurrentIndex(index, flags)
        self._is_restoring = False

    def _was_expanded(self, index: QModelIndex) -> None:
        host = self._model.host(index)
        if host is not None and not self._is_restoring:
            self._folded_in.discard(host.uri)

    def _was_collapsed(self, index: QModelIndex) -> None:
        host = self._model.host(index)
        if host is not None and not self._is_restoring:
            self._folded_in.add(host.uri)


class SearchField(QLineEdit):
    """The search box: Down goes on to what was found, Escape clears it and then goes back to the list."""

    left = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Keys that lead out of the box."""
        if event.key() == Qt.Key.Key_Escape and self.text():
            self.clear()
        elif event.key() in (Qt.Key.Key_Escape, Qt.Key.Key_Down, Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.left.emit()
        else:
            super().keyPressEvent(event)


class EstateView(QWidget):
    """The list with its search box and its order."""

    chosen = Signal(object)
    menu_wanted = Signal(object)
    search_changed = Signal(str)

    def __init__(self, model: EstateModel, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._settings = settings
        self.search = SearchField(self)
        self.search.setPlaceholderText("Search (Ctrl+F)")
        self.search.setAccessibleName("Search machines and snapshots by name or note")
        self.search.setToolTip("Machines and snapshots by name or note")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._search_changed)
        self._find = QAction(self)
        self.search.addAction(self._find, QLineEdit.ActionPosition.LeadingPosition)
        self._sort_button = QToolButton(self)
        self._sort_button.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self._sort_button.setAccessibleName("Sort the machines")
        self._sort_button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.order_menu = self._make_order_menu()
        self._sort_button.setMenu(self.order_menu)
        # Made last, so that Tab goes on from the list to the tree.
        self.list = EstateList(model, self)
        self.list.chosen.connect(self.chosen)
        self.list.menu_wanted.connect(self.menu_wanted)
        self.search.left.connect(self.list.setFocus)
        bar = QHBoxLayout()
        bar.setContentsMargins(8, 8, 8, 8)
        bar.setSpacing(4)
        bar.addWidget(self.search)
        bar.addWidget(self._sort_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(bar)
        self.nothing_found = PlainLabel("", self, dim=True)
        self.nothing_found.setContentsMargins(8, 0, 8, 8)
        layout.addWidget(self.nothing_found)
        layout.addWidget(self.list, 1)
        for changed in (model.modelReset, model.dataChanged):
            changed.connect(self._show_nothing_found)
        self._show_nothing_found()
        self.dress()

    def dress(self) -> None:
        """Take the icons in the theme's colours."""
        colours = colours_of(self.palette())
        self._sort_button.setIcon(icons.icon("sort", colours.text))
        self._find.setIcon(icons.icon("find", colours.dim))

    def start_search(self) -> None:
        """Put the cursor into the search box."""
        self.search.setFocus(Qt.FocusReason.ShortcutFocusReason)
        self.search.selectAll()

    def _search_changed(self, text: str) -> None:
        self._model.search = text
        self._show_nothing_found()
        self.search_changed.emit(text.strip())

    def _show_nothing_found(self) -> None:
        """A search without a result says so, and what was not searched yet."""
        wanted, rows = self._model.search, self._model.rows
        is_empty = bool(wanted) and not any(row.machines for row in rows)
        self.nothing_found.setVisible(is_empty)
        if not is_empty:
            return
        unread = sum(machine.tree is None for row in rows for machine in row.entry.machines())
        text = f"No machine or snapshot has {quoted(wanted)} in its name or note."
        if unread:
            text += f" The snapshots of {words.count(unread, 'machine')} are not read yet."
        self.nothing_found.set_text(text)

    def _make_order_menu(self) -> QMenu:
        menu = QMenu("Sort by", self)
        group = QActionGroup(self)
        remembered = self._settings.text("estate_order", Order.NAME)
        for order, title in _ORDERS.items():
            action = menu.addAction(title)
            action.setCheckable(True)
            action.setData(order.value)
            group.addAction(action)
            if order == remembered:
                action.setChecked(True)
                self._set_order(action)
        group.triggered.connect(self._set_order)
        return menu

    def _set_order(self, action: QAction) -> None:
        order = Order(action.data())
        self._model.order = order
        self._settings.set_text("estate_order", order.value)
        self._sort_button.setToolTip(tooltip(f"Sorted by {_ORDERS[order].replace('&', '').lower()}"))
