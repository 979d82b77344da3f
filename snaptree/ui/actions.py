"""Every action of the window, once: menus, toolbar, context menus and buttons show the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QAction, QKeySequence

from snaptree.plans.plan import Action
from snaptree.ui import icons
from snaptree.ui.availability import Selection, why_off
from snaptree.ui.changed_settings import selected_moments
from snaptree.ui.text import tooltip
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from snaptree.plans.plan import Finding


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
        self.revert = self._add("&Revert", "revert", "Make the machine what it was at this snapshot", "Ctrl+R")
        self.revert_with_choices = self._add(
            "Re&vert with Choices…", "", "Choose whether the machine runs, is paused or off afterwards", "Ctrl+Shift+R"
        )
        self.delete = self._add(
            "&Delete…", "delete", "Delete the selected snapshots and merge what they hold", standard.Delete
        )
        self.compare = self._add(
            "&Compare Settings…", "", "Show what was set otherwise: at two snapshots, or at one and now", "Ctrl+D"
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
        self._changing = {Action.TAKE: self.take, Action.REVERT: self.revert, Action.DELETE: self.delete}
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
        for kind, action in self._changing.items():
            reason = self.held or why_off(kind, selection)
            self.reasons[kind] = reason
            action.setEnabled(reason is None)
            if reason is None:
                self._explain(action)
            else:
                self._explain(action, " ".join(part for part in (reason.reason, reason.remedy) if part))
        self.revert_with_choices.setEnabled(self.revert.isEnabled())
        self._offer_compare(selection)

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
        action = QAction(text, self)
        if keys is not None:
            action.setShortcuts(QKeySequence.keyBindings(keys) if not isinstance(keys, str) else [QKeySequence(keys)])
        if icon:
            self._icons[action] = icon
        self._purposes[action] = purpose
        # The toolbar is short of room; the dots say that a dialog comes first, which menus say.
        action.setIconText(text.replace("&", "").rstrip("…"))
        self._explain(action)
        self._window.addAction(action)
        return action

    def _explain(self, action: QAction, more: str = "") -> None:
        keys = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
        first = self._purposes[action] + (f" ({keys})" if keys else "")
        action.setToolTip(tooltip("\n".join(part for part in (first, more) if part)))
