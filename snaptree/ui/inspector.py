"""The right side of the window: all that is known about the selection, and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.costs import SelectionCost
from snaptree.model.figures import NOTHING, Figure, total, unknown
from snaptree.model.troubles import Severity, Trouble
from snaptree.plans.plan import Action
from snaptree.plans.wording import listed, plain, version
from snaptree.ui.changed_settings import ChangedSettings
from snaptree.ui.labels import ElidedLabel, PlainLabel, SectionTitle
from snaptree.ui.layer_stack import LayerStack, stacks_of
from snaptree.ui.plan_view import Notice

if TYPE_CHECKING:
    from snaptree.model.estate import Snapshot
    from snaptree.ui.actions import Actions
    from snaptree.ui.availability import Selection
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine

MEANT_WIDTH = 320
_MARGIN = 12
_TROUBLES_SHOWN = 3


class Fact(NamedTuple):
    """One line of what is known."""

    title: str
    value: str
    explanation: str = ""


class Facts(QWidget):
    """Titles and values in two columns."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._facts: list[Fact] = []
        self._labels: list[tuple[PlainLabel, ElidedLabel]] = []
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(5)
        self._grid.setColumnStretch(1, 1)

    @property
    def facts(self) -> list[Fact]:
        """What is shown."""
        return self._facts

    def show_facts(self, facts: list[Fact]) -> None:
        """Show these; lines are used again, so that nothing flickers."""
        self._facts = facts
        while len(self._labels) < len(facts):
            title, value = PlainLabel("", self, dim=True), ElidedLabel("", self)
            title.setWordWrap(False)
            row = len(self._labels)
            self._grid.addWidget(title, row, 0)
            self._grid.addWidget(value, row, 1)
            self._labels.append((title, value))
        for number, (title, value) in enumerate(self._labels):
            is_used = number < len(facts)
            title.setVisible(is_used)
            value.setVisible(is_used)
            if is_used:
                title.setText(facts[number].title)
                value.set_text(facts[number].value, facts[number].explanation)


class Inspector(QScrollArea):
    """Title, actions with the reasons why some are off, note, facts, troubles and layers of the selection."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._actions = actions
        self.setAccessibleName("Inspector")
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(220)
        page = QWidget(self)
        self.title = ElidedLabel("", page)
        self.title.setObjectName("heading")
        self.subtitle = PlainLabel("", page, dim=True)
        self.reasons = PlainLabel("", page, dim=True)
        self.note = PlainLabel("", page)
        self.note.setObjectName("note")
        self.facts = Facts(page)
        self._note_title = SectionTitle("Note", page)
        self._reasons_title = SectionTitle("Why not", page)
        self._layers_title = SectionTitle("Layers", page)
        self.layers = LayerStack(page)
        self.changed = ChangedSettings(page)
        self._troubles_page = QVBoxLayout()
        self._troubles_page.setSpacing(4)
        self._troubles: tuple[Trouble, ...] = ()
        buttons = QHBoxLayout()
        buttons.setSpacing(6)
        for action in (actions.take, actions.revert, actions.delete):
            button = QToolButton(page)
            button.setDefaultAction(action)
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
            button.setObjectName("framed")
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            buttons.addWidget(button)
        layout = QVBoxLayout(page)
        layout.setContentsMargins(_MARGIN, _MARGIN, _MARGIN, _MARGIN)
        layout.setSpacing(8)
        layout.addWidget(self.title)
        layout.addWidget(self.subtitle)
        layout.addLayout(buttons)
        layout.addLayout(self._troubles_page)
        layout.addWidget(self._note_title)
        layout.addWidget(self.note)
        layout.addWidget(SectionTitle("Facts", page))
        layout.addWidget(self.facts)
        layout.addWidget(self._reasons_title)
        layout.addWidget(self.reasons)
        layout.addWidget(self.changed)
        layout.addWidget(self._layers_title)
        layout.addWidget(self.layers)
        layout.addStretch(1)
        self._page = page
        self.setWidget(page)

    def show_host(self, host: HostEntry | None, title: str, total_disk: Figure) -> None:
        """Show a host, or nothing."""
        self._page.setVisible(host is not None)
        if host is None:
            return
        self.title.set_text(title)
        self.subtitle.set_text(host.uri)
        self._show_note("")
        self._show_reasons()
        self._show_troubles(())
        facts = [Fact("Connection", str(host.status.phase))]
        if host.status.host is not None:
            known = host.status.host
            facts += [
                Fact("Host name", plain(known.hostname)),
                Fact("libvirt", version(known.libvirt_version)),
                Fact(known.driver, version(known.hypervisor_version)),
                Fact("Machines", f"{len(host.machines()):,}"),
                Fact("On disk", words.figure(total_disk), words.figure_in_full(total_disk)),
                Fact(
                    "External snapshots",
                    "libvirt reverts to them" if known.external_snapshots else "SnapTree reverts to them",
                    "" if known.external_snapshots else "By its own steps: libvirt itself can since 9.9.",
                ),
            ]
        self.facts.show_facts(facts)
        self.changed.hide()
        self._show_layers(None)

    def show_selection(self, selection: Selection) -> None:
        """Show one snapshot, several, or the machine itself."""
        machine = selection.machine
        self._page.setVisible(machine is not None)
        if machine is None:
            return
        tree, names = machine.tree, selection.snapshots
        self._show_reasons()
        self.changed.show_selection(selection)
        if tree is not None and len(names) == 1 and names[0] in tree:
            self._show_snapshot(machine, tree[names[0]])
        elif len(names) > 1:
            self._show_several(machine, names)
        else:
            self._show_machine(machine)

    def _show_snapshot(self, machine: Machine, snapshot: Snapshot) -> None:
        self.title.set_text(snapshot.name)
        self.subtitle.set_text(f"{words.kind(snapshot.kind)}, {words.consistency(snapshot.consistency)}")
        self._show_note(snapshot.description)
        self._show_troubles(())
        consistency = snapshot.consistency
        facts = [
            Fact("Taken", words.moment(snapshot.created)),
            Fact("Machine was", words.state(snapshot.state)),
            Fact("Consistency", words.consistency(consistency), words.consistency_in_full(consistency)),
            Fact("Memory", words.memory(snapshot.memory)),
        ]
        cost = None if machine.costs is None else machine.costs.costs.snapshots.get(snapshot.name)
        if cost is None:
            facts.append(Fact("Costs", words.UNKNOWN, "Not read yet."))
        else:
            facts += [_bytes("Written", cost.written), _bytes("Frees", cost.frees)]
            if cost.copies != NOTHING:
                facts.append(_bytes("Copies", cost.copies))
            if cost.memory != NOTHING:
                facts.append(_bytes("Saved memory", cost.memory))
        if machine.tree is not None:
            parent = machine.tree.parents[snapshot.name]
            children = machine.tree.children(snapshot.name)
            facts.append(Fact("Parent", words.NONE if parent is None else plain(parent)))
            facts.append(Fact("Children", listed(plain(child) for child in children) or words.NONE))
        if snapshot.annotations.taken_by:
            facts.append(Fact("Taken by", plain(snapshot.annotations.taken_by)))
        self.facts.show_facts(facts)
        self._show_layers(machine, snapshot.name)

    def _show_several(self, machine: Machine, names: tuple[str, ...]) -> None:
        self.title.set_text(words.count(len(names), "snapshot"))
        self.subtitle.set_text(f"of {plain(machine.domain.name)}")
        self._show_note("")
        self._show_troubles(())
        sums = selection_sums(machine, names)
        self.facts.show_facts([_bytes(title, figure) for title, figure in sums])
        self._show_layers(machine)

    def _show_machine(self, machine: Machine) -> None:
        self.title.set_text(machine.domain.name)
        self.subtitle.set_text(words.state(machine.domain.state))
        self._show_note("")
        self._show_troubles(machine.troubles)
        count = machine.snapshot_count
        facts = [
            Fact("Snapshots", words.UNKNOWN if count is None else f"{count:,}"),
            _bytes("On disk", machine.disk),
            _bytes("Saved memory", machine.memory),
        ]
        if machine.costs is not None:
            facts.append(_bytes("Written since", machine.costs.costs.now))
        if machine.tree is not None and machine.tree.current is not None:
            facts.append(Fact("Descends from", plain(machine.tree.current)))
        if machine.depth:
            facts.append(Fact("Depth", f"{machine.depth:,} in one line"))
        if machine.oldest is not None:
            facts.append(Fact("Oldest", words.moment(machine.oldest)))
        if not machine.domain.is_persistent:
            facts.append(Fact("Definition", "transient", "It is gone from libvirt when it is switched off."))
        if machine.domain.has_managed_save:
            facts.append(Fact("Saved state", "managed save", "libvirt continues it from there at the next start."))
        self.facts.show_facts(facts)
        self._show_layers(machine)

    def _show_note(self, note: str) -> None:
        self.note.set_text(note.strip())
        for widget in (self.note, self._note_title):
            widget.setVisible(bool(note.strip()))

    def _show_reasons(self) -> None:
        """Say why actions are off, those with the same reason together."""
        by_reason: dict[str, list[str]] = {}
        for kind in (Action.TAKE, Action.REVERT, Action.DELETE):
            finding = self._actions.reasons.get(kind)
            if finding is not None and finding.rule not in ("no-machine", "no-snapshot", "now"):
                by_reason.setdefault(f"{finding.reason} {finding.remedy}".strip(), []).append(kind.value)
        self.reasons.set_text(
            "\n".join(f"{listed(kinds).capitalize()}: {reason}" for reason, kinds in by_reason.items())
        )
        for widget in (self.reasons, self._reasons_title):
            widget.setVisible(bool(by_reason))

    def _show_troubles(self, troubles: tuple[Trouble, ...]) -> None:
        if troubles == self._troubles:
            return
        self._troubles = troubles
        while (item := self._troubles_page.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        for trouble in troubles[:_TROUBLES_SHOWN]:
            sign = "error" if trouble.severity is Severity.ERROR else "warning"
            self._troubles_page.addWidget(Notice(sign, trouble.text, "", self._page))
        if len(troubles) > _TROUBLES_SHOWN:
            more = PlainLabel(f"and {len(troubles) - _TROUBLES_SHOWN} more", self._page, dim=True)
            self._troubles_page.addWidget(more)

    def _show_layers(self, machine: Machine | None, selected: str | None = None) -> None:
        stacks = () if machine is None else stacks_of(machine, selected)
        self.layers.show_stacks(stacks)
        for widget in (self.layers, self._layers_title):
            widget.setVisible(bool(stacks))


def selection_sums(machine: Machine, names: tuple[str, ...]) -> list[tuple[str, Figure]]:
    """Figures of a selection. What several free together is not the sum of what each one does."""
    not_read = unknown("not read yet")
    if machine.costs is None or machine.tree is None or not all(name in machine.tree for name in names):
        selection = SelectionCost(not_read, not_read, not_read)
    else:
        selection = machine.costs.selection(machine.tree, names)
    every = {} if machine.costs is None else machine.costs.costs.snapshots
    costs = [every[name] for name in names if name in every]
    missing = [not_read] * (len(names) - len(costs))
    return [
        ("Frees", selection.frees),
        ("Copies", selection.copies),
        ("Written", total([*(cost.written for cost in costs), *missing])),
        ("Memory", total([*(cost.memory for cost in costs), *missing])),
    ]


def _bytes(title: str, figure: Figure) -> Fact:
    return Fact(title, words.figure(figure), words.figure_in_full(figure))
