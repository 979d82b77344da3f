"""The right side of the window: all that is known about the selection, and what can be done with it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from PySide6.QtCore import Qt, Signal
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
from snaptree.model.estate import MemorySnapshot
from snaptree.model.figures import NOTHING, Figure, total, unknown
from snaptree.model.saved_memory import UNCOMPRESSED, SavedMemory, saved_memory
from snaptree.plans.plan import Action
from snaptree.plans.wording import listed, machines_named, plain, quoted, version
from snaptree.ui.availability import Selection, is_of_the_snapshot
from snaptree.ui.changed_settings import ChangedSettings
from snaptree.ui.findings import Findings
from snaptree.ui.labels import ElidedLabel, PlainLabel, SectionTitle
from snaptree.ui.layer_stack import LayerStack, stacks_of
from snaptree.ui.note_field import NoteField
from snaptree.ui.text import in_sentence, lines
from snaptree.ui.thumbnails import Picture

if TYPE_CHECKING:
    from PySide6.QtGui import QAction

    from snaptree.model.estate import Snapshot
    from snaptree.model.tree import SnapshotTree
    from snaptree.ui.actions import Actions
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine, MachineId
    from snaptree.ui.thumbnails import ThumbnailLibrary

MEANT_WIDTH = 320
_MARGIN = 12
_DEPTH = "Of the deepest disk, its active layer included."
_NO_REVERT: Final = "There is none: it can't be reverted to, for the reason that stands below."
_GO_WITHOUT_SAYING = ("no-machine", "no-snapshot", "now", "no-memory", "under-way")
"""Rules whose reason can be seen."""


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
    """Title, actions with the reasons why some are off, findings, note, facts and layers of the selection."""

    cure_wanted = Signal(object)
    """The plan of this Cure is to be shown."""

    def __init__(
        self, actions: Actions, parent: QWidget | None = None, thumbnails: ThumbnailLibrary | None = None
    ) -> None:
        super().__init__(parent)
        self._actions = actions
        self._thumbnails = thumbnails
        if thumbnails is not None:
            thumbnails.arrived.connect(self._picture_arrived)
        self._selection = Selection()
        self.setAccessibleName("Inspector")
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(220)
        page = QWidget(self)
        self.title = ElidedLabel("", page)
        self.title.setObjectName("heading")
        self.subtitle = PlainLabel("", page, dim=True)
        self.meaning = PlainLabel("", page, dim=True)
        """What a revert to the snapshot gives."""
        self.reasons = PlainLabel("", page, dim=True)
        self.note = NoteField(page)
        self.facts = Facts(page)
        self._note_title = SectionTitle("Note", page)
        self._meaning_title = SectionTitle("After a Revert", page)
        self._reasons_title = SectionTitle("Why not", page)
        self._layers_title = SectionTitle("Layers", page)
        self.layers = LayerStack(page)
        self.changed = ChangedSettings(page)
        self.findings = Findings(page)
        self.findings.cure_wanted.connect(self.cure_wanted)
        buttons = QHBoxLayout()
        buttons.setSpacing(6)
        first = [_button(action, page) for action in (actions.take, actions.revert, actions.delete)]
        for button in first:
            buttons.addWidget(button)
        self.drop_memory = _button(actions.drop_memory, page)
        self.picture = Picture(page)
        self.look, self.unlook = _button(actions.look, page), _button(actions.unlook, page)
        layout = QVBoxLayout(page)
        layout.setContentsMargins(_MARGIN, _MARGIN, _MARGIN, _MARGIN)
        layout.setSpacing(8)
        layout.addWidget(self.title)
        layout.addWidget(self.subtitle)
        layout.addLayout(buttons)
        layout.addWidget(self.look)
        layout.addWidget(self.unlook)
        layout.addWidget(self.drop_memory)
        layout.addWidget(self.picture)
        layout.addWidget(self.findings)
        layout.addWidget(self._note_title)
        layout.addWidget(self.note)
        layout.addWidget(self._meaning_title)
        layout.addWidget(self.meaning)
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
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # what is in it has the focus, and shows that
        below = (self.look, self.unlook, self.drop_memory, self.note, self.changed.button, self.layers)
        for before, after in pairwise((*first, *below)):
            QWidget.setTabOrder(before, after)

    def show_host(self, host: HostEntry | None, title: str, total_disk: Figure) -> None:
        """Show a host, or nothing."""
        self._page.setVisible(host is not None)
        if host is None:
            return
        self.title.set_text(title)
        self.subtitle.set_text(host.uri)
        for button in (self.drop_memory, self.look, self.unlook):
            button.hide()
        self.picture.show_image(None)
        self._show_note(None)
        self._show_reasons()
        self.findings.show_findings(host.findings)
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
        before = self._selection
        if before.machine is None or (before.machine.id, before.snapshots) != (machine.id, names):
            self.verticalScrollBar().setValue(0)  # what it is about stands at the top
        self.drop_memory.setVisible(_holds_memory(tree, names))
        self._selection = selection
        self._show_picture()
        self.changed.show_selection(selection)
        self.look.setVisible(len(names) == 1)
        self.unlook.setVisible(not names and machine.looks_at is not None)
        self._show_reasons()
        if tree is not None and len(names) == 1 and names[0] in tree:
            self._show_snapshot(machine, tree[names[0]])
        elif len(names) > 1:
            self._show_several(machine, names)
        else:
            self._show_machine(machine)

    def _show_picture(self) -> None:
        """Show the screen of the one snapshot that is selected, if there is a picture of it."""
        machine, names = self._selection.machine, self._selection.snapshots
        tree = None if machine is None else machine.tree
        if machine is None or tree is None or len(names) != 1 or names[0] not in tree or self._thumbnails is None:
            self.picture.show_image(None)
            return
        says = f"The screen when “{in_sentence(names[0])}” was taken"
        self.picture.show_image(self._thumbnails.picture(machine.id, tree[names[0]]), says)

    def _picture_arrived(self, machine_id: MachineId, name: str) -> None:
        machine = self._selection.machine
        if machine is not None and machine.id == machine_id and self._selection.snapshots == (name,):
            self._show_picture()

    def _show_snapshot(self, machine: Machine, snapshot: Snapshot) -> None:
        self.title.set_text(snapshot.name)
        impact = snapshot.annotations.impact
        did = "" if impact is None else f"\nTaking it {words.impact(impact)}."
        consistency = snapshot.consistency
        self.subtitle.set_text(f"{words.kind(snapshot.kind)}, {words.consistency(consistency)}{did}")
        is_refused = is_of_the_snapshot(self._actions.reasons.get(Action.REVERT))
        self.meaning.set_text(_NO_REVERT if is_refused else words.consistency_in_full(consistency))
        self._show_note(machine, snapshot)
        self.findings.show_findings(())
        facts = [
            Fact("Taken", words.moment(snapshot.created)),
            Fact("Machine was", words.state(snapshot.state)),
            Fact("Consistency", words.consistency(consistency), words.consistency_in_full(consistency)),
            Fact("Memory", words.memory(snapshot.memory)),
        ]
        costs = machine.costs
        cost = None if costs is None else costs.costs.snapshots.get(snapshot.name)
        if costs is None or cost is None:
            facts.append(Fact("Costs", words.UNKNOWN, "Not read yet."))
        else:
            facts += [_bytes("Written", cost.written), _bytes("Frees", cost.frees)]
            if cost.copies != NOTHING:
                facts.append(_bytes("Copies", cost.copies))
            if (memory := saved_memory(snapshot, cost.memory, costs.layers)) is not None:
                facts.append(_memory(memory))
        if machine.tree is not None:
            parent = machine.tree.parents[snapshot.name]
            children = machine.tree.children(snapshot.name)
            facts.append(Fact("Parent", words.NONE if parent is None else plain(parent)))
            facts.append(Fact("Children", listed(plain(child) for child in children) or words.NONE))
        if machine.costs is not None and (names := machine.costs.elsewhere.on(snapshot, machine.costs.layers)):
            facts.append(Fact("Base of", machines_named(names), "What it holds stays as long as they are there."))
        if snapshot.annotations.taken_by:
            facts.append(Fact("Taken by", plain(snapshot.annotations.taken_by)))
        marks = {"Pinned": snapshot.annotations.pinned, "Known good": snapshot.annotations.known_good}
        facts += [
            Fact(title, plain(words.mark(mark)), words.mark_in_full(mark))
            for title, mark in marks.items()
            if mark is not None
        ]
        self.facts.show_facts(facts)
        self._show_layers(machine, snapshot.name)

    def _show_several(self, machine: Machine, names: tuple[str, ...]) -> None:
        self.title.set_text(words.count(len(names), "snapshot"))
        self.subtitle.set_text(f"of {plain(machine.domain.name)}")
        self._show_note(None)
        self.findings.show_findings(())
        sums = selection_sums(machine, names)
        self.facts.show_facts([_bytes(title, figure) for title, figure in sums])
        self._show_layers(machine)

    def _show_machine(self, machine: Machine) -> None:
        self.title.set_text(machine.domain.name)
        self.subtitle.set_text(words.state(machine.domain.state))
        self._show_note(None)
        self.findings.show_findings(machine.findings, machine.id.uuid)
        count = machine.snapshot_count
        look = machine.looks_at
        facts = [] if look is None else [Fact("Looks at", f"{quoted(look.snapshot)} of {plain(look.domain)}")]
        facts += [
            Fact("Snapshots", words.UNKNOWN if count is None else f"{count:,}"),
            _bytes("On disk", machine.disk),
            _bytes("Saved memory", machine.memory),
        ]
        if machine.costs is not None:
            facts.append(_bytes("Written since", machine.costs.costs.now))
        if machine.tree is not None and machine.tree.current is not None:
            facts.append(Fact("Descends from", plain(machine.tree.current)))
        if machine.depth:
            facts.append(Fact("Depth", words.count(machine.depth, "layer"), _DEPTH))
        if machine.oldest is not None:
            facts.append(Fact("Oldest", words.moment(machine.oldest)))
        if not machine.domain.is_persistent:
            facts.append(Fact("Definition", "transient", "It is gone from libvirt when it is switched off."))
        if machine.domain.has_managed_save:
            facts.append(Fact("Saved state", "managed save", "libvirt continues it from there at the next start."))
        self.facts.show_facts(facts)
        self._show_layers(machine)

    def _show_note(self, machine: Machine | None, snapshot: Snapshot | None = None) -> None:
        """Of one snapshot, to be written there; where it can't be, an empty one takes no room."""
        finding = self._actions.reasons.get(Action.DESCRIBE)
        why_not = "" if finding is None else f"{finding.reason} {finding.remedy}".strip()
        note = "" if snapshot is None else lines(snapshot.description)
        about = None if machine is None or snapshot is None else (machine.id, snapshot.name)
        self.note.show_note(about, note, why_not)
        for widget in (self.note, self._note_title):
            widget.setVisible(about is not None and bool(note or not why_not))
        self.meaning.setVisible(about is not None)
        self._meaning_title.setVisible(about is not None)

    def _show_reasons(self) -> None:
        """Say why the actions that have a button here are off, those with the same reason together."""
        by_reason: dict[str, list[str]] = {}
        sometimes = {Action.DROP_MEMORY: self.drop_memory, Action.LOOK: self.look}
        shown = [kind for kind, button in sometimes.items() if not button.isHidden()]
        for kind in (Action.TAKE, Action.REVERT, Action.DELETE, *shown):
            finding = self._actions.reasons.get(kind)
            if finding is not None and finding.rule not in _GO_WITHOUT_SAYING:
                does = kind.value.replace("-", " ")
                by_reason.setdefault(f"{finding.reason} {finding.remedy}".strip(), []).append(does)
        self.reasons.set_text(
            "\n".join(f"{listed(kinds).capitalize()}: {reason}" for reason, kinds in by_reason.items())
        )
        for widget in (self.reasons, self._reasons_title):
            widget.setVisible(bool(by_reason))

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


def _button(action: QAction, parent: QWidget) -> QToolButton:
    button = QToolButton(parent)
    button.setDefaultAction(action)
    button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
    button.setObjectName("framed")
    button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return button


def _holds_memory(tree: SnapshotTree | None, names: tuple[str, ...]) -> bool:
    """Whether one snapshot is selected, and holds memory."""
    if tree is None or len(names) != 1 or names[0] not in tree:
        return False
    return tree[names[0]].memory is not MemorySnapshot.NO


def _memory(memory: SavedMemory) -> Fact:
    """What saved memory takes, of how much, and why."""
    size = words.figure(memory.on_disk)
    of = "" if memory.nominal is None else f" of {words.size(memory.nominal)}"
    how = f", {memory.compression}" if memory.compression not in ("", *UNCOMPRESSED) else ""
    explanation = [words.figure_in_full(memory.on_disk)]
    if memory.nominal is not None:
        explanation.append(f"The guest had {words.size(memory.nominal)} of RAM.")
    if memory.zeros:
        explanation.append(f"At least {words.size(memory.zeros)} of that were zeros, which take no room.")
    if how:
        explanation.append(f"It is compressed with {memory.compression}.")
    return Fact("Saved memory", f"{size}{of}{how}", "\n".join(explanation))


def _bytes(title: str, figure: Figure) -> Fact:
    return Fact(title, words.figure(figure), words.figure_in_full(figure))
