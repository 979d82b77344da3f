"""What a new snapshot can hold, in words of its consequence, each with what it costs here or why it can't be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QCheckBox, QHBoxLayout, QRadioButton, QVBoxLayout, QWidget

from snaptree import words
from snaptree.model.estate import Consistency, MemorySnapshot
from snaptree.plans.intention import Capture
from snaptree.plans.plan import TakeSnapshot
from snaptree.ui.labels import PlainLabel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snaptree.plans.plan import Forecast, Plan

_INDENT = 24
_SAID_AS_REFUSAL = "no-memory-to-save"
"""A rule that only warns, as the disks are taken all the same: here they can be chosen for themselves."""


class Kind(StrEnum):
    """A choice; its word is what a template's {kind} becomes."""

    FROZEN = "frozen"
    DISKS = "disks"
    MEMORY = "memory"
    LIVE = "live"
    INTERNAL = "internal"

    @property
    def capture(self) -> Capture:
        """What the planner calls it."""
        match self:
            case Kind.INTERNAL:
                return Capture.INTERNAL
            case Kind.MEMORY | Kind.LIVE:
                return Capture.DISKS_AND_MEMORY
            case _:
                return Capture.DISKS


@dataclass(frozen=True, slots=True)
class _Words:
    title: str
    meaning: str
    off: str = ""
    """What it means for a machine that is off, where that is something else."""


_WORDS = {
    Kind.FROZEN: _Words(
        "Disks, file systems &frozen", "The guest agent holds them still for a moment: a revert needs no repair."
    ),
    Kind.DISKS: _Words(
        "&Disks only",
        "A revert is like switching it on after a power cut (crash-consistent).",
        "It is off, so its disks are at rest.",
    ),
    Kind.MEMORY: _Words(
        "With &memory, guest pauses", "A revert goes on exactly where the guest is now. It stands still while saved."
    ),
    Kind.LIVE: _Words("With memory, &live", "The same, but the guest runs on while it is saved. More is written."),
    Kind.INTERNAL: _Words(
        "&Inside the disk images",
        "No new files. The memory is saved too, and the guest pauses meanwhile.",
        "No new files.",
    ),
}


def kind_of(plan: Plan) -> Kind | None:
    """Which of the choices a plan carries out; None if it takes nothing."""
    step = next((step for step in plan.steps if isinstance(step, TakeSnapshot)), None)
    if step is None:
        return None
    if not step.overlays:
        return Kind.INTERNAL
    if step.memory is MemorySnapshot.EXTERNAL:
        return Kind.LIVE if step.live else Kind.MEMORY
    return Kind.FROZEN if step.consistency is Consistency.FILESYSTEM else Kind.DISKS


def _otherwise(kind: Kind, plan: Plan) -> str:
    """What a choice comes to here, where it is not what it is chosen for; empty where it is."""
    step = next((step for step in plan.steps if isinstance(step, TakeSnapshot)), None)
    if step is None or step.consistency is not Consistency.CRASH or kind is Kind.DISKS:
        return ""
    if kind is Kind.FROZEN:
        return "They can't be frozen now: a revert is like switching it on after a power cut (crash-consistent)."
    return (
        "Not all disks that the memory belongs to are in it, so it is not brought back: a revert is of the disks only."
    )


def why_not(plan: Plan) -> str:
    """Why a choice is none here, in sentences; empty if it is one."""
    against = [*plan.refusals, *(warning for warning in plan.warnings if warning.rule == _SAID_AS_REFUSAL)]
    return f"{against[0].reason} {against[0].remedy}".strip() if against else ""


def forecast_line(forecast: Forecast, *, is_active: bool, dirty_rate: int | None = None) -> str:
    """`≤ 256.0 KiB now, then about 1.2 GiB a day; pause of about 0.3 s; 48.0 GiB free`."""
    likely = forecast.likely_extra
    now = f"{words.figure(forecast.peak_extra)} now" if likely is None else f"About {words.size(likely)} now"
    growth = f", then about {words.size(forecast.growth)} a day" if forecast.growth else ""
    parts = [now + growth]
    pause = forecast.pause_seconds
    if is_active:
        if pause is None:
            parts.append("pause not known yet")
        else:
            parts.append(f"pause of about {words.pause(pause)}" if pause else "no pause")
        if forecast.seconds is not None and forecast.seconds > max(1.0, pause or 0.0):
            parts.append(f"takes {words.about(forecast.seconds)}")
    if dirty_rate is not None:
        changes = f"changes {words.size(dirty_rate)} a second of" if dirty_rate else "hardly changes"
        parts.append(f"it {changes} its memory")
    if forecast.free is not None:
        parts.append(f"{words.size(forecast.free)} free")
    return "; ".join(parts)


class TakeChoices(QWidget):
    """One radio button for each kind, the first with a tick that lets it give way."""

    chosen = Signal()
    """Another kind, or giving way or no more."""

    def __init__(self, parent: QWidget, *, is_active: bool) -> None:
        super().__init__(parent)
        self._is_active = is_active
        self.buttons: dict[Kind, QRadioButton] = {}
        self._meanings: dict[Kind, PlainLabel] = {}
        self._forecasts: dict[Kind, PlainLabel] = {}
        self._group = QButtonGroup(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        for kind in Kind:
            for widget in self._choice(kind):
                layout.addWidget(widget)
            if kind is Kind.FROZEN:
                self.gives_way = QCheckBox("Take it e&ven if they can't be frozen", self)
                self.gives_way.toggled.connect(self.chosen)
                indented = QHBoxLayout()
                indented.setContentsMargins(_INDENT, 2, 0, 0)
                indented.addWidget(self.gives_way)
                layout.addLayout(indented)
            layout.addSpacing(6)
        layout.addStretch(1)

    def _choice(self, kind: Kind) -> tuple[QWidget, ...]:
        button = QRadioButton(_WORDS[kind].title, self)
        button.toggled.connect(self._toggled)
        self._group.addButton(button)
        meaning, forecast = PlainLabel(self._meaning(kind), self), PlainLabel("", self, dim=True)
        for label in (meaning, forecast):
            label.setContentsMargins(_INDENT, 0, 0, 0)
        forecast.setMinimumHeight(self.fontMetrics().lineSpacing())
        self.buttons[kind], self._meanings[kind], self._forecasts[kind] = button, meaning, forecast
        self._describe(kind)
        return button, meaning, forecast

    @property
    def kind(self) -> Kind | None:
        """What is chosen; None as long as nobody has chosen, and nobody knows what is best."""
        return next((kind for kind, button in self.buttons.items() if button.isChecked()), None)

    def tick(self, kind: Kind) -> None:
        """Choose one without telling of it: nobody did."""
        self.buttons[kind].blockSignals(True)
        self.buttons[kind].setChecked(True)
        self.buttons[kind].blockSignals(False)
        self._let_tab_reach_what_is_chosen()

    def show_plans(self, plans: Mapping[Kind, Plan], dirty_rate: int | None) -> None:
        """Say of each what it costs, or grey it and say why it can't be."""
        for kind, plan in plans.items():
            reason = why_not(plan)
            button, meaning, forecast = self.buttons[kind], self._meanings[kind], self._forecasts[kind]
            button.setEnabled(not reason or button.isChecked())
            meaning.set_text(f"Not now: {reason}" if reason else _otherwise(kind, plan) or self._meaning(kind))
            meaning.setForegroundRole(forecast.foregroundRole() if reason else self.foregroundRole())
            forecast.setVisible(not reason)
            rate = dirty_rate if kind is Kind.LIVE else None
            forecast.set_text(forecast_line(plan.forecast, is_active=self._is_active, dirty_rate=rate))
            self._describe(kind)

    def _meaning(self, kind: Kind) -> str:
        return _WORDS[kind].meaning if self._is_active else _WORDS[kind].off or _WORDS[kind].meaning

    def _describe(self, kind: Kind) -> None:
        """What the labels say to eyes."""
        labels = (self._meanings[kind], self._forecasts[kind])
        self.buttons[kind].setAccessibleDescription(" ".join(label.text() for label in labels if not label.isHidden()))

    def _toggled(self, is_checked: bool) -> None:
        if is_checked:
            self._let_tab_reach_what_is_chosen()
            self.chosen.emit()

    def _let_tab_reach_what_is_chosen(self) -> None:
        """And only that, wherever the focus was before; arrow keys reach the others."""
        for button in self.buttons.values():
            policy = Qt.FocusPolicy.StrongFocus if button.isChecked() else Qt.FocusPolicy.ClickFocus
            button.setFocusPolicy(policy)
