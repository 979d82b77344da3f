"""Every action of the window, once: menus, toolbar, context menus and buttons show the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QAction, QKeySequence

from snaptree import words
from snaptree.model.estate import MemorySnapshot
from snaptree.plans.plan import Action, Finding
from snaptree.ui import icons
from snaptree.ui.availability import Selection, why_no_group, why_no_group_revert, why_no_prune, why_off
from snaptree.ui.changed_settings import selected_moments
from snaptree.ui.text import tooltip
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

_KEPT = "Keep the selected snapshots out of deletes of several and out of every automatic one"
_PIN = ("&Pin", "pin", _KEPT)
_UNPIN = ("Un&pin", "pin", "Let the selected snapshots be deleted with others again")
_KNOWN_GOOD = ("Mark as &Known Good", "known-good", "Say that the machine was found working at the selected snapshots")
_NOT_KNOWN_GOOD = ("Not &Known Good", "known-good", "Take the mark “known good” off the selected snapshots")
"""Text, icon and purpose of what depends on the selection."""


class Actions(QObject):
    """The actions with their texts, icons, shortcuts, and the reasons why they are off."""

    def __init__(self, window: QWidget) -> None:
        super().__init__(window)
        self._window = window
        self._icons: dict[QAction, str] = {}
        self._purposes: dict[QAction, str] = {}
        self.reasons: dict[Action, Finding | None] = {}
        """Why each changing action is off now; None for those that are on."""
        self.held: Finding | None = None
        """Why nothing may be changed for the time being."""
        standard = QKeySequence.StandardKey
        self.take = self._add("&Take…", "take", "Take a snapshot of the machine as it is now", "Ctrl+N")
        self.take_group = self._add(
            "Take &of Several Machines…", "", "Take one snapshot of several machines of this host together"
        )
        self.revert = self._add("&Revert", "revert", "Make the machine what it was at this snapshot", "Ctrl+Shift+B")
        self.revert_with_choices = self._add(
            "Re&vert with Choices…", "", "Choose whether the machine runs, is paused or off afterwards", "Ctrl+B"
        )
        self.revert_group = self._add(
            "Revert the Whole &Group…", "", "Go back on all machines that were taken together with this snapshot"
        )
        self.delete = self._add(
            "&Delete…", "delete", "Delete the selected snapshots and merge what they hold", standard.Delete
        )
        self.prune = self._add(
            "Prune &by Policy…", "", "Say what to keep, see what goes, and delete that: on this machine or on several"
        )
        self.drop_memory = self._add(
            "Drop Its &Memory…", "", "Remove the saved memory of this snapshot, and keep what it holds of the disks"
        )
        self.note = self._add("Edit &Note", "note", "Write what is worth knowing of this snapshot", "F2")
        self.pin = self._add(*_PIN, "Ctrl+P")
        self.known_good = self._add(*_KNOWN_GOOD)
        self.rename = self._add("Ren&ame…", "", "Give the snapshot another name")
        self.compare = self._add(
            "&Compare Settings…", "", "Show what was set otherwise: at two snapshots, or at one and now", "Ctrl+D"
        )
        self.look = self._add(
            "&Look in a New Machine…",
            "look",
            "Make a new machine with the disks of this snapshot; nothing else changes",
            "Ctrl+K",
        )
        self.unlook = self._add(
            "R&emove This Machine…", "", "Remove a machine that was made to look at a snapshot, with all its files"
        )
        self.undo = self._add("&Undo", "undo", "Take back what was done last", standard.Undo)
        self.refresh = self._add("Re&fresh", "refresh", "Read everything again", standard.Refresh)
        self.find = self._add("F&ind…", "find", "Search machines and snapshots", standard.Find)
        self.add_host = self._add("&Add Host…", "add-host", "Connect to another libvirt host", "Ctrl+O")
        self.remove_host = self._add("&Remove Host", "", "Disconnect from this host and forget it")
        self.retry = self._add("Try A&gain Now", "refresh", "Connect again without waiting")
        self.folds = self._add("Fold &Long Runs", "", "Show long runs of snapshots as one row", "Ctrl+L")
        self.folds.setCheckable(True)
        self.folds.setChecked(True)
        self.inspector = self._add("Ins&pector", "", "Show what is known about the selection", "Ctrl+I")
        self.inspector.setCheckable(True)
        self.activity = self._add("A&ctivity", "", "Show running and finished work", "Ctrl+J")
        self.activity.setCheckable(True)
        self.quit = self._add("&Quit", "", "Close the window; work in progress is waited for", standard.Quit)
        self.about = self._add("&About SnapTree", "", "Version and licence")
        # Del belongs to the tree: in the search box it deletes a letter.
        self.delete.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        self._changing = {
            Action.TAKE: (self.take,),
            Action.REVERT: (self.revert,),
            Action.DELETE: (self.delete,),
            Action.DROP_MEMORY: (self.drop_memory,),
            Action.DESCRIBE: (self.note, self.pin, self.known_good),
            Action.RENAME: (self.rename,),
            Action.LOOK: (self.look,),
            Action.UNLOOK: (self.unlook,),
        }
        self.dress()
        self.offer(Selection())
        self.offer_undo("")

    def dress(self) -> None:
        """Take the icons in the theme's colours."""
        colours = colours_of(self._window.palette())
        for action, name in self._icons.items():
            action.setIcon(icons.icon(name, colours.text))

    def offer(self, selection: Selection) -> None:
        """Switch the changing actions on or off for a selection, and say why in their tooltips."""
        self._name(self.pin, _UNPIN if selection.is_pinned else _PIN)
        self._name(self.known_good, _NOT_KNOWN_GOOD if selection.is_known_good else _KNOWN_GOOD)
        for kind, actions in self._changing.items():
            reason = self.held or why_off(kind, selection)
            self.reasons[kind] = reason
            for action in actions:
                self._offer(action, reason)
        if self.note.isEnabled() and len(selection.snapshots) > 1:
            self._offer(self.note, Finding("one-only", "A note is written on one snapshot.", "Select just that one."))
        self.revert_with_choices.setEnabled(self.revert.isEnabled())
        self._offer(self.take_group, self.held or why_no_group(selection))
        self._offer(self.prune, self.held or why_no_prune(selection))
        self._offer(self.revert_group, self.reasons[Action.REVERT] or why_no_group_revert(selection))
        frees = _frees_by_memory(selection)
        self.drop_memory.setText(f"Drop Its &Memory…{frees}")
        self.drop_memory.setIconText(f"Drop Its Memory{frees}")
        self._offer_compare(selection)

    def _offer(self, action: QAction, reason: Finding | None) -> None:
        action.setEnabled(reason is None)
        self._explain(action, "" if reason is None else f"{reason.reason} {reason.remedy}".strip())

    def _name(self, action: QAction, words: tuple[str, str, str]) -> None:
        """Let an action say what it does now."""
        text, _, purpose = words
        self._purposes[action] = purpose
        self._set_text(action, text)

    def _offer_compare(self, selection: Selection) -> None:
        is_connected = selection.machine is not None and selection.machine.host.phase == "connected"
        is_possible = is_connected and selected_moments(selection) is not None
        self.compare.setEnabled(is_possible)
        self._explain(self.compare, "" if is_possible else "Select two rows, or one snapshot to compare with now.")

    def offer_undo(self, what: str) -> None:
        """Offer to take back the last operation; `what` says what that does, empty if there is none."""
        self.undo.setEnabled(bool(what))
        self._explain(self.undo, what or "Nothing was done that could be taken back.")

    def _add(self, text: str, icon: str, purpose: str, keys: str | QKeySequence.StandardKey | None = None) -> QAction:
        action = QAction(self)
        if keys is not None:
            # Of a standard key only the first: the others differ by platform (Delete is also Ctrl+D), and may be ours.
            action.setShortcut(QKeySequence(keys))
        if icon:
            self._icons[action] = icon
        self._purposes[action] = purpose
        self._set_text(action, text)
        self._explain(action)
        self._window.addAction(action)
        return action

    def _set_text(self, action: QAction, text: str) -> None:
        action.setText(text)
        # The toolbar is short of room; the dots say that a dialog comes first, which menus say.
        action.setIconText(text.replace("&", "").rstrip("…"))

    def _explain(self, action: QAction, more: str = "") -> None:
        keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
        first = self._purposes[action] + (f" ({keys})" if keys else "")
        action.setToolTip(tooltip("\n".join(part for part in (first, more) if part)))


def _frees_by_memory(selection: Selection) -> str:
    """What the file takes that goes with a snapshot's memory; empty where there is none."""
    machine, names = selection.machine, selection.snapshots
    if machine is None or machine.tree is None or machine.costs is None or len(names) != 1:
        return ""
    cost = machine.costs.costs.snapshots.get(names[0])
    if cost is None or cost.memory.bytes is None or machine.tree[names[0]].memory is not MemorySnapshot.EXTERNAL:
        return ""
    return f" (frees {words.figure(cost.memory)})"
