"""The layers that each disk stands on, drawn to scale: the active one on top, the base at the bottom."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QBrush, QColor, QPainter, QPen
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from snaptree import words
from snaptree.model.costs import layer_bytes
from snaptree.model.estate import DiskSnapshot
from snaptree.model.merging import LayerTree
from snaptree.model.stacks import LayerUse, layer_use
from snaptree.plans.wording import listed, plain, quoted
from snaptree.ui.text import tooltip
from snaptree.ui.theme import Colours, colours_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from snaptree.model.estate import DomainLayers, Snapshot
    from snaptree.model.figures import Figure
    from snaptree.model.tree import SnapshotTree
    from snaptree.ui.machine import Machine

Index = QModelIndex | QPersistentModelIndex

_PADDING = 8
_GAP = 2


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a stack."""

    path: str
    allocated: Figure
    role: str
    """`active`, `base`, `layer`, or `active, base` where a disk has one layer only."""
    frozen_by: tuple[str, ...] = ()
    """External snapshots whose content is this layer and those below."""
    holds: tuple[str, ...] = ()
    """Internal snapshots inside it."""
    problem: str = ""
    is_missing: bool = False
    is_selected: bool = False
    """It holds the content of the selected snapshot."""
    use: LayerUse | None = None
    """What of it shows at the top of the stack, and who else needs it."""


class Legend:
    """What the parts of a layer's bar are."""


_LEGEND = Legend()


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of one disk, the top one first."""

    target: str
    layers: tuple[Layer, ...]
    is_live: bool
    """The machine stands on it now; otherwise only a snapshot does."""
    problem: str = ""


def stacks_of(machine: Machine, selected: str | None = None) -> tuple[Stack, ...]:
    """Work out the stacks: those of the selected snapshot where it stands on others than the machine does now."""
    if machine.costs is None or machine.tree is None:
        return ()
    layers, tree = machine.costs.layers, machine.tree
    layer_tree = LayerTree(tree, layers, machine.costs.elsewhere)
    snapshot = tree[selected] if selected is not None and selected in tree else None
    frozen_by, holds = _holders(tree)
    marked = {disk.frozen for disk in snapshot.disks if disk.how is not DiskSnapshot.NO} if snapshot else set()

    def stack(target: str, paths: tuple[str, ...], *, is_live: bool, problem: str = "") -> Stack:
        return Stack(
            target,
            tuple(
                replace(
                    _layer(layers, path, _role(number, len(paths), is_live), frozen_by, holds, path in marked),
                    use=layer_use(layer_tree, path, paths[0]),
                )
                for number, path in enumerate(paths)
            ),
            is_live,
            problem,
        )

    result = []
    for chain in layers.chains:
        own = _own_layer(snapshot, chain.target)
        if own is not None and own not in chain.layers:
            result.append(stack(chain.target, tuple(_below(layers, own)), is_live=False))
        else:
            result.append(stack(chain.target, chain.layers, is_live=True, problem=chain.problem))
    targets = {chain.target for chain in layers.chains}
    result.extend(
        stack(disk.target, tuple(_below(layers, disk.frozen)), is_live=False)
        for disk in (snapshot.disks if snapshot else ())
        if disk.target not in targets and disk.frozen is not None and disk.how is not DiskSnapshot.NO
    )
    return tuple(result)


def _own_layer(snapshot: Snapshot | None, target: str) -> str | None:
    if snapshot is None:
        return None
    return next(
        (disk.frozen for disk in snapshot.disks if disk.target == target and disk.how is not DiskSnapshot.NO), None
    )


def _holders(tree: SnapshotTree) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Image -> the external snapshots that froze it, and the internal ones inside it."""
    frozen_by: dict[str, list[str]] = {}
    holds: dict[str, list[str]] = {}
    for snapshot in tree:
        for disk in snapshot.disks:
            if disk.frozen is not None and disk.how is DiskSnapshot.EXTERNAL:
                frozen_by.setdefault(disk.frozen, []).append(snapshot.name)
            elif disk.frozen is not None and disk.how is DiskSnapshot.INTERNAL:
                holds.setdefault(disk.frozen, []).append(snapshot.name)
    return frozen_by, holds


def _below(layers: DomainLayers, path: str) -> Iterator[str]:
    """An image and what it stands on, as far as it was read; a circle ends where it closes."""
    seen: set[str] = set()
    next_path: str | None = path
    while next_path is not None and next_path not in seen:
        seen.add(next_path)
        yield next_path
        image = layers.images.get(next_path)
        next_path = None if image is None else image.backing


def _role(number: int, count: int, is_live: bool) -> str:
    roles = ["active"] if number == 0 and is_live else []
    if number == count - 1:
        roles.append("base")
    return ", ".join(roles) or "layer"


def _layer(
    layers: DomainLayers,
    path: str,
    role: str,
    frozen_by: dict[str, list[str]],
    holds: dict[str, list[str]],
    is_selected: bool,
) -> Layer:
    image = layers.images.get(path)
    return Layer(
        path=path,
        allocated=layer_bytes(layers, path),
        role=role,
        frozen_by=tuple(frozen_by.get(path, ())),
        holds=tuple(holds.get(path, ())),
        problem="" if image is None else image.problem,
        is_missing=image is not None and image.is_missing,
        is_selected=is_selected,
    )


class LayerModel(QAbstractListModel):
    """Rows of the drawing: a heading for each disk, then its layers."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._stacks: tuple[Stack, ...] = ()
        self._rows: list[Stack | Layer | Legend] = []
        self._largest = 0

    def show(self, stacks: tuple[Stack, ...]) -> None:
        """Show these stacks, if they are others than before."""
        if stacks == self._stacks:
            return
        self.beginResetModel()
        self._stacks = stacks
        self._rows = []
        for stack in stacks:
            self._rows += [stack, *stack.layers]
        if any(layer.use is not None and layer.use.visible.is_known for stack in stacks for layer in stack.layers):
            self._rows.append(_LEGEND)
        self._largest = max((layer.allocated.bytes or 0 for stack in stacks for layer in stack.layers), default=0)
        self.endResetModel()

    @property
    def largest(self) -> int:
        """Bytes of the largest layer: the full width."""
        return self._largest

    def row(self, row: int) -> Stack | Layer | Legend:
        """A heading, a layer, or the legend at the end."""
        return self._rows[row]

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008  Qt's own default
        """Headings and layers; a list has no children."""
        return 0 if parent.isValid() else len(self._rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The whole row as text, for screen readers and tooltips; the delegate paints it."""
        if not index.isValid():
            return None
        row = self._rows[index.row()]
        if isinstance(row, Legend):
            return _legend_data(role)
        if role == Qt.ItemDataRole.DisplayRole:
            return heading(row) if isinstance(row, Stack) else f"{name(row)}, {size(row)}, {label(row)}"
        if role == Qt.ItemDataRole.ToolTipRole:
            return tooltip(row.problem if isinstance(row, Stack) else _explanation(row))
        return None


_PARTS = (
    ("shows", "Data that is seen at the top of the stack: nothing above covers it."),
    ("covered", "Data that layers above hide. Merging the layers gives it back."),
    ("other", "Tables, internal snapshots, saved memory."),
)
"""The parts of a bar: what the legend calls them, and what they are."""


def _legend_data(role: int) -> Any:
    if role == Qt.ItemDataRole.DisplayRole:
        return ", ".join(name for name, _ in _PARTS)
    if role == Qt.ItemDataRole.ToolTipRole:
        return tooltip("\n".join(f"{name}: {meaning}" for name, meaning in _PARTS))
    return None


def heading(stack: Stack) -> str:
    """The line above a stack."""
    where = "" if stack.is_live else ", not in use now"
    return f"{plain(stack.target)}: {words.count(len(stack.layers), 'layer')}{where}"


def name(layer: Layer) -> str:
    """The file's name without its directory."""
    return plain(posixpath.basename(layer.path) or layer.path)


def size(layer: Layer) -> str:
    """What stands at the right of a layer."""
    return "missing" if layer.is_missing else words.figure(layer.allocated)


def label(layer: Layer) -> str:
    """What a layer is: its place, who froze it, what is inside, what is wrong."""
    parts = []
    if layer.role != "layer":
        parts.append(layer.role)
    if layer.frozen_by:
        parts.append(f"frozen by {_names(layer.frozen_by)}")
    if layer.holds:
        parts.append(f"holds {_names(layer.holds)}" if len(layer.holds) < 3 else f"holds {len(layer.holds)} snapshots")
    if layer.use is not None and layer.use.read_by:
        parts.append(f"shared with {_names(sorted(layer.use.read_by))}")
    if layer.use is not None and layer.use.branches > 1:
        parts.append(f"{layer.use.branches} branches stand on it")
    if layer.problem and not layer.is_missing:
        parts.append(plain(layer.problem))
    return "; ".join(parts) or "in no snapshot"


def _names(names: Iterable[str]) -> str:
    return listed(plain(name) for name in names)


def _explanation(layer: Layer) -> str:
    parts = [layer.path]
    if layer.problem:
        parts.append(layer.problem)
    parts.append(words.figure_in_full(layer.allocated))
    if layer.use is not None and layer.use.visible.bytes is not None:
        parts.append(f"{words.figure(layer.use.visible)} of its data shows at the top of this stack")
        parts.append(f"{words.figure(layer.use.covered)} of its data is covered by layers above")
    if layer.use is not None and layer.use.read_by:
        parts.append("shared with " + ", ".join(sorted(layer.use.read_by)))
    if layer.use is not None and layer.use.branches > 1:
        parts.append(f"{layer.use.branches} branches of this machine stand on it")
    if layer.frozen_by:
        parts.append("frozen by " + ", ".join(quoted(name) for name in layer.frozen_by))
    if layer.holds:
        parts.append("holds " + ", ".join(quoted(name) for name in layer.holds))
    return "\n".join(parts)


class _LayerDelegate(QStyledItemDelegate):
    """Paints layers as boxes, filled as far as they are large compared with the largest."""

    def __init__(self, model: LayerModel, view: QWidget) -> None:
        super().__init__(view)
        self._model = model

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        line = option.fontMetrics.height()
        is_layer = isinstance(self._model.row(index.row()), Layer)
        return QSize(40, 2 * line + 6 + _GAP if is_layer else line + 10)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        colours = colours_of(option.palette)
        row = self._model.row(index.row())
        painter.save()
        if isinstance(row, Stack):
            painter.setPen(colours.error if row.problem else colours.text)
            text = heading(row) + (f" ({plain(row.problem)})" if row.problem else "")
            _draw(painter, option.rect, text, Qt.AlignmentFlag.AlignLeft)
        elif isinstance(row, Legend):
            _paint_legend(painter, option.rect, colours)
        else:
            self._paint_layer(painter, option.rect.adjusted(0, 0, 0, -_GAP), row, colours)
        if option.state & QStyle.StateFlag.State_HasFocus:
            painter.fillRect(
                QRect(option.rect.left(), option.rect.top(), 3, option.rect.height() - _GAP), colours.accent
            )
        painter.restore()

    def _paint_layer(self, painter: QPainter, rect: QRect, layer: Layer, colours: Colours) -> None:
        box = rect.adjusted(0, 0, -1, -1)
        painter.fillRect(box, colours.base)
        if layer.is_missing:
            painter.fillRect(box, colours.error_ground)
        elif layer.allocated.bytes is None:
            painter.fillRect(box, QBrush(colours.faint, Qt.BrushStyle.BDiagPattern))
        elif layer.allocated.bytes and self._model.largest:
            width = max(2, box.width() * layer.allocated.bytes // self._model.largest)
            _paint_bar(painter, QRect(box.left(), box.top(), width, box.height()), layer, colours)
        if layer.use is not None and layer.use.is_shared:
            painter.setPen(QPen(colours.dim, 1, Qt.PenStyle.DotLine))
            painter.drawRect(box.adjusted(2, 2, -2, -2))
        painter.setPen(QPen(colours.error if layer.is_missing else colours.border, 1))
        painter.drawRect(box)
        if layer.is_selected:
            painter.fillRect(QRect(box.left(), box.top(), 3, box.height() + 1), colours.accent)
        inner = box.adjusted(_PADDING, 2, -_PADDING, -2)
        line = painter.fontMetrics().height()
        upper = QRect(inner.left(), inner.top(), inner.width(), line)
        lower = QRect(inner.left(), inner.top() + line, inner.width(), line)
        right = size(layer)
        room = painter.fontMetrics().horizontalAdvance(right) + 10
        painter.setPen(colours.error if layer.is_missing else colours.text)
        _draw(painter, upper, right, Qt.AlignmentFlag.AlignRight)
        painter.setPen(colours.text)
        _draw(painter, upper.adjusted(0, 0, -room, 0), name(layer), Qt.AlignmentFlag.AlignLeft)
        painter.setPen(colours.dim)
        _draw(painter, lower, label(layer), Qt.AlignmentFlag.AlignLeft)


def _paint_bar(painter: QPainter, bar: QRect, layer: Layer, colours: Colours) -> None:
    """Fill a bar: as one where nobody knows what of it shows, else in parts."""
    fill = _fill(layer, colours)
    visible = None if layer.use is None else layer.use.visible.bytes
    if layer.use is None or visible is None or not layer.allocated.bytes:
        painter.fillRect(bar, fill)
        return
    covered = layer.use.covered.bytes or 0
    whole = max(layer.allocated.bytes, visible + covered)  # a preallocated image has more data than it takes
    shows, hides = bar.width() * visible // whole, bar.width() * covered // whole
    if visible + covered > layer.allocated.bytes * 0.9:  # the rest are a few tables: not worth a part
        hides = bar.width() - shows if covered else 0
        shows = bar.width() - hides
    _paint_parts(painter, bar, (shows, hides), fill, colours)


def _paint_parts(painter: QPainter, bar: QRect, widths: tuple[int, int], fill: QColor, colours: Colours) -> None:
    """Paint what shows, what is covered, and the rest of a bar."""
    shows, hides = widths
    painter.fillRect(QRect(bar.left(), bar.top(), shows, bar.height()), fill)
    covered = QRect(bar.left() + shows, bar.top(), hides, bar.height())
    painter.fillRect(covered, QBrush(colours.faint, Qt.BrushStyle.BDiagPattern))
    other = QRect(covered.right() + 1, bar.top(), bar.width() - shows - hides, bar.height())
    pale = QColor(fill)
    pale.setAlphaF(0.4)
    painter.fillRect(other, pale)


def _paint_legend(painter: QPainter, rect: QRect, colours: Colours) -> None:
    """A swatch and a word for each part, as far as there is room."""
    metrics = painter.fontMetrics()
    side = metrics.ascent()
    left, top = rect.left(), rect.top() + (rect.height() - side) // 2
    for number, (word, _) in enumerate(_PARTS):
        width = side + 5 + metrics.horizontalAdvance(word) + 14
        if left + width > rect.right():
            return
        swatch = QRect(left, top, side, side)
        parts = tuple(side if part == number else 0 for part in range(2))
        _paint_parts(painter, swatch, (parts[0], parts[1]), colours.layer, colours)
        painter.setPen(QPen(colours.border, 1))
        painter.drawRect(swatch)
        painter.setPen(colours.dim)
        _draw(
            painter,
            QRect(left + side + 5, rect.top(), width - side - 5, rect.height()),
            word,
            Qt.AlignmentFlag.AlignLeft,
        )
        left += width


def _fill(layer: Layer, colours: Colours) -> QColor:
    return colours.selected if layer.is_selected or layer.role.startswith("active") else colours.layer


def _draw(painter: QPainter, rect: QRect, text: str, side: Qt.AlignmentFlag) -> None:
    shown = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, rect.width())
    painter.drawText(rect, side | Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine, shown)


class LayerStack(QListView):
    """The stacks of all disks, as high as they are: the panel around scrolls."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = LayerModel(self)
        self.setModel(self._model)
        self.setItemDelegate(_LayerDelegate(self._model, self))
        self.setAccessibleName("Layers of the disks")
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setResizeMode(QListView.ResizeMode.Adjust)
        self.viewport().setAutoFillBackground(False)

    def show_stacks(self, stacks: tuple[Stack, ...]) -> None:
        """Draw these."""
        self._model.show(stacks)
        self.updateGeometry()

    def sizeHint(self) -> QSize:
        """All rows."""
        return QSize(200, sum(self.sizeHintForRow(row) for row in range(self._model.rowCount())) + 2)

    def minimumSizeHint(self) -> QSize:
        """All rows, so that the panel around scrolls instead."""
        return QSize(100, self.sizeHint().height())
