"""What was set otherwise than at the moment before: a part of the inspector."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QSizePolicy, QToolButton, QVBoxLayout, QWidget

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.ui.labels import PlainLabel, PlainLines, SectionTitle
from snaptree.ui.text import in_sentence, tooltip

if TYPE_CHECKING:
    from snaptree.model.settings import Comparison
    from snaptree.ui.availability import Selection
    from snaptree.ui.machine import Machine, MachineId

_LINES_SHOWN = 8


class Moments(NamedTuple):
    """Two moments of a machine: snapshots by name, or *Now* (None)."""

    machine: MachineId
    before: str | None
    after: str | None


def selected_moments(selection: Selection) -> Moments | None:
    """What a selection compares, the older one first: two rows, or one snapshot with *Now*."""
    machine, tree = selection.machine, None if selection.machine is None else selection.machine.tree
    if machine is None or tree is None or not all(name in tree for name in selection.snapshots):
        return None
    names = sorted(selection.snapshots, key=lambda name: tree[name].created)
    match names:
        case [before, after] if not selection.now:
            return Moments(machine.id, before, after)
        case [snapshot]:
            return Moments(machine.id, snapshot, None)
    return None


def moments_to_tell(selection: Selection) -> Moments | None:
    """What the inspector compares: two rows that are selected, else one with what it descends from."""
    machine = selection.machine
    if machine is None or machine.tree is None:
        return None
    if len(selection.snapshots) + selection.now > 1:
        return selected_moments(selection)
    after = selection.snapshots[0] if selection.snapshots else None
    before = machine.tree.current if after is None else machine.tree.parents.get(after)
    return None if before is None else Moments(machine.id, before, after)


class ChangedSettings(QWidget):
    """Says which settings differ between two moments. Hidden where there is nothing to compare."""

    asked = Signal(object)
    """Moments: who hears it reads what differs, and calls `answer`."""
    opened = Signal(object)
    """Moments: the user wants to see all about them."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._moments: Moments | None = None
        self._machine: Machine | None = None
        self.since = PlainLabel("", self, dim=True)
        self.changes = PlainLines(self)
        self.button = QToolButton(self)
        self.button.setText("Compare…")
        self.button.setObjectName("framed")
        self.button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.button.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.button.setToolTip(tooltip("Show all that differs, with the difference of the XML behind it"))
        self.button.clicked.connect(self._open)
        title = QHBoxLayout()
        title.addWidget(SectionTitle("Changed settings", self), 1)
        title.addWidget(self.button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(title)
        layout.addWidget(self.since)
        layout.addWidget(self.changes)
        self.hide()

    def show_selection(self, selection: Selection) -> None:
        """Compare what is selected. What is shown of the same moments stays until there is news."""
        moments, machine = moments_to_tell(selection), selection.machine
        self.setVisible(moments is not None)
        if moments == self._moments and machine is self._machine:
            return
        if moments != self._moments and moments is not None:
            self.since.set_text(f"Since {in_sentence(words.moment_named(moments.before))}: reading…")
            self.changes.show_lines([])
        self._moments, self._machine = moments, machine
        if moments is not None:
            self.asked.emit(moments)

    def answer(self, moments: Moments, result: Comparison | SnapTreeError) -> None:
        """Show what was found, unless something else is shown by now."""
        if moments != self._moments:
            return
        since = f"Since {in_sentence(words.moment_named(moments.before))}"
        if isinstance(result, SnapTreeError):
            self.since.set_text(f"{since}: not known. {result}")
            self.changes.show_lines([])
            return
        lines = words.settings(result.changes, _LINES_SHOWN)
        self.since.set_text(f"{since}:" if lines else f"{since}: none.")
        self.changes.show_lines(lines)

    def _open(self) -> None:
        if self._moments is not None:
            self.opened.emit(self._moments)
