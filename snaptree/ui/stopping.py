"""Stopping work that goes on: at once where nothing is half done by that, else after a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Qt
from PySide6.QtWidgets import QMessageBox

from snaptree import words
from snaptree.plans.operation import OperationState, Pause
from snaptree.plans.stopping import mixed_if_stopped, next_stop, stops_half_way
from snaptree.plans.wording import listed
from snaptree.ui.text import in_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from PySide6.QtWidgets import QWidget

    from snaptree.plans.operation import Operation
    from snaptree.ui.activity import Activity
    from snaptree.ui.estate import Estate


def what_cancel_means(operation: Operation) -> str:
    """What comes of cancelling an operation now, in a sentence or two."""
    progress = operation.progress
    if operation.state is OperationState.QUEUED:
        return "It has not begun: nothing is done then."
    if progress is not None and progress.pause is Pause.PAUSED:
        return "End it here. What was done stays done, and nothing is half done."
    if progress is not None and not progress.can_cancel:
        return progress.why_not_cancel or "This step can't be stopped."
    if stops_half_way(operation):
        return "This is the middle of a merge: you are asked whether that may come to its end first."
    return "Stop it now. What was done before stays done, and nothing is half done."


class Stopping(QObject):
    """Stops work, and asks before that leaves something half done. The work goes on meanwhile."""

    def __init__(self, estate: Estate, activity: Activity, window: QWidget) -> None:
        super().__init__(window)
        self._estate = estate
        self._activity = activity
        self._window = window
        self._questions: dict[int, QMessageBox] = {}
        """By the operation's number."""
        activity.changed.connect(self._keep_true)

    def stop(self, uri: str, operation: Operation) -> None:
        """Cancel an operation of a host, if need be after a question."""
        if not stops_half_way(operation):
            self._estate[uri].backend.cancel(operation.id)
        elif operation.id not in self._questions:
            self._ask(uri, operation)

    def _ask(self, uri: str, operation: Operation) -> None:
        backend, number = self._estate[uri].backend, operation.id
        box = QMessageBox(self._window)
        box.setWindowTitle("In the middle of a merge")
        box.setIcon(QMessageBox.Icon.Question)
        box.setTextFormat(Qt.TextFormat.PlainText)
        box.setText("Stop in the middle of a merge?")

        def offer(text: str, role: QMessageBox.ButtonRole, act: Callable[[int], None] | None = None) -> None:
            button = box.addButton(text, role)
            if act is not None:
                button.clicked.connect(lambda: act(number))
            if box.defaultButton() is None:
                box.setDefaultButton(button)

        stop = next_stop(operation)
        if stop is not None and operation.can_pause:
            offer("Stop &After This Step", QMessageBox.ButtonRole.AcceptRole, backend.cancel_when_whole)
        keep = box.addButton("&Keep Going", QMessageBox.ButtonRole.RejectRole)
        if box.defaultButton() is None:
            box.setDefaultButton(keep)
        offer("Stop &Now", QMessageBox.ButtonRole.DestructiveRole, backend.cancel)
        box.setEscapeButton(keep)
        box.setInformativeText(_what_comes_of_it(operation))
        box.finished.connect(lambda: self._forget(number))
        self._questions[number] = box
        box.open()

    def _forget(self, number: int) -> None:
        box = self._questions.pop(number, None)
        if box is not None:
            box.hide()
            box.deleteLater()

    def _keep_true(self) -> None:
        """The work goes on while somebody thinks: what is over can't be stopped, and what runs may be another step."""
        for operation in self._activity.operations if self._questions else ():
            box = self._questions.get(operation.id)
            if box is None:
                continue
            if operation.state.is_over:
                self._forget(operation.id)
            elif stops_half_way(operation):
                box.setInformativeText(_what_comes_of_it(operation))


def _what_comes_of_it(operation: Operation) -> str:
    return f"{_after(operation)} {_now(operation)}"


def _after(operation: Operation) -> str:
    stop, steps = next_stop(operation), len(operation.plan.steps)
    if stop is None or not operation.can_pause:
        return "From here to its end there is no place where nothing is half done."
    if stop == operation.steps_done + 1:
        return "After this step nothing is half done, and what was done stays done."
    return (
        f"“Stop After This Step” stops after step {stop} of {steps}, as those until then belong together: nothing is"
        " half done then, and what was done stays done."
    )


def _now(operation: Operation) -> str:
    machine = in_sentence(operation.plan.domain)
    names = mixed_if_stopped(operation)
    if not names:
        left = "what was merged is not recorded in libvirt"
    else:
        are = "is a mixture" if len(names) == 1 else "are mixtures"
        which = listed(names, lambda name: f"“{in_sentence(name)}”")
        left = f"{words.count(len(names), 'snapshot')} ({which}) {are} of no more use"
    return f"If it stops now, {left} until it is finished, and nothing else can be done to {machine} before that."
