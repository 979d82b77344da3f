"""The end of the window: never with work half done without a word, never with a question that nobody sees."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from PySide6.QtCore import QObject, Qt, Slot
from PySide6.QtWidgets import QMessageBox

from snaptree.ui.activity import title_of
from snaptree.ui.planning import WITHOUT_WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PySide6.QtWidgets import QWidget

    from snaptree.plans.operation import Operation
    from snaptree.ui.activity import Activity
    from snaptree.ui.commands import Commands
    from snaptree.ui.estate import Estate

_SHOWN: Final = 5
_SESSION_ENDS_SECONDS: Final = 60.0
"""Within this time of the session manager's word, whoever closes the window is that: a logout can be called off."""


class Closing(QObject):
    """Says whether the window may close, and asks about what that would stop."""

    def __init__(self, estate: Estate, activity: Activity, commands: Commands, window: QWidget) -> None:
        super().__init__(window)
        self._estate = estate
        self._activity = activity
        self._commands = commands
        self._window = window
        self._question: QMessageBox | None = None
        self._closes_when_done = False
        self._asks_nobody_until = 0.0
        """As time.monotonic() gives it."""
        activity.changed.connect(self._close_if_done)

    def told_to_end(self) -> None:
        """From now on nobody is asked: what waits is given up, and what goes on is waited for."""
        self._asks_nobody_until = inf

    @Slot(object)
    def session_ends(self, _manager: object = None) -> None:
        """The user logs out, and the window is likely to be closed."""
        self._asks_nobody_until = max(self._asks_nobody_until, monotonic() + _SESSION_ENDS_SECONDS)

    def may_close(self) -> bool:
        """Whether nothing is going on and nothing waits. If not, it is asked about, or closed once it is done."""
        if monotonic() < self._asks_nobody_until:
            self._wind_up()
        elif (self._activity.running or self._activity.waiting) and not self._closes_when_done:
            self._ask(self._activity.running, self._activity.waiting)
        return not (self._activity.running or self._activity.waiting)

    def _ask(self, running: Sequence[Operation], waiting: Sequence[Operation]) -> None:
        """One question about both."""
        said, means = [], []
        if running:
            said.append(_listed("Work is still going on:", [title_of(each.plan) for each in running]))
            means.append("The window can close by itself as soon as that is done.")
        if waiting:
            lines = [f"{title_of(each.plan)}: {each.remark[:1].lower()}{each.remark[1:]}" for each in waiting]
            said.append(_listed("This waits for its hours, in this window only:", lines))
            means.append(f"What waits is not done if the window closes; nothing is lost by that. {WITHOUT_WINDOW}")
        box = QMessageBox(self._window)
        box.setWindowTitle("Work is going on" if running else "Work waits for its hours")
        box.setIcon(QMessageBox.Icon.Question)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText("\n\n".join(said))
        box.setInformativeText(" ".join(means))
        agree = "&Close When Done" if not waiting else "&Cancel What Waits and Close"
        if running and waiting:
            agree = "&Cancel What Waits, Close When Done"
        box.addButton(agree, QMessageBox.ButtonRole.AcceptRole).clicked.connect(self._agreed)
        keep = box.addButton("&Keep Open", QMessageBox.ButtonRole.RejectRole)
        if waiting:
            box.setDefaultButton(keep)
        box.finished.connect(self._forget_question)
        self._forget_question()
        self._question = box
        box.open()

    def _forget_question(self) -> None:
        if self._question is not None:
            self._question.hide()
            self._question.deleteLater()
            self._question = None

    def _agreed(self) -> None:
        self._wind_up()
        self._window.close()

    def _wind_up(self) -> None:
        """Give up now what waits, for its hours may come meanwhile; let go on what is paused, and close after that."""
        self._forget_question()
        self._estate.give_up_what_waits()
        self._closes_when_done = bool(self._activity.running)
        for operation in self._activity.running:
            self._commands.pause(self._activity.host_of(operation), operation, pauses=False)

    def _close_if_done(self) -> None:
        if self._closes_when_done and not self._activity.running:
            self._closes_when_done = False
            self._window.close()


def _listed(heading: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return "\n".join([heading, *lines[:_SHOWN], *more])
