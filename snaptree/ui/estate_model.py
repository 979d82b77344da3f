"""The list of hosts and their machines: searched, sorted, and kept in step with what is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from math import ceil, inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from natsort import natsort_keygen
from PySide6.QtCore import QAbstractItemModel, QModelIndex, QObject, QPersistentModelIndex, Qt, QTimer

from snaptree import words
from snaptree.model.costs import host_disk
from snaptree.model.figures import Figure, unknown
from snaptree.plans.wording import plain
from snaptree.ui.findings import told
from snaptree.ui.text import tooltip

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptree.ui.estate import Estate, HostEntry
    from snaptree.ui.machine import Machine, MachineId

_GATHER_MS = 80
"""Changes within this time are shown together: at the start, every machine reports its tree and its costs."""
_ORDER_SECONDS = 2.0
"""Machines change places no more often than this, unless somebody wants them in another order."""


natural = natsort_keygen()
"""A key that sorts `web-2` before `web-10`."""


Index = QModelIndex | QPersistentModelIndex


class Column(IntEnum):
    """The columns of the list."""

    NAME = 0
    SNAPSHOTS = 1
    MEASURE = 2
    """What the list is sorted by, or the disk use."""


class Order(StrEnum):
    """What machines are sorted by within their host; the values stand in the settings."""

    NAME = "name"
    COST = "cost"
    AGE = "age"
    DEPTH = "depth"
    COUNT = "count"
    FINDINGS = "findings"


@dataclass(frozen=True, slots=True)
class HostRow:
    """A host with those of its machines that the search lets through, in order."""

    entry: HostEntry
    machines: tuple[Machine, ...]
    total: Figure
    """Bytes of all its machines' images, each image counted once."""

    @property
    def ids(self) -> tuple[str, tuple[MachineId, ...]]:
        """What makes two arrangements the same."""
        return self.entry.uri, tuple(machine.id for machine in self.machines)


def arrange(estate: Estate, search: str = "", order: Order = Order.NAME) -> tuple[HostRow, ...]:
    """Work out the rows. Hosts stay in their order; where a sorting key is not known, machines come last."""
    return tuple(_host_row(entry, search, order) for entry in estate)


def matches(machine: Machine, search: str) -> bool:
    """Whether a search finds a machine: by its name, or by the name or note of one of its snapshots."""
    wanted = search.casefold()
    if wanted in machine.domain.name.casefold():
        return True
    return any(found(snapshot.name, snapshot.description, search) for snapshot in machine.tree or ())


def found(name: str, note: str, search: str) -> bool:
    """Whether a search finds a snapshot."""
    return bool(search) and (search.casefold() in name.casefold() or search.casefold() in note.casefold())


def _host_row(entry: HostEntry, search: str, order: Order) -> HostRow:
    every = entry.machines()
    shown = [machine for machine in every if not search or matches(machine, search)]
    shown.sort(key=lambda machine: natural(machine.domain.name))
    if order is not Order.NAME:
        # Two stable passes: the largest first, and what is not known last.
        measure = _MEASURES[order]
        shown.sort(key=lambda machine: (measure(machine) is None, -(measure(machine) or 0)))
    costs = [machine.costs.costs for machine in every if machine.costs is not None]
    total = host_disk(costs)
    if len(costs) < len(every):
        total = unknown("not every machine has been read yet")
    return HostRow(entry, tuple(shown), total)


def _as_they_were(rows: tuple[HostRow, ...], before: tuple[HostRow, ...]) -> tuple[tuple[HostRow, ...], bool]:
    """The rows in the order of before, if they are the same machines; and whether that is another order."""
    if [row.entry.uri for row in rows] != [row.entry.uri for row in before]:
        return rows, False
    kept = []
    for new, old in zip(rows, before, strict=True):
        machines = {machine.id: machine for machine in new.machines}
        is_same = new.ids != old.ids and machines.keys() == set(old.ids[1])
        kept.append(replace(new, machines=tuple(machines[each] for each in old.ids[1])) if is_same else new)
    return tuple(kept), any(row is not new for row, new in zip(kept, rows, strict=True))


_MEASURES: dict[Order, Callable[[Machine], float | None]] = {
    Order.COST: lambda machine: machine.disk.bytes,
    Order.AGE: lambda machine: None if machine.oldest is None else time() - machine.oldest,
    Order.DEPTH: lambda machine: machine.depth,
    Order.COUNT: lambda machine: machine.snapshot_count,
    Order.FINDINGS: lambda machine: None if machine.worst is None else machine.worst.severity,
}


class EstateModel(QAbstractItemModel):
    """Two levels: hosts, and machines below them. A machine's index carries its host's row plus one as its id."""

    def __init__(self, estate: Estate, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._estate = estate
        self._search = ""
        self._order = Order.NAME
        self._rows: tuple[HostRow, ...] = ()
        self._largest = 0
        self._gather = QTimer(self, singleShot=True, interval=_GATHER_MS)
        self._gather.timeout.connect(self._arrange)
        self._ordered = -inf
        """When rows were put into their order, as monotonic() gives it."""
        self._order_again = QTimer(self, singleShot=True)
        self._order_again.timeout.connect(self._arrange)
        estate.hosts_changed.connect(self._arrange)
        estate.host_changed.connect(self._something_changed)
        estate.machines_changed.connect(self._machines_changed)
        estate.machine_changed.connect(self._something_changed)
        self._arrange()

    @property
    def order(self) -> Order:
        """What machines are sorted by."""
        return self._order

    @order.setter
    def order(self, order: Order) -> None:
        self._order = order
        self.headerDataChanged.emit(Qt.Orientation.Horizontal, Column.MEASURE, Column.MEASURE)
        self._arrange_at_once()

    @property
    def search(self) -> str:
        """What the names of the machines shown, or of their snapshots, contain."""
        return self._search

    @search.setter
    def search(self, search: str) -> None:
        self._search = search.strip()
        self._arrange_at_once()

    @property
    def rows(self) -> tuple[HostRow, ...]:
        """What is shown."""
        return self._rows

    @property
    def largest(self) -> int:
        """Bytes of the most costly machine: the full length of a cost bar."""
        return self._largest

    def host(self, index: Index) -> HostEntry | None:
        """The host at an index, or of the machine there."""
        if not index.isValid():
            return None
        return self._rows[index.row() if index.internalId() == 0 else index.internalId() - 1].entry

    def machine(self, index: Index) -> Machine | None:
        """The machine at an index."""
        if not index.isValid() or index.internalId() == 0:
            return None
        return self._rows[index.internalId() - 1].machines[index.row()]

    def where(self, index: Index) -> MachineId | str | None:
        """What is at an index: a machine, or a host by its address."""
        machine, host = self.machine(index), self.host(index)
        return machine.id if machine is not None else host.uri if host is not None else None

    def index_of(self, where: MachineId | str | None) -> QModelIndex:
        """Where a machine is, or a host by its address; invalid if it is not shown."""
        for host_number, host in enumerate(self._rows):
            if where == host.entry.uri:
                return self.createIndex(host_number, 0, 0)
            for number, machine in enumerate(host.machines):
                if machine.id == where:
                    return self.createIndex(number, 0, host_number + 1)
        return QModelIndex()

    def index(self, row: int, column: int, parent: Index = QModelIndex()) -> QModelIndex:  # noqa: B008  Qt's own
        """Make an index: id 0 for hosts, the host's row plus one for machines."""
        if 0 <= column < len(Column) and 0 <= row < self.rowCount(parent):
            return self.createIndex(row, column, parent.row() + 1 if parent.isValid() else 0)
        return QModelIndex()

    def sibling(self, row: int, column: int, index: Index) -> QModelIndex:
        """Make the index of another cell with the same parent; Qt's own way there calls Python five times."""
        if not index.isValid() or not 0 <= column < len(Column):
            return QModelIndex()
        inside = index.internalId()
        count = len(self._rows[inside - 1].machines) if inside else len(self._rows)
        return self.createIndex(row, column, inside) if 0 <= row < count else QModelIndex()

    def parent(self, index: Index | None = None) -> Any:
        """The host of a machine; without an index, the QObject's parent."""
        if index is None:
            return super().parent()
        if not index.isValid() or index.internalId() == 0:
            return QModelIndex()
        return self.createIndex(index.internalId() - 1, 0, 0)

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's own default
        """Hosts, or the machines of one."""
        if not parent.isValid():
            return len(self._rows)
        if parent.internalId() != 0 or parent.column() > 0:
            return 0
        return len(self._rows[parent.row()].machines)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: ARG002, B008  the same everywhere
        """Name, snapshots, measure."""
        return len(Column)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The titles; the last one names what the list is sorted by."""
        if orientation is not Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.TextAlignmentRole and section != Column.NAME:
            return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        measure = {Order.AGE: "Oldest", Order.DEPTH: "Layers"}.get(self._order, "On disk")
        return ("Machine", "Snaps", measure)[section]

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Texts for the view, for tooltips and for screen readers; the delegate paints the rest."""
        machine = self.machine(index)
        if machine is not None:
            if role == Qt.ItemDataRole.DisplayRole:
                return self.cell_text(machine, Column(index.column()))
            if role == Qt.ItemDataRole.ToolTipRole:
                return tooltip(_machine_tooltip(machine))
            if role == Qt.ItemDataRole.AccessibleTextRole and index.column() == Column.NAME:
                return _machine_for_ears(machine)
            return None
        host = self.host(index)
        if host is None:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            match index.column():
                case Column.NAME:
                    return host_title(host)
                case Column.MEASURE:
                    total = self._rows[index.row()].total
                    return words.figure(total) if total.is_known and host.machines() else ""
            return ""
        if role == Qt.ItemDataRole.AccessibleTextRole and index.column() == Column.NAME:
            return ", ".join([host_title(host), *(finding.text for finding in host.findings[:1])])
        if role == Qt.ItemDataRole.ToolTipRole:
            return tooltip(_host_tooltip(host, self._rows[index.row()].total))
        return None

    def cell_text(self, machine: Machine, column: Column) -> str:
        """The text of a machine's cell."""
        match column:
            case Column.NAME:
                return plain(machine.domain.name)
            case Column.SNAPSHOTS:
                return words.UNKNOWN if machine.snapshot_count is None else f"{machine.snapshot_count:,}"
        if self._order is Order.AGE:
            if machine.tree is None:
                return words.UNKNOWN
            return words.NONE if machine.oldest is None else words.age(time() - machine.oldest)
        if self._order is Order.DEPTH:
            return words.UNKNOWN if machine.depth is None else f"{machine.depth:,}"
        return words.figure(machine.disk)

    def _something_changed(self, _what: object) -> None:
        if not self._gather.isActive():
            self._gather.start()

    def _machines_changed(self, uri: str) -> None:
        """A host's first list is shown at once; later changes are gathered."""
        known = next((row for row in self._rows if row.entry.uri == uri), None)
        if known is None or not known.machines:
            self._arrange()
        else:
            self._something_changed(uri)

    def _arrange_at_once(self) -> None:
        """As somebody wants them now."""
        self._ordered = -inf
        self._arrange()

    def _arrange(self) -> None:
        """Show what is known now: as new rows if they are others, as new data if they are the same."""
        self._gather.stop()
        rows = arrange(self._estate, self._search, self._order)
        if (wait := self._ordered + _ORDER_SECONDS - monotonic()) > 0:
            # Where they are sorted by what is still being measured, rows must not dance below the mouse.
            rows, is_other_order = _as_they_were(rows, self._rows)
            if is_other_order:
                self._order_again.start(ceil(wait * 1000))
        else:
            self._ordered = monotonic()
        largest = max((machine.disk.bytes or 0 for host in rows for machine in host.machines), default=0)
        if [row.ids for row in rows] != [row.ids for row in self._rows]:
            self.beginResetModel()
            self._rows, self._largest = rows, largest
            self.endResetModel()
            return
        before, all_bars = self._rows, largest != self._largest
        self._rows, self._largest = rows, largest
        for number, (old, new) in enumerate(zip(before, rows, strict=True)):
            host_index = self.createIndex(number, 0, 0)
            self.dataChanged.emit(host_index, host_index.siblingAtColumn(Column.MEASURE))
            changed = [
                place
                for place, (was, now) in enumerate(zip(old.machines, new.machines, strict=True))
                if all_bars or was is not now
            ]
            if changed:
                first = self.createIndex(changed[0], 0, number + 1)
                last = self.createIndex(changed[-1], Column.MEASURE, number + 1)
                self.dataChanged.emit(first, last)


def host_title(entry: HostEntry) -> str:
    """What to call a host in a list: its label, or its address without the decoration."""
    if entry.label:
        return entry.label
    scheme, separator, rest = entry.uri.partition("://")
    if not separator:
        return plain(entry.uri)
    name, _, path = rest.partition("?")[0].partition("/")
    if name:
        return plain(f"{name.rpartition('@')[2]} ({path})" if path not in ("", "system") else name.rpartition("@")[2])
    hostname = entry.status.host.hostname if entry.status.host is not None else "this computer"
    driver = scheme.partition("+")[0]
    return plain(f"{hostname} ({path})" if driver == "qemu" else f"{hostname} ({driver} {path})")


def _host_tooltip(entry: HostEntry, total: Figure) -> str:
    parts = [entry.uri, f"{entry.status.phase}"]
    if entry.status.error is not None:
        parts.append(str(entry.status.error))
    if entry.status.host is not None and entry.status.host.read_only:
        parts.append("read-only")
    if entry.machines():
        parts += [
            words.count(len(entry.machines()), "virtual machine"),
            f"All images, each counted once: {words.figure_in_full(total)}",
        ]
    return "\n".join([*parts, *told(entry.findings)])


def _machine_tooltip(machine: Machine) -> str:
    parts = [machine.domain.name, words.state(machine.domain.state)]
    if machine.looks_at is not None:
        looks_at = words.looks_at(machine.looks_at)
        parts.append(f"{looks_at[0].upper()}{looks_at[1:]}")
    if machine.snapshot_count is not None:
        parts.append(words.count(machine.snapshot_count, "snapshot"))
    disk = machine.disk
    in_full = disk.how if disk.bytes is None else f"{disk.bytes:,} bytes"
    parts.append(f"On disk: {words.figure(disk)} ({in_full})")
    if machine.tree is not None:
        parts.append(f"Saved memory: {words.figure(machine.memory)}")
        if machine.oldest is not None:
            parts.append(f"Oldest snapshot: {words.moment(machine.oldest)}")
    return "\n".join([*parts, *told(machine.findings)])


def _machine_for_ears(machine: Machine) -> str:
    parts = [plain(machine.domain.name), words.state(machine.domain.state)]
    if machine.looks_at is not None:
        parts.append(words.looks_at(machine.looks_at))
    if machine.worst is not None:
        parts.append(machine.worst.text)
    return ", ".join(parts)
