"""The machines of a host that may be pruned together: which are, and what that comes to for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem, QWidget

from snaptree import words
from snaptree.plans.speed import why_no_time
from snaptree.plans.wording import plain
from snaptree.ui.text import tooltip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snaptree.plans.plan import Finding, Forecast
    from snaptree.plans.prune import Pruning
    from snaptree.ui.machine import Machine

_TITLES: Final = {
    "Machine": "Tick those that shall be pruned. The one that is selected is shown below.",
    "Goes": "Snapshots that go, of all.",
    "Frees": "Bytes that come back on disk.",
    "Copies": "Bytes that have to be copied first.",
    "Needs": "Bytes that merging takes on disk meanwhile.",
    "Takes": "How long it takes, going by what it took on this host before.",
    "Layers": "How many layers the deepest disk stands on: now, and then.",
}


_NOTHING: Final = [("", "")] * (len(_TITLES) - 1)
_TICKED: Final = Qt.CheckState.Checked
_ROW_FLAGS: Final = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pruning a machine comes to, as far as that is worked out."""

    pruning: Pruning
    forecast: Forecast
    left_out: Finding | None = None
    """Why nothing of it goes, as far as is known; None if nothing is in the way."""


class PruneMachines(QTableWidget):
    """A row for each machine, with a box to tick."""

    ticks_changed = Signal()
    chosen = Signal(str)
    """UUID of the machine whose tree is to be shown."""

    def __init__(self, machines: Iterable[Machine], ticked: str, parent: QWidget | None = None) -> None:
        """`ticked` is the UUID of the one that is ticked at first."""
        super().__init__(0, len(_TITLES), parent)
        self.setAccessibleName("Machines")
        for column, (title, meaning) in enumerate(_TITLES.items()):
            item = QTableWidgetItem(title)
            item.setToolTip(tooltip(meaning))
            item.setTextAlignment(_side(column))
            self.setHorizontalHeaderItem(column, item)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 8)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setMinimumSectionSize(14 * self.fontMetrics().averageCharWidth())
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self._uuids: list[str] = []
        self._cells: list[list[QTableWidgetItem]] = []
        for machine in machines:
            self._add(machine, is_ticked=machine.id.uuid == ticked)
        self.itemChanged.connect(self._item_changed)
        self.currentCellChanged.connect(self._row_chosen)
        self.setCurrentCell(self._uuids.index(ticked), 0)

    def ticked(self) -> tuple[str, ...]:
        """The machines to prune, by UUID, in the order of the rows."""
        return tuple(uuid for row, uuid in enumerate(self._uuids) if self._cells[row][0].checkState() is _TICKED)

    def tick(self, uuids: Iterable[str]) -> None:
        """Tick exactly these."""
        wanted = set(uuids)
        with QSignalBlocker(self):
            for row, uuid in enumerate(self._uuids):
                self._cells[row][0].setCheckState(_TICKED if uuid in wanted else Qt.CheckState.Unchecked)
        self.ticks_changed.emit()

    def everyone(self) -> tuple[str, ...]:
        """All machines, by UUID."""
        return tuple(self._uuids)

    @property
    def shown(self) -> str:
        """UUID of the machine whose tree is to be shown."""
        return self._uuids[max(0, self.currentRow())]

    def show_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """Show what was worked out, and nothing beside the others."""
        with QSignalBlocker(self):
            for row, uuid in enumerate(self._uuids):
                texts = _NOTHING if uuid not in outcomes else _texts(outcomes[uuid])
                for item, (text, meaning) in zip(self._cells[row][1:], texts, strict=True):
                    item.setText(text)
                    item.setToolTip(tooltip(meaning))
        self.viewport().update()

    def texts(self, uuid: str) -> list[str]:
        """What stands in a machine's row."""
        return [item.text() for item in self._cells[self._uuids.index(uuid)]]

    def _add(self, machine: Machine, *, is_ticked: bool) -> None:
        row = self.rowCount()
        self.insertRow(row)
        name, *others = (QTableWidgetItem() for _ in _TITLES)
        name.setText(plain(machine.domain.name))
        name.setToolTip(tooltip(machine.domain.name))
        name.setFlags(_ROW_FLAGS | Qt.ItemFlag.ItemIsUserCheckable)
        name.setCheckState(_TICKED if is_ticked else Qt.CheckState.Unchecked)
        for column, item in enumerate((name, *others)):
            if column:
                item.setFlags(_ROW_FLAGS)
            item.setTextAlignment(_side(column))
            self.setItem(row, column, item)
        self._uuids.append(machine.id.uuid)
        self._cells.append([name, *others])

    def _item_changed(self, item: QTableWidgetItem) -> None:
        if item.column() == 0:
            self.ticks_changed.emit()

    def _row_chosen(self, row: int, _column: int, before: int, _column_before: int) -> None:
        if 0 <= row != before:
            self.chosen.emit(self._uuids[row])


def _side(column: int) -> Qt.AlignmentFlag:
    return (Qt.AlignmentFlag.AlignRight if column else Qt.AlignmentFlag.AlignLeft) | Qt.AlignmentFlag.AlignVCenter


def _texts(outcome: Outcome) -> list[tuple[str, str]]:
    """Texts and what tooltips say, beside a machine's name."""
    pruning, forecast = outcome.pruning, outcome.forecast
    if (why := outcome.left_out) is not None:
        says = f"{why.reason} {why.remedy}".rstrip()
        return [("left out", says), *[(words.NONE, says)] * (len(_TITLES) - 2)]
    figures = (forecast.frees, forecast.copies, forecast.peak_extra)
    takes = words.UNKNOWN if forecast.seconds is None else words.duration(forecast.seconds)
    if not pruning.goes:
        takes = words.NONE
    return [
        (f"{len(pruning.goes):,} of {len(pruning.decisions):,}", pruning.falls_short),
        *((words.figure(figure), words.figure_in_full(figure)) for figure in figures),
        (takes, f"Not known: {why_no_time(forecast.copies)}." if takes == words.UNKNOWN else ""),
        (f"{pruning.depth:,} → {pruning.depth_after:,}", ""),
    ]
