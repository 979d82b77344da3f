"""The bottom of the window: work that waits, runs or is over, with its progress and its undo."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Final

from PySide6.QtCore import QEvent, QSignalBlocker, QSize, Qt, Signal
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.plans.operation import OperationState, Pause, last_undoable
from snaptree.plans.plan import Action, MergeLayers
from snaptree.plans.plan_words import describe_plan, steps_in_words
from snaptree.ui import icons
from snaptree.ui.labels import ElidedLabel, PlainLabel
from snaptree.ui.stopping import what_cancel_means
from snaptree.ui.text import in_sentence, tooltip
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from snaptree.model.errors import SnapTreeError
    from snaptree.plans.operation import Operation, Progress
    from snaptree.plans.plan import Plan

KEPT = 100
"""Finished work that stays in the list."""

_STEPS_TOLD: Final = 15
"""Lines of a tooltip; more would fill the screen."""

_SIGNS = {
    OperationState.QUEUED: "waiting",
    OperationState.RUNNING: "refresh",
    OperationState.DONE: "done",
    OperationState.FAILED: "error",
    OperationState.CANCELLED: "cancel",
    OperationState.INTERRUPTED: "warning",
}


_SETTLED = {Action.FINISH: "It was taken up again since.", Action.LEAVE: "It was left as it is."}


_THEN = {Pause.ASKED: " (then it pauses)", Pause.ENDS: " (then it stops)"}


def title_of(plan: Plan) -> str:
    """What a plan does, as a heading: `Delete “auto-12” of web-01`."""
    return describe_plan(plan, machine=in_sentence(plan.domain), named=in_sentence)


class OperationRow(QFrame):
    """One piece of work."""

    cancel_wanted = Signal()
    limit_wanted = Signal(int)
    """MiB per second, 0 for none."""
    pause_wanted = Signal(bool)
    """Stand still between two steps, or go on."""
    undo_wanted = Signal()
    details_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sign = "waiting"
        self._picture = QLabel(self)
        self._picture.setFixedSize(QSize(icons.SIZE, icons.SIZE))
        self.title = ElidedLabel("", self)
        self.detail = ElidedLabel("", self, dim=True)
        self.figures = ElidedLabel("", self, dim=True)
        """How far it is. Where there is no room, the names beside it give way."""
        self.bar = QProgressBar(self)
        self.bar.setTextVisible(False)
        self.bar.setFixedWidth(180)
        self.limit = QSpinBox(self)
        self.limit.setRange(0, 99_999)
        self.limit.setSuffix(" MiB/s")
        self.limit.setSpecialValueText("No limit")
        self.limit.setKeyboardTracking(False)
        self.limit.setAccessibleName("Most to copy per second")
        self.limit.setToolTip(tooltip("How much is copied per second at most. The guest's own disk accesses profit."))
        self.limit.valueChanged.connect(self.limit_wanted)
        self.pause = QPushButton("Pause", self)
        self.pause.clicked.connect(self._pause_pressed)
        self._plan: Plan | None = None
        self._goes_on = True
        """Whether it is neither paused nor about to be."""
        self.cancel = QPushButton("Cancel", self)
        self.cancel.clicked.connect(self.cancel_wanted)
        self.undo = QPushButton("Undo", self)
        self.undo.clicked.connect(self.undo_wanted)
        self.details = QPushButton("Details…", self)
        self.details.clicked.connect(self.details_wanted)
        texts = QVBoxLayout()
        texts.setSpacing(1)
        texts.addWidget(self.title)
        below = QHBoxLayout()
        below.setSpacing(10)
        below.addWidget(self.detail, 1)
        below.addWidget(self.figures)
        texts.addLayout(below)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 5, 12, 5)
        layout.setSpacing(10)
        layout.addWidget(self._picture)
        layout.addLayout(texts, 1)
        for widget in (self.bar, self.limit, self.pause, self.cancel, self.undo, self.details):
            layout.addWidget(widget)

    def show_planning(self, title: str) -> None:
        """Say that a plan is being made."""
        self._show("waiting", title, "Planning…", is_busy=True)

    def show_operation(
        self, operation: Operation, *, can_undo: bool, is_earlier: bool = False, is_elsewhere: bool = False
    ) -> None:
        """Show how the work is doing. What was done before this start says how long ago.

        What is done elsewhere is not to be told anything from here.
        """
        state = operation.state
        detail = _detail(operation)
        if is_earlier:
            detail = f"{_ago(operation)}: {detail}"
        is_paused = operation.progress is not None and operation.progress.pause is Pause.PAUSED
        is_running = state is OperationState.RUNNING
        sign = "paused" if is_paused else _SIGNS[state]
        self._show(sign, title_of(operation.plan), detail, is_busy=is_running, is_still=is_paused)
        if operation.plan is not self._plan:
            self._plan = operation.plan
            self.setToolTip(tooltip(_told_of(operation.plan)))
        if is_running and operation.progress is not None:
            self._show_progress(operation.progress)
        self._show_controls(operation, is_elsewhere=is_elsewhere)
        undo = operation.plan.undo
        self.undo.setVisible(can_undo and undo is not None)
        self.undo.setEnabled(True)
        self.undo.setText("Undo")
        self.undo.setToolTip(tooltip("" if undo is None else undo.text))
        self.details.setVisible(operation.error is not None)

    def _show_figures(self, text: str) -> None:
        """Show how far it is. What once took some room keeps it, so that what stands beside it does not jump about."""
        self.figures.set_text(text)
        self.figures.setVisible(bool(text))
        self.figures.setMinimumWidth(max(self.figures.minimumWidth(), self.figures.sizeHint().width()) if text else 0)
        if text:
            self.setAccessibleName(f"{self.accessibleName()}, {text}")

    def _show_progress(self, progress: Progress) -> None:
        if progress.fraction is not None:
            # In thousandths: bytes would not fit into the bar's 32 bits.
            self.bar.setRange(0, 1000)
            self.bar.setValue(int(1000 * progress.fraction))
        self._show_figures(words.how_far(progress))
        if not self.limit.hasFocus():
            with QSignalBlocker(self.limit):
                self.limit.setValue((progress.limit or 0) >> 20)

    def _show_controls(self, operation: Operation, *, is_elsewhere: bool) -> None:
        """Show what can be asked of the work: from its first moment to its last, so that nothing jumps about."""
        progress = operation.progress
        is_running = operation.state is OperationState.RUNNING
        takes_orders = is_running and not is_elsewhere
        self.cancel.setVisible(is_running or operation.state is OperationState.QUEUED)
        self.cancel.setEnabled(not is_elsewhere and (progress is None or progress.can_cancel))
        self.cancel.setToolTip(tooltip(what_cancel_means(operation)))
        self.limit.setVisible(takes_orders and any(isinstance(step, MergeLayers) for step in operation.plan.steps))
        self._goes_on = progress is None or progress.pause is Pause.NO
        self.pause.setVisible(takes_orders and operation.can_pause)
        self.pause.setText("Pause" if self._goes_on else "Go On")
        self.pause.setToolTip(tooltip("Stand still as soon as nothing is half done." if self._goes_on else ""))

    def _pause_pressed(self) -> None:
        self.pause_wanted.emit(self._goes_on)

    def show_undoing(self) -> None:
        """Say that taking it back is being planned."""
        self.undo.setEnabled(False)
        self.undo.setText("Undoing…")

    def changeEvent(self, event: QEvent) -> None:
        """The sign has the theme's colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._dress()

    def _show(self, sign: str, title: str, detail: str, *, is_busy: bool, is_still: bool = False) -> None:
        self._sign = sign
        self.title.set_text(title)
        self.detail.set_text(detail)
        self.bar.setVisible(is_busy)
        self.bar.setRange(0, int(is_still))  # without a range it moves
        self.bar.setValue(0)
        for button in (self.limit, self.pause, self.cancel, self.undo, self.details):
            button.setVisible(False)
        self.setAccessibleName(f"{title}: {detail}")
        self.figures.hide()
        self._dress()

    def _dress(self) -> None:
        colours = colours_of(self.palette())
        colour = {"done": colours.good, "error": colours.error, "warning": colours.warning}.get(
            self._sign, colours.accent if self._sign == "refresh" else colours.dim
        )
        self._picture.setPixmap(icons.pixmap(self._sign, colour, icons.SIZE, self.devicePixelRatioF()))


def _told_of(plan: Plan) -> str:
    """The steps of a plan and its warnings, as many as a tooltip has room for."""
    steps = [f"{number} {text}" for number, text in steps_in_words(plan.steps)]
    more = len(steps) - _STEPS_TOLD
    folded = [*steps[:_STEPS_TOLD], f"and {more:,} more"] if more > 1 else steps
    return "\n".join([*folded, *(f"⚠ {warning.reason}" for warning in plan.warnings)])


def _ago(operation: Operation) -> str:
    ago = words.age(time() - (operation.finished or operation.started))
    return f"{ago[0].upper()}{ago[1:]} ago"


def _detail(operation: Operation) -> str:
    progress, error = operation.progress, operation.error
    took = words.duration((operation.finished or operation.started) - operation.started)
    match operation.state:
        case OperationState.QUEUED:
            return operation.remark or "Waits for the work before it"
        case OperationState.RUNNING:
            if progress is None:
                return "Starting…"
            doing = f"{progress.doing}{_THEN.get(progress.pause, '')}"
            return ": ".join(part for part in (doing, progress.remark) if part)
        case OperationState.DONE:
            if operation.undone:
                return "Done, and taken back since"
            impact = "" if operation.impact is None else f": {words.impact(operation.impact)}"
            return f"Done in {took}{impact}. {operation.remark}" if operation.remark else f"Done in {took}{impact}"
        case _:
            said = f"{error.summary} {error.hint}".strip() if error is not None else operation.state.value.capitalize()
            if operation.plan.is_refused:
                return f"Left out, as it was refused: {said}"
            settled = "" if operation.settled is None else f" {_SETTLED.get(operation.settled.how, '')}".rstrip()
            return f"{said.rstrip('.')}.{_what_was_done(operation, said)}{settled}"


def _what_was_done(operation: Operation, said: str) -> str:
    """How much of it, as another sentence; empty where that is said, or where it has one step."""
    steps = len(operation.plan.steps)
    if not (operation.steps_begun or operation.steps_done):
        return "" if "othing was done" in said or "before anything was done" in said else " Nothing was done."
    return f" {operation.steps_done} of {steps} steps were done." if steps > 1 else ""


def _place(operation: Operation) -> tuple[int, float]:
    """What an operation's row is sorted by."""
    is_still = operation.progress is not None and operation.progress.pause is Pause.PAUSED
    match operation.state:
        case OperationState.RUNNING:
            return int(is_still), operation.started
        case OperationState.QUEUED:
            return 2 + operation.is_for_later, operation.started
        case _:
            return 4, -(operation.finished or operation.started)


class Activity(QWidget):
    """What runs on top, then what waits, then what is over."""

    cancel_wanted = Signal(str, object)
    """Host's address, Operation."""
    limit_wanted = Signal(str, object, int)
    """Host's address, Operation, MiB per second or 0 for none."""
    pause_wanted = Signal(str, object, bool)
    """Host's address, Operation, and whether it shall stand still or go on."""
    undo_wanted = Signal(str, object)
    details_wanted = Signal(object)
    """SnapTreeError"""
    began = Signal()
    """There is something new to see."""
    changed = Signal()
    """What can be undone may be another now."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Activity")
        self._operations: dict[int, tuple[str, Operation]] = {}
        self._rows: dict[int, OperationRow] = {}
        self._earlier: set[int] = set()
        """What was done before this start."""
        self._elsewhere: set[int] = set()
        """What other programs do."""
        self._order: list[int] = []
        """The rows from top to bottom."""
        self._plans: dict[object, OperationRow] = {}
        self._planned: dict[object, tuple[str, str, str]] = {}
        """What is being planned: title, host's address, and the machine by UUID."""
        self._page = QWidget(self)
        self._list = QVBoxLayout(self._page)
        self._list.setContentsMargins(0, 4, 0, 4)
        self._list.setSpacing(0)
        self._nothing = PlainLabel(
            "Nothing was done yet. Work appears here with its progress, and with Undo.", self._page, dim=True
        )
        self._nothing.setContentsMargins(12, 6, 12, 6)
        self._list.addWidget(self._nothing)
        self._list.addStretch(1)
        scroll = QScrollArea(self)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(self._page)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(scroll, 1)
        self.setMinimumHeight(48)

    @property
    def operations(self) -> list[Operation]:
        """All work in the list, in the order it was asked for."""
        return [operation for _, operation in self._operations.values()]

    @property
    def running(self) -> list[Operation]:
        """Work of this program's that is not over, but for what is `waiting`."""
        return [each for each in self._not_over() if not each.is_for_later]

    @property
    def waiting(self) -> list[Operation]:
        """Work of this program's whose hours are still to come."""
        return [each for each in self._not_over() if each.is_for_later]

    def work_on(self, uri: str) -> list[Operation]:
        """Work of this program's on a host that is not over."""
        return [each for each in self._not_over() if self.host_of(each) == uri]

    def _not_over(self) -> list[Operation]:
        return [each for each in self.operations if not each.state.is_over and each.id not in self._elsewhere]

    def is_earlier(self, operation: Operation) -> bool:
        """Whether it was done before this start."""
        return operation.id in self._earlier

    def host_of(self, operation: Operation) -> str:
        """The address of the host on which it ran."""
        return self._operations[operation.id][0]

    def row(self, operation_id: int) -> OperationRow:
        """The row of an operation."""
        return self._rows[operation_id]

    def under_way(self, uri: str, uuid: str) -> str:
        """What changes a machine of a host, or is about to: the title of it; empty if nothing. Words are no change."""
        for title, *where in self._planned.values():
            if where == [uri, uuid]:
                return title
        for host, operation in self._operations.values():
            plan, is_idle = operation.plan, operation.state.is_over or operation.is_for_later
            if not is_idle and not plan.only_describes and (host, plan.domain_uuid) == (uri, uuid):
                return title_of(plan)
        return ""

    def undoing(self, operation: Operation) -> None:
        """Show that taking an operation back is being planned, until `planned` is told its number."""
        self.row(operation.id).show_undoing()
        self._planned[operation.id] = (
            f"Undo: {title_of(operation.plan)}",
            self.host_of(operation),
            operation.plan.domain_uuid,
        )
        self.changed.emit()

    def planning(self, token: object, title: str, uri: str, uuid: str) -> None:
        """Show that a plan is being made for a machine of a host, until `planned` is told."""
        row = OperationRow(self._page)
        row.show_planning(title)
        self._plans[token] = row
        self._planned[token] = title, uri, uuid
        self._put_on_top(row)
        self.changed.emit()

    def planned(self, token: object) -> None:
        """A plan was made, or could not be."""
        row = self._plans.pop(token, None)
        if row is not None:
            self._remove(row)
        _, uri, uuid = self._planned.pop(token, ("", "", ""))
        self._show_machine(uuid, uri)
        self.changed.emit()

    def show_operation(self, uri: str, operation: Operation) -> None:
        """Show an operation of a host, or how it went on."""
        self._operations[operation.id] = uri, operation
        if operation.id not in self._rows:
            self._add_row(operation.id)
        if operation.state.is_over:
            self._forget_old()
        if operation.state is OperationState.FAILED:
            self.began.emit()
        self._show_machine(operation.plan.domain_uuid, uri)
        self.changed.emit()

    def show_elsewhere(self, uri: str, operation: Operation) -> None:
        """Show what another program does on a host. It opens nothing, unless it fails."""
        self._elsewhere.add(operation.id)
        self.show_operation(uri, operation)

    def show_earlier(self, uri: str, operations: tuple[Operation, ...]) -> None:
        """Show what was done on a host before this start, below all that was done since."""
        for operation in operations:
            self._operations[operation.id] = uri, operation
            self._earlier.add(operation.id)
            self._add_row(operation.id, on_top=False)
        self._forget_old()
        for uuid in {operation.plan.domain_uuid for operation in operations}:
            self._show_machine(uuid, uri)
        self.changed.emit()

    def _show_machine(self, uuid: str, uri: str) -> None:
        """Undo is offered for the last change of a machine only: its rows are looked at together."""
        own = [
            operation
            for host, operation in self._operations.values()
            if host == uri and operation.plan.domain_uuid == uuid
        ]
        undoable = last_undoable(own)
        for operation in own:
            can_undo = undoable is not None and operation.id == undoable.id
            row = self._rows[operation.id]
            row.show_operation(
                operation,
                can_undo=can_undo,
                is_earlier=self.is_earlier(operation),
                is_elsewhere=operation.id in self._elsewhere,
            )
        self._arrange()

    def _add_row(self, number: int, *, on_top: bool = True) -> None:
        row = OperationRow(self._page)
        row.cancel_wanted.connect(lambda: self.cancel_wanted.emit(*self._operations[number]))
        row.limit_wanted.connect(lambda limit: self.limit_wanted.emit(*self._operations[number], limit))
        row.pause_wanted.connect(lambda pauses: self.pause_wanted.emit(*self._operations[number], pauses))
        row.undo_wanted.connect(lambda: self.undo_wanted.emit(*self._operations[number]))
        row.details_wanted.connect(lambda: self.details_wanted.emit(self._error(number)))
        self._rows[number] = row
        if on_top:
            operation = self._operations[number][1]
            # A note or a mark is seen in the tree: nothing has to open for it, unless something goes wrong.
            is_quiet = operation.plan.only_describes or number in self._elsewhere
            self._put_on_top(row, is_quiet=is_quiet and operation.error is None)
        else:
            self._list.insertWidget(self._list.count() - 1, row)  # before what fills the rest
            self._nothing.hide()

    def _error(self, number: int) -> SnapTreeError | None:
        return self._operations[number][1].error

    def _put_on_top(self, row: OperationRow, *, is_quiet: bool = False) -> None:
        if not is_quiet:
            self.began.emit()
        self._list.insertWidget(0, row)
        self._nothing.hide()

    def _arrange(self) -> None:
        """What runs comes first, then what is paused, what waits, and what is over, the newest first."""
        order = [number for number, _ in sorted(self._operations.items(), key=lambda item: _place(item[1][1]))]
        if order == self._order:
            return
        self._order = order
        for place, number in enumerate(order, start=len(self._plans)):
            if self._list.indexOf(self._rows[number]) != place:
                self._list.insertWidget(place, self._rows[number])

    def _remove(self, row: OperationRow) -> None:
        self._list.removeWidget(row)
        row.hide()
        row.deleteLater()
        self._nothing.setVisible(not self._rows and not self._plans)

    def _forget_old(self) -> None:
        over = [number for number, (_, operation) in self._operations.items() if operation.state.is_over]
        over.sort(key=lambda number: self._operations[number][1].started)
        for number in over[:-KEPT]:
            del self._operations[number]
            self._earlier.discard(number)
            self._elsewhere.discard(number)
            self._remove(self._rows.pop(number))
