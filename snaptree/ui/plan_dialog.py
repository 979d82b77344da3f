"""The preview of a plan: nothing happens before somebody has read it and pressed the button."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QComboBox, QDialog, QDialogButtonBox, QFormLayout, QVBoxLayout, QWidget

from snaptree.model.errors import SnapTreeError
from snaptree.plans.plan import Plan
from snaptree.ui.labels import PlainLabel
from snaptree.ui.plan_view import Notice, PlanView
from snaptree.ui.text import tooltip, window_title

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from snaptree.plans.group import GroupPlan
    from snaptree.plans.intention import Intention
    from snaptree.ui.machine_order import MachineOrder
    from snaptree.ui.planning import PlanMaker


@dataclass(frozen=True, slots=True)
class Choice:
    """A tick box in the preview; changing it changes the intention, and a new plan is made."""

    text: str
    """Ours: names of others would make the dialog as wide as they are long."""
    is_ticked: bool
    apply: Callable[[Intention, bool], Intention]
    explanation: str = ""
    is_offered: Callable[[Plan], bool] | None = None
    """Whether it makes a difference to a plan; None if it always may. One that is ticked stays."""


@dataclass(frozen=True, slots=True)
class Alternatives:
    """One of several in the preview, and what each makes of the intention."""

    label: str
    options: Mapping[str, Callable[[Intention], Intention]]
    """Text -> the intention with that; the first is the one that holds without a choice."""


class PlanDialog(QDialog):
    """Appears at once; the plan follows. Deletes itself when closed."""

    def __init__(
        self,
        planner: PlanMaker,
        intention: Intention,
        *,
        title: str,
        verb: str,
        choices: Sequence[Choice] = (),
        alternatives: Alternatives | None = None,
        order: MachineOrder | None = None,
        plan: Plan | None = None,
        why: str = "",
        titled: Callable[[Intention], str] | None = None,
        parent: QWidget | None = None,
    ) -> None:
        """`plan` is one made already for this intention. `verb` is our own text for the button that runs it.

        `order` is what the planner goes by: when it changes, a new plan is made. `why` says why this is asked at all,
        where it mostly is not. `titled` gives the title for what is chosen, if it depends on that.
        """
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(window_title(title))
        self._planner = planner
        self._intention = intention
        self._plan: Plan | GroupPlan | None = None
        self.view = PlanView(self)
        self.ticks: list[QCheckBox] = []
        self._choices = choices
        self.alternatives: QComboBox | None = None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        self._titled = titled
        self.heading = PlainLabel(title, self)
        self.heading.setObjectName("heading")
        layout.addWidget(self.heading)
        if why:
            layout.addWidget(Notice("warning", why, "That is why you are asked.", self))
        for choice in choices:
            layout.addWidget(self._tick(choice))
        if alternatives is not None:
            layout.addLayout(self._offer(alternatives))
        if order is not None:
            order.changed.connect(self._make_plan)
            layout.addWidget(order)
        layout.addWidget(self.view, 1)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.run_button = buttons.addButton(verb, QDialogButtonBox.ButtonRole.AcceptRole)
        self.run_button.setEnabled(False)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        self._cancel_button = buttons.button(QDialogButtonBox.StandardButton.Cancel)
        layout.addWidget(buttons)
        self.resize(600, 520)
        if plan is not None:
            self._plan_is_ready(plan)
        else:
            self._make_plan()

    def accept(self) -> None:
        """Run the plan that is shown."""
        if self._plan is not None and not self._plan.is_refused:
            self._planner.run(self._plan)
            super().accept()

    def done(self, result: int) -> None:
        """However it closes: plans that come later have nobody to show them to."""
        self._planner.forget()
        super().done(result)

    def _tick(self, choice: Choice) -> QCheckBox:
        def changed(ticked: bool) -> None:
            self._change(choice.apply(self._intention, ticked))

        tick = QCheckBox(choice.text, self)
        tick.setToolTip(tooltip(choice.explanation))
        tick.setChecked(choice.is_ticked)
        tick.setVisible(choice.is_offered is None)
        tick.toggled.connect(changed)
        self.ticks.append(tick)
        return tick

    def _offer(self, alternatives: Alternatives) -> QFormLayout:
        def changed(text: str) -> None:
            self._change(alternatives.options[text](self._intention))

        box = QComboBox(self)
        box.addItems(list(alternatives.options))
        box.currentTextChanged.connect(changed)
        self.alternatives = box
        form = QFormLayout()
        form.addRow(alternatives.label, box)
        return form

    def _change(self, intention: Intention) -> None:
        self._intention = intention
        if self._titled is not None:
            title = self._titled(intention)
            self.heading.set_text(title)
            self.setWindowTitle(window_title(title))
        self._make_plan()

    def _make_plan(self) -> None:
        self._plan = None
        self.run_button.setEnabled(False)
        self.view.show_planning()
        self._planner.make(self._intention, self._plan_is_ready)

    def _plan_is_ready(self, result: Plan | GroupPlan | SnapTreeError) -> None:
        if isinstance(result, SnapTreeError):
            self.view.show_error(result)
            self._cancel_button.setFocus()
            return
        self._plan = result
        for tick, choice in zip(self.ticks, self._choices, strict=True):
            if choice.is_offered is not None and isinstance(result, Plan):
                tick.setVisible(tick.isChecked() or choice.is_offered(result))
        self.view.show_plan(result)
        self.run_button.setEnabled(not result.is_refused)
        # Enter runs what can be taken back; what can't be wants a deliberate step.
        is_harmless = not result.is_refused and result.undo is not None
        self.run_button.setDefault(is_harmless)
        self._cancel_button.setDefault(not is_harmless)
        (self.run_button if is_harmless else self._cancel_button).setFocus()
