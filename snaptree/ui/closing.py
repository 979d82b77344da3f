"""The end of the window: never with work half done without a word, never with a question that nobody sees."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from PySide6.QtCore import QObject, Qt, Slot
from PySide6.QtWidgets import QMessageBox

from snaptree.plans.operation import Pause
from snaptree.ui.activity import title_of
from snaptree.ui.planning import WITHOUT_WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PySide6.QtWidgets import QWidget

    from snaptree.plans.operation import Operation
    from snaptree.ui.activity import Activity
    from snaptree.ui.banner import Banner
    from snaptree.ui.estate import Estate

_SHOWN: Final = 5
_SESSION_ENDS_SECONDS: Final = 60.0
"""Within this time of the session manager's word, whoever closes the window is that: a logout can be called off."""


class Closing(QObject):
    """Says whether the window may close, and asks about what that would stop. What is paused never goes on by that."""

    def __init__(self, estate: Estate, activity: Activity, banner: Banner, window: QWidget) -> None:
        """`banner` says that the window is about to close by itself."""
        super().__init__(window)
        self._estate = estate
        self._activity = activity
        self._banner = banner
        self._window = window
        self._question: QMessageBox | None = None
        self._closes_when_done = False
        self._asks_nobody_until = 0.0
        """As time.monotonic() gives it."""
        activity.changed.connect(self._close_if_done)
        banner.pressed.connect(self.keep_open)

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
        elif self._activity.running or self._activity.waiting:
            paused = [each for each in self._activity.running if _is_paused(each)]
            running = [each for each in self._activity.running if not _is_paused(each)]
            if paused or self._activity.waiting or not self._closes_when_done:
                self._ask(running, paused, self._activity.waiting)
        return not (self._activity.running or self._activity.waiting)

    def keep_open(self) -> None:
        """Do not close once what goes on is done; whoever wants that is asked again."""
        self._asks_nobody_until = 0.0
        self._closes_when_done = False
        self._banner.hide()

    def _ask(self, running: Sequence[Operation], paused: Sequence[Operation], waiting: Sequence[Operation]) -> None:
        """One question about all."""
        said, means = [], []
        if running:
            said.append(_listed("Work is still going on:", [title_of(each.plan) for each in running]))
            means.append("The window can close by itself as soon as that is done.")
        if paused:
            said.append(_listed("This is paused, half-way:", [_how_far(each) for each in paused]))
            means.append("What is paused ends where it stands: what was done stays done, and nothing is half done.")
        if waiting:
            lines = [f"{title_of(each.plan)}: {each.remark[:1].lower()}{each.remark[1:]}" for each in waiting]
            said.append(_listed("This waits for its hours, in this window only:", lines))
            means.append(f"What waits is not done if the window closes; nothing is lost by that. {WITHOUT_WINDOW}")
        box = QMessageBox(self._window)
        titles = {"Work is going on": running, "Work is paused": paused, "Work waits for its hours": waiting}
        box.setWindowTitle(next(title for title, operations in titles.items() if operations))
        box.setIcon(QMessageBox.Icon.Question)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText("\n\n".join(said))
        box.setInformativeText(" ".join(means))
        agree = box.addButton(_agreement(running, paused, waiting), QMessageBox.ButtonRole.AcceptRole)
        agree.clicked.connect(self._agreed)
        keep = box.addButton("&Keep Open", QMessageBox.ButtonRole.RejectRole)
        if waiting or paused:
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
        """Give up now what waits, for its hours may come meanwhile, and what is paused; close once no work goes on."""
        self._forget_question()
        self._estate.give_up_what_waits()
        for operation in self._activity.running:
            if _is_paused(operation):
                self._estate[self._activity.host_of(operation)].backend.cancel_when_whole(operation.id)
        self._closes_when_done = bool(self._activity.running)
        if self._closes_when_done:
            self._banner.show_message(
                "info", "The window closes as soon as the work that goes on is done.", button="&Keep Open"
            )

    def _close_if_done(self) -> None:
        if self._closes_when_done and not self._activity.running:
            self._closes_when_done = False
            self._banner.hide()
            self._window.close()


def _is_paused(operation: Operation) -> bool:
    """Whether somebody wants it to stand still, though it may have to come to the end of a step first."""
    return operation.progress is not None and operation.progress.pause in (Pause.ASKED, Pause.PAUSED)


def _how_far(operation: Operation) -> str:
    return f"{title_of(operation.plan)}, after {operation.steps_done} of {len(operation.plan.steps)} steps"


def _agreement(running: Sequence[Operation], paused: Sequence[Operation], waiting: Sequence[Operation]) -> str:
    """What the button says that closes the window, now or later."""
    if not paused and not waiting:
        return "&Close When Done"
    both = "&Cancel What Is Paused or Waits"
    cancel = both if paused and waiting else f"&Cancel What {'Is Paused' if paused else 'Waits'}"
    return f"{cancel}, Close When Done" if running else f"{cancel} and Close"


def _listed(heading: str, lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return "\n".join([heading, *lines[:_SHOWN], *more])
