"""How findings look: their signs, and boxes with a button that shows the plan which cures them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QPushButton, QVBoxLayout, QWidget

from snaptree.model.troubles import Severity
from snaptree.ui.plan_view import Notice
from snaptree.ui.text import in_sentence, tooltip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PySide6.QtGui import QColor

    from snaptree.plans.advice import Advice, Cure
    from snaptree.plans.plan import Finding
    from snaptree.ui.theme import Colours

SIGNS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "info"}
"""Icons; their shapes tell how bad it is without their colours."""
_SHOWN: Final = 3
"""Findings in full; the others by a click."""
_TOLD: Final = 5
"""Of a machine's findings, in a tooltip."""


def sign_of(advice: Advice, colours: Colours) -> tuple[str, QColor]:
    """The icon for a finding in a list, and its colour."""
    colour = {Severity.ERROR: colours.error, Severity.WARNING: colours.warning}.get(advice.severity, colours.dim)
    return SIGNS[advice.severity], colour


def told(findings: Sequence[Advice]) -> list[str]:
    """Findings as lines of a tooltip, the worst first."""
    lines = [f"{each.severity.word.capitalize()}: {each.text}" for each in findings[:_TOLD]]
    return [*lines, f"and {len(findings) - _TOLD} more"] if len(findings) > _TOLD else lines


class FindingNotice(Notice):
    """A finding, why it matters, what to do, and the button that shows the plan for it."""

    pressed = Signal()

    def __init__(self, advice: Advice, about: str, parent: QWidget | None = None) -> None:
        """`about` is the machine that it stands beside: only another one's name has to be said."""
        super().__init__(SIGNS[advice.severity], advice.text, f"{advice.why} {advice.remedy}".strip(), parent)
        self.cure = advice.cure
        self.button: QPushButton | None = None
        if advice.cure is not None:
            of = "" if advice.cure.uuid == about else f" for {in_sentence(advice.cure.domain)}".replace("&", "&&")
            self.button = QPushButton(f"Show Plan{of}…", self)
            self.button.setAutoDefault(False)
            self.button.clicked.connect(self.pressed)
            self.texts.addSpacing(2)
            self.texts.addWidget(self.button, 0, Qt.AlignmentFlag.AlignLeft)
        self.offer(None)

    def offer(self, reason: Finding | None) -> None:
        """Let its plan be asked for, unless there is a reason against that now: the button says it then."""
        if self.button is not None:
            self.button.setEnabled(reason is None)
            why = "" if reason is None else f"{reason.reason} {reason.remedy}".strip()
            self.button.setToolTip(tooltip(why))
            self.button.setAccessibleDescription(f"{self.text.text()} {why}".strip())


class Findings(QWidget):
    """The findings of one machine or host below each other; without any it takes no room."""

    cure_wanted = Signal(object)
    """Cure"""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._findings: tuple[Advice, ...] = ()
        self._about = ""
        self.notices: list[FindingNotice] = []
        self.more = QPushButton(self)
        self.more.setFlat(True)
        self.more.setAutoDefault(False)
        self.more.clicked.connect(self._show_all)
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(4)
        self.hide()

    def show_findings(self, findings: tuple[Advice, ...], about: str = "") -> None:
        """Show these, which are about the machine with this UUID. The same ones are not drawn again."""
        if (findings, about) == (self._findings, self._about):
            return
        self._findings, self._about = findings, about
        for notice in self.notices:
            self._layout.removeWidget(notice)
            notice.hide()
            notice.deleteLater()
        self._layout.removeWidget(self.more)
        self.notices = [FindingNotice(advice, about, self) for advice in findings]
        for number, notice in enumerate(self.notices):
            notice.pressed.connect(self._pressed)
            notice.setVisible(number < _SHOWN)
            self._layout.addWidget(notice)
        self._layout.addWidget(self.more, 0, Qt.AlignmentFlag.AlignLeft)
        self.more.setText(f"Show {len(findings) - _SHOWN} More")
        self.more.setVisible(len(findings) > _SHOWN)
        self.setVisible(bool(findings))

    def offer(self, why_not: Callable[[Cure], Finding | None]) -> None:
        """Offer the plans that nothing speaks against at present."""
        for notice in self.notices:
            if notice.cure is not None:
                notice.offer(why_not(notice.cure))

    def _show_all(self) -> None:
        self.more.hide()
        for notice in self.notices:
            notice.show()

    def _pressed(self) -> None:
        notice = self.sender()
        if isinstance(notice, FindingNotice):
            self.cure_wanted.emit(notice.cure)
