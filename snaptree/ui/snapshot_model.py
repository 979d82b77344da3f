"""The snapshots of one machine as a flat table: a tree in lanes, with its costs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from time import time
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt, QTimer

from snaptree import words
from snaptree.model.estate import Consistency
from snaptree.model.figures import NOTHING, Figure, total, unknown
from snaptree.model.folding import NOW, Fold, Now, RowId, VisibleRows, fold
from snaptree.model.lanes import LaneLayout, LaneRow, lay_out
from snaptree.plans.of_no_use import DOUBTFUL, HALF_DELETED, IMAGE_MISSING, MEMORY_MISSING, NOT_IN_IMAGE
from snaptree.plans.wording import machines_named, plain, quoted
from snaptree.ui.estate_model import found, natural
from snaptree.ui.text import tooltip
from snaptree.ui.thumbnails import with_picture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PySide6.QtGui import QImage

    from snaptree.model.costs import SnapshotCost
    from snaptree.model.estate import Snapshot
    from snaptree.model.tree import SnapshotTree
    from snaptree.ui.machine import Machine
    from snaptree.ui.thumbnails import ThumbnailLibrary

Index = QModelIndex | QPersistentModelIndex
RowKey = tuple[str, str]
"""What names a row across readings: ("snapshot", its name), ("fold", the name of its first), ("now", "")."""

_AGE_TICK_MS = 30_000
_SURELY_DATA = 1 << 20
"""Bytes per disk that the tables of an empty overlay never reach (64 TiB of disk take 0.6 MiB)."""

_NOT_READ = unknown("not read yet")

# Added up once: Qt's flags are slow to combine, and views ask for them with every cell.
_FOLD_FLAGS = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemNeverHasChildren
_ROW_FLAGS = _FOLD_FLAGS | Qt.ItemFlag.ItemIsSelectable
_NOTE_FLAGS = _ROW_FLAGS | Qt.ItemFlag.ItemIsEditable


class Column(IntEnum):
    """The columns of the table."""

    TREE = 0
    AGE = 1
    WRITTEN = 2
    FREES = 3
    MEMORY = 4
    NOTE = 5


FIGURES = (Column.WRITTEN, Column.FREES, Column.MEMORY)

_TITLES = {
    Column.TREE: ("Snapshot", "Every line is a line of descent; a branch has a line of its own."),
    Column.AGE: ("Age", "How long ago it was taken, by the host's clock."),
    Column.WRITTEN: ("Written", "Bytes that it adds on the host, compared with its parent."),
    Column.FREES: ("Frees", "Bytes that come back if only this snapshot is deleted."),
    Column.MEMORY: ("Memory", "Bytes that the saved memory takes on the host's disk."),
    Column.NOTE: ("Note", "What whoever took it wrote about it."),
}


class Tone(Enum):
    """How loudly a badge speaks."""

    QUIET = "quiet"
    GOOD = "good"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Badge:
    """A word beside a snapshot's name, with what it means."""

    text: str
    meaning: str
    tone: Tone = Tone.QUIET
    stays: bool = False
    """The name and other badges give way to it."""
    icon: str = ""
    """The sign that stands for the word where there is no room for it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the table is asked to show of a machine."""

    machine: Machine | None = None
    unfolded: frozenset[str] = frozenset()
    """Snapshots in stretches that the user has opened."""
    selected: frozenset[str] = frozenset()
    folds: bool = True
    search: str = ""


def key_of(row_id: RowId) -> RowKey:
    """The name of a row across readings."""
    if isinstance(row_id, str):
        return "snapshot", row_id
    return ("fold", row_id.first) if isinstance(row_id, Fold) else ("now", "")


class SnapshotModel(QAbstractTableModel):
    """Rows for what `fold` and `lay_out` say, in the order of the tree or of one column."""

    def __init__(self, parent: QObject | None = None, thumbnails: ThumbnailLibrary | None = None) -> None:
        super().__init__(parent)
        self._thumbnails = thumbnails
        self._shown = Shown()
        self._rows: list[RowId] = []
        self._row_of: dict[RowKey, int] = {}
        self._layout: LaneLayout[RowId] | None = None
        self._opened: dict[str, Fold] = {}
        self._sorted_by = Column.TREE
        self._descending = False
        self._largest = 0
        tick = QTimer(self, interval=_AGE_TICK_MS)
        tick.timeout.connect(self._ages_changed)
        tick.start()

    # What is shown

    @property
    def shown(self) -> Shown:
        """What the table was last asked to show."""
        return self._shown

    def show(self, shown: Shown) -> None:
        """Show this. Rows that stay the same keep their place; otherwise the model is reset."""
        rows, layout, opened = self._arrange(shown)
        if rows and rows == self._rows and _is_same_machine(shown, self._shown):
            # The same rows may hang together otherwise, when a parent was deleted: the lanes are always new.
            self._shown, self._layout, self._opened = shown, layout, opened
            self._largest = self._largest_written()
            self.dataChanged.emit(self.index(0, 0), self.index(len(rows) - 1, len(Column) - 1))
            return
        self.beginResetModel()
        self._shown, self._layout, self._opened = shown, layout, opened
        self._set_rows(rows)
        self._largest = self._largest_written()
        self.endResetModel()

    @property
    def tree(self) -> SnapshotTree | None:
        """The tree that is shown."""
        return None if self._shown.machine is None else self._shown.machine.tree

    @property
    def sorted_by(self) -> Column:
        """The column that orders the rows; the tree itself by default."""
        return self._sorted_by

    @property
    def lane_count(self) -> int:
        """Lanes that the tree needs; none if rows are sorted otherwise."""
        return 0 if self._layout is None else self._layout.width

    @property
    def largest(self) -> int:
        """Bytes of the largest figure in the column of what was written: the full length of a bar."""
        return self._largest

    def row_id(self, row: int) -> RowId:
        """What a row stands for."""
        return self._rows[row]

    @property
    def folds(self) -> list[Fold]:
        """The folds among the rows."""
        return [row_id for row_id in self._rows if isinstance(row_id, Fold)]

    def lane_row(self, row: int) -> LaneRow[RowId] | None:
        """The lines to paint in a row; None where rows are not in the order of the tree."""
        return None if self._layout is None else self._layout[row]

    def row_of(self, key: RowKey) -> int | None:
        """Where a row is now."""
        return self._row_of.get(key)

    def snapshot(self, row: int) -> Snapshot | None:
        """The snapshot of a row."""
        row_id = self._rows[row]
        return self.tree[row_id] if isinstance(row_id, str) and self.tree is not None else None

    def opened_fold(self, row: int) -> Fold | None:
        """The stretch that begins at a row and could be folded again."""
        row_id = self._rows[row]
        return self._opened.get(row_id) if isinstance(row_id, str) else None

    def cost(self, name: str) -> SnapshotCost | None:
        """What one snapshot costs, None if it was not worked out yet."""
        machine = self._shown.machine
        if machine is None or machine.costs is None:
            return None
        return machine.costs.costs.snapshots.get(name)

    def figure(self, row_id: RowId, column: Column) -> Figure | None:
        """A figure of a row; None where there is nothing to count."""
        machine = self._shown.machine
        if isinstance(row_id, Now):
            if column is not Column.WRITTEN:
                return None
            return _NOT_READ if machine is None or machine.costs is None else machine.costs.costs.now
        if isinstance(row_id, Fold):
            if column is Column.FREES:
                return None
            figure = total(self.figure(name, column) or NOTHING for name in row_id.hidden)
            return None if figure == NOTHING else figure
        cost = self.cost(row_id)
        if cost is None:
            return _NOT_READ
        match column:
            case Column.WRITTEN:
                return cost.written
            case Column.FREES:
                return cost.frees
            case _:
                return None if cost.memory == NOTHING else cost.memory

    def is_struck_out(self, row: int) -> bool:  # noqa: ARG002  for those that preview
        """Whether the name of a row is struck through: it is about to go."""
        return False

    def badges(self, row: int) -> tuple[Badge, ...]:
        """Words beside the name: what differs within the tree, and what is out of the ordinary."""
        machine = self._shown.machine
        if machine is None:
            return ()
        snapshot = self.snapshot(row)
        if snapshot is not None:
            return _badges(snapshot, machine)
        if isinstance(self._rows[row], Now) and self._now_has_changed():
            return (Badge("changed", "Written to since the snapshot above: that is in no snapshot yet."),)
        return ()

    # Qt's side

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's own default
        """Rows; a table has no children."""
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's own default
        """Columns; a table has no children."""
        return 0 if parent.isValid() else len(Column)

    def flags(self, index: Index) -> Qt.ItemFlag:
        """Folds can be walked to, but not selected: what would be deleted is always in sight. Notes can be edited."""
        if not index.isValid():
            return Qt.ItemFlag.NoItemFlags
        row_id = self._rows[index.row()]
        if isinstance(row_id, Fold):
            return _FOLD_FLAGS
        return _NOTE_FLAGS if index.column() == Column.NOTE and isinstance(row_id, str) else _ROW_FLAGS

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Titles, and what the figures mean."""
        if orientation is not Qt.Orientation.Horizontal:
            return None
        column = Column(section)
        if role == Qt.ItemDataRole.DisplayRole:
            return _TITLES[column][0]
        if role == Qt.ItemDataRole.ToolTipRole:
            return _TITLES[column][1]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if column in FIGURES else Qt.AlignmentFlag.AlignLeft
            return int(side | Qt.AlignmentFlag.AlignVCenter)
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Texts for the view, for tooltips and for screen readers; the delegate paints the rest."""
        if not index.isValid():
            return None
        column = Column(index.column())
        if role == Qt.ItemDataRole.DisplayRole:
            return self.text(index.row(), column)
        if role == Qt.ItemDataRole.ToolTipRole:
            text = tooltip(self._explanation(index.row(), column))
            return with_picture(text, self._picture(index.row())) if column is Column.TREE else text
        if role == Qt.ItemDataRole.AccessibleTextRole and column is Column.TREE:
            return ", ".join([self.text(index.row(), column), *self._said_by_signs(index.row())])
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Order the rows by a column; the first column, or none, is the tree itself."""
        self.beginResetModel()
        self._sorted_by = Column.TREE if column < 0 else Column(column)
        self._descending = order is Qt.SortOrder.DescendingOrder and self._sorted_by is not Column.TREE
        rows, self._layout, self._opened = self._arrange(self._shown)
        self._set_rows(rows)
        self.endResetModel()

    # Texts

    def text(self, row: int, column: Column) -> str:
        """The text of a cell."""
        row_id = self._rows[row]
        if column in FIGURES:
            figure = self.figure(row_id, column)
            return words.figure(figure) if figure is not None else words.NONE if isinstance(row_id, str) else ""
        if isinstance(row_id, Now):
            return self._now_text(column)
        if isinstance(row_id, Fold):
            return f"{len(row_id):,} more snapshots" if column is Column.TREE else ""
        snapshot = self.snapshot(row)
        if snapshot is None:
            return ""
        match column:
            case Column.TREE:
                return plain(snapshot.name)
            case Column.AGE:
                return words.age(time() - snapshot.created)
            case _:
                return plain(" ".join(snapshot.description.split()))

    def _now_text(self, column: Column) -> str:
        machine = self._shown.machine
        if column is Column.TREE:
            return "Now"
        if column is Column.AGE and machine is not None:
            return words.state(machine.domain.state)
        return ""

    def _explanation(self, row: int, column: Column) -> str:
        row_id = self._rows[row]
        if column in FIGURES:
            figure = self.figure(row_id, column)
            return "" if figure is None else words.figure_in_full(figure)
        if isinstance(row_id, Now):
            badges = "".join(f"\n{badge.text}: {badge.meaning}" for badge in self.badges(row))
            return f"What the machine is now: not a snapshot, so there is nothing to revert to.{badges}"
        if isinstance(row_id, Fold):
            return f"From {quoted(row_id.first)} to {quoted(row_id.last)}. A click or Enter shows them."
        snapshot = self.snapshot(row)
        if snapshot is None:
            return ""
        if column is Column.AGE:
            return words.moment(snapshot.created)
        if column is Column.NOTE:
            return snapshot.description
        consistency = snapshot.consistency
        lines = [snapshot.name, f"{words.kind(snapshot.kind)}, {words.consistency(consistency)}"]
        lines += [words.consistency_in_full(consistency)]
        said = words.consistency(consistency)
        lines += [f"{badge.text}: {badge.meaning}" for badge in self.badges(row) if badge.text != said]
        return "\n".join(lines)

    def _picture(self, row: int) -> QImage | None:
        """The guest's screen when a snapshot was taken, as far as it is known by now."""
        machine, snapshot = self._shown.machine, self.snapshot(row)
        if machine is None or snapshot is None or self._thumbnails is None:
            return None
        return self._thumbnails.picture(machine.id, snapshot)

    def _said_by_signs(self, row: int) -> list[str]:
        """What is drawn beside a name, in words."""
        badges = [badge.text for badge in self.badges(row)]
        snapshot = self.snapshot(row)
        consistency = None if snapshot is None else words.consistency(snapshot.consistency)
        return badges if consistency is None or consistency in badges else [*badges, consistency]

    # Rows

    def _set_rows(self, rows: list[RowId]) -> None:
        self._rows = rows
        self._row_of = {key_of(row_id): row for row, row_id in enumerate(rows)}

    def _arrange(self, shown: Shown) -> tuple[list[RowId], LaneLayout[RowId] | None, dict[str, Fold]]:
        tree = None if shown.machine is None else shown.machine.tree
        if tree is None:
            return [], None, {}
        if self._sorted_by is not Column.TREE:
            return [*self._in_order_of(self._sorted_by, tree), NOW], None, {}
        visible = _visible(tree, shown)
        return [row.id for row in visible.rows], lay_out(visible.rows, straight_to=NOW), dict(visible.unfolded)

    def _in_order_of(self, column: Column, tree: SnapshotTree) -> list[str]:
        """Names by one column; those of which it is not known come last in both directions."""
        sort_key = self._sort_key(column, tree)
        known = [name for name in tree.snapshots if sort_key(name) is not None]
        known.sort(key=sort_key, reverse=self._descending)
        return known + [name for name in tree.snapshots if sort_key(name) is None]

    def _sort_key(self, column: Column, tree: SnapshotTree) -> Callable[[str], Any]:
        match column:
            case Column.AGE:
                return lambda name: -tree[name].created
            case Column.NOTE:
                return lambda name: natural(tree[name].description.casefold()) if tree[name].description else None
            case _:
                return lambda name: self._bytes(name, column)

    def _bytes(self, name: str, column: Column) -> int | None:
        figure = self.figure(name, column)
        return 0 if figure is None else figure.bytes

    def _largest_written(self) -> int:
        machine = self._shown.machine
        if machine is None or machine.costs is None:
            return 0
        costs = machine.costs.costs
        figures: Iterable[Figure] = [costs.now, *(cost.written for cost in costs.snapshots.values())]
        return max((figure.bytes or 0 for figure in figures), default=0)

    def _now_has_changed(self) -> bool:
        """Whether more was certainly written than the tables of fresh overlays."""
        machine = self._shown.machine
        if machine is None or machine.costs is None or machine.tree is None or machine.tree.current is None:
            return False
        written = machine.costs.costs.now.bytes
        return written is not None and written > _SURELY_DATA * len(machine.costs.layers.chains)

    def _ages_changed(self) -> None:
        if self._rows:
            self.dataChanged.emit(self.index(0, Column.AGE), self.index(len(self._rows) - 1, Column.AGE))


def _visible(tree: SnapshotTree, shown: Shown) -> VisibleRows:
    if not shown.folds:
        return fold(tree, unfolded=tree.snapshots)
    of_no_use = () if shown.machine is None else shown.machine.of_no_use
    keep = set(of_no_use if len(of_no_use) <= _MOST_UNFOLDED else ())
    if shown.search:
        keep |= {snapshot.name for snapshot in tree if found(snapshot.name, snapshot.description, shown.search)}
    visible = fold(tree, keep=keep, unfolded=shown.unfolded)
    # What is selected may get into a fold when the tree grows. Else it must not count: folds would change by clicks.
    hidden = shown.selected.intersection(name for hides in visible.folds for name in hides.hidden)
    return fold(tree, keep=keep | hidden, unfolded=shown.unfolded) if hidden else visible


def _is_same_machine(one: Shown, other: Shown) -> bool:
    return one.machine is not None and other.machine is not None and one.machine.id == other.machine.id


_MOST_UNFOLDED = 50
"""Snapshots of no use that no fold hides: one missing image may make thousands so."""
_OF_NO_USE = {
    HALF_DELETED: "Its deletion was cut short: its layer is partly overwritten with what came later, and is no state"
    " that ever was. Finish that, or delete it.",
    DOUBTFUL: "A layer that it stands on was merged or written to by hand after it was taken, so it may show something"
    " else than was there.",
    NOT_IN_IMAGE: "It is listed, but its image does not hold it any more: what it held is gone.",
    IMAGE_MISSING: "An image that it stands on is missing, and with it what that held.",
    MEMORY_MISSING: "The file with its memory is missing.",
}


def _badges(snapshot: Snapshot, machine: Machine) -> tuple[Badge, ...]:
    badges = []
    marks = snapshot.annotations
    if snapshot.problem:
        badges.append(Badge("damaged", snapshot.problem, Tone.ERROR, stays=True, icon="error"))
    if snapshot.delete_in_progress:
        badges.append(
            Badge(
                "delete interrupted",
                "Delete its child again: that is the cure.",
                Tone.WARNING,
                stays=True,
                icon="warning",
            )
        )
    missing = _missing_layers(snapshot, machine)
    if reason := machine.of_no_use.get(snapshot.name) or (IMAGE_MISSING if missing else ""):
        meaning = "\n".join(missing) if reason == IMAGE_MISSING and missing else _OF_NO_USE[reason]
        tone, icon = (Tone.WARNING, "warning") if reason == DOUBTFUL else (Tone.ERROR, "error")
        badges.append(Badge(reason, meaning, tone, stays=True, icon=icon))
    if marks.pinned:
        kept = "Kept out of deletes of several and of every automatic one."
        badges.append(Badge("pinned", f"{words.mark_in_full(marks.pinned)}. {kept}", stays=True, icon="pin"))
    if marks.known_good:
        works = "The machine was found working here. Kept like what is pinned."
        badges.append(
            Badge(
                "known good",
                f"{words.mark_in_full(marks.known_good)}. {works}",
                Tone.GOOD,
                stays=True,
                icon="known-good",
            )
        )
    if marks.safety:
        badges.append(Badge("safety", "Taken by SnapTree before a revert, so that it can be undone."))
    if marks.group:
        badges.append(Badge("group", _taken_together(marks.group, machine)))
    if snapshot.kind is not machine.usual_kind:
        badges.append(Badge(words.kind(snapshot.kind), words.kind_in_full(snapshot.kind)))
    if snapshot.consistency not in (machine.usual_consistency, Consistency.MEMORY):
        # Memory has a column of its own, and a filled mark.
        badges.append(Badge(words.consistency(snapshot.consistency), words.consistency_in_full(snapshot.consistency)))
    return tuple(badges)


def _taken_together(group: str, machine: Machine) -> str:
    """With which machines, as far as they still have a snapshot of it."""
    others = [each.name for each in machine.together.get(group, ()) if each.uuid != machine.id.uuid]
    which = machines_named(others) or "machines that have none of it any more"
    return f"Taken together with {which} (group {plain(group)})."


def _missing_layers(snapshot: Snapshot, machine: Machine) -> list[str]:
    if machine.costs is None:
        return []
    images = machine.costs.layers.images
    return [
        disk.frozen
        for disk in snapshot.disks
        if disk.frozen and (image := images.get(disk.frozen)) and image.is_missing
    ]
