"""A plan for people: refusals, warnings, steps and forecast. Dialogs that preview one have it inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, Qt
from PySide6.QtWidgets import (
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import Confidence, Figure
from snaptree.plans.group import GroupPlan
from snaptree.plans.plan import Action, Plan
from snaptree.plans.plan_words import steps_in_words
from snaptree.plans.totals import totals_of
from snaptree.ui import icons
from snaptree.ui.labels import PlainLabel, PlainLines, SectionTitle
from snaptree.ui.text import in_sentence, tooltip
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snaptree.plans.plan import Finding
    from snaptree.plans.totals import Totals

_SETTINGS_SHOWN = 50
_NAMES_SHOWN = 8
"""Of many; more are shown by a click."""


class Notice(QFrame):
    """A coloured box with a sign: something refused, warned about, or gone wrong."""

    def __init__(self, sign: str, text: str, more: str = "", parent: QWidget | None = None) -> None:
        """`sign` is `info`, `warning` or `error`."""
        super().__init__(parent)
        self._sign = sign
        self._picture = QLabel(self)
        self._picture.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.text = PlainLabel(text, self)
        self.more = PlainLabel(more, self, dim=True)
        self.more.setVisible(bool(more))
        self.texts = QVBoxLayout()
        self.texts.setSpacing(2)
        self.texts.addWidget(self.text)
        self.texts.addWidget(self.more)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 8, 10, 8)
        layout.setSpacing(8)
        layout.addWidget(self._picture)
        layout.addLayout(self.texts, 1)
        self.setProperty("sign", sign)
        self.setAccessibleName(f"{sign}: {text} {more}")
        self._dress()

    def changeEvent(self, event: QEvent) -> None:
        """The sign has the theme's colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._dress()

    def _dress(self) -> None:
        colours = colours_of(self.palette())
        colour = {"error": colours.error, "warning": colours.warning}.get(self._sign, colours.accent)
        self._picture.setPixmap(icons.pixmap(self._sign, colour, icons.SIZE, self.devicePixelRatioF()))


class FoldedNames(QWidget):
    """Names below each other; of many the first, and the others by a click."""

    def __init__(self, names: Sequence[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names = [in_sentence(name) for name in names]
        is_folded = len(self._names) > _NAMES_SHOWN + 1
        self.label = PlainLabel("\n".join(self._names[:_NAMES_SHOWN] if is_folded else self._names), self)
        self.more = QPushButton(f"Show All {len(self._names):,}", self)
        self.more.setFlat(True)
        self.more.setAutoDefault(False)
        self.more.setVisible(is_folded)
        self.more.clicked.connect(self._unfold)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.label)
        layout.addWidget(self.more, 0, Qt.AlignmentFlag.AlignLeft)

    def _unfold(self) -> None:
        self.more.hide()
        self.label.set_text("\n".join(self._names))


class PlanView(QScrollArea):
    """Shows that a plan is being made, then the plan, or why there is none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("The plan")
        self.show_planning()

    def show_planning(self) -> None:
        """Say that the plan is being made."""
        page, layout = self._new_page()
        bar = QProgressBar(page)
        bar.setRange(0, 0)
        bar.setTextVisible(False)
        layout.addWidget(PlainLabel("Planning: looking at the machine, its images, and who else uses them…", page))
        layout.addWidget(bar)
        self._show(page, layout)

    def show_nothing(self) -> None:
        """Say that there is nothing to plan yet."""
        page, layout = self._new_page()
        layout.addWidget(PlainLabel("There is no plan yet.", page, dim=True))
        self._show(page, layout)

    def show_error(self, error: SnapTreeError) -> None:
        """Say why no plan could be made."""
        page, layout = self._new_page()
        layout.addWidget(Notice("error", error.summary, error.hint, page))
        if error.details:
            layout.addWidget(PlainLabel(error.details, page, dim=True))
        self._show(page, layout)

    def show_plan(self, plan: Plan | GroupPlan) -> None:
        """Show the plan: what speaks against it first, if it is final, what it does and costs, how to undo it."""
        page, layout = self._new_page()
        left_out = plan.left_out if isinstance(plan, GroupPlan) and not plan.is_refused else ()
        for part in left_out:
            reasons = "\n".join(f"{refusal.reason} {refusal.remedy}".rstrip() for refusal in part.refusals)
            title = f"{in_sentence(part.domain)} is left out; the others go on without it."
            layout.addWidget(Notice("warning", title, reasons, page))
        for refusal in () if left_out else plan.refusals:
            layout.addWidget(_finding("error", refusal, page))
        members = plan.members if isinstance(plan, GroupPlan) else (plan,)
        parts = [part for part in members if part.steps]
        if parts and plan.undo is None and not plan.warns_of_finality:
            layout.addWidget(Notice("warning", "This can't be undone.", "", page))
        if not isinstance(plan, GroupPlan):
            for warning in sorted(plan.warnings, key=lambda each: not each.says_finality):
                layout.addWidget(_finding("warning", warning, page))
        if parts:
            if isinstance(plan, GroupPlan) and plan.when:
                layout.addWidget(Notice("info", plan.when, "", page))
            for part in parts:
                of = "" if part is plan else f" to {in_sentence(part.domain)}"
                if part.action is Action.PRUNE or (part.action is Action.DELETE and len(part.snapshots) > 1):
                    which = words.count(len(part.snapshots), "snapshot")
                    on = "" if part is plan else f" of {in_sentence(part.domain)}"
                    layout.addWidget(SectionTitle(f"What goes{on}: {which}", page))
                    layout.addWidget(FoldedNames(part.snapshots, page))
                layout.addWidget(SectionTitle(f"What will happen{of}", page))
                for warning in () if part is plan else part.warnings:
                    layout.addWidget(_finding("warning", warning, page))
                layout.addLayout(_numbered(steps_in_words(part.steps), page))
                if part.settings:
                    layout.addWidget(SectionTitle(f"Settings that change back{of}", page))
                    changes = PlainLines(page)
                    changes.show_lines(words.settings(part.settings, _SETTINGS_SHOWN))
                    layout.addWidget(changes)
            layout.addWidget(SectionTitle("What it costs", page))
            layout.addLayout(_costs(totals_of(plan), page))
            if plan.undo is not None:
                layout.addWidget(Notice("info", "This can be undone.", plan.undo.text, page))
        elif not plan.refusals and not plan.warnings:
            layout.addWidget(PlainLabel("There is nothing to do.", page))
        self._show(page, layout)

    def _new_page(self) -> tuple[QWidget, QVBoxLayout]:
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(8)
        return page, layout

    def _show(self, page: QWidget, layout: QVBoxLayout) -> None:
        layout.addStretch(1)
        self.setWidget(page)  # deletes the page before


def _finding(sign: str, finding: Finding, parent: QWidget) -> Notice:
    notice = Notice(sign, finding.reason, finding.remedy, parent)
    notice.setToolTip(tooltip(f"Rule: {finding.rule}"))
    return notice


def _numbered(texts: list[tuple[str, str]], parent: QWidget) -> QGridLayout:
    grid = QGridLayout()
    grid.setHorizontalSpacing(8)
    grid.setVerticalSpacing(4)
    grid.setColumnStretch(1, 1)
    for row, (number, text) in enumerate(texts):
        grid.addWidget(PlainLabel(number, parent, dim=True), row, 0, Qt.AlignmentFlag.AlignTop)
        grid.addWidget(PlainLabel(text, parent), row, 1)
    return grid


def _costs(totals: Totals, parent: QWidget) -> QGridLayout:
    rows: list[tuple[str, str, str]] = []
    forecast, more = totals.known, dict.fromkeys(totals.partly, " and more")

    def add_bytes(title: str, figure: Figure, what: str) -> None:
        if figure.bytes == 0 and figure.confidence is Confidence.EXACT and what not in more:
            return
        rows.append((title, f"{words.figure(figure)}{more.get(what, '')}", words.figure_in_full(figure)))

    def add_seconds(title: str, seconds: float | None, why_unknown: str) -> None:
        text = words.UNKNOWN if seconds is None else f"{words.about(seconds)}{more.get('seconds', '')}"
        rows.append((title, text, why_unknown))

    add_bytes("Comes back on disk", forecast.frees, "frees")
    add_bytes("Is copied first", forecast.copies, "copies")
    add_bytes("Space needed meanwhile", forecast.peak_extra, "peak_extra")
    if forecast.likely_extra is not None:
        rows.append(("Likely written", words.size(forecast.likely_extra), "As it was for this machine before."))
    add_seconds(
        "Takes",
        forecast.seconds,
        "" if forecast.seconds is not None else "Nothing of this kind was done on this host yet to learn it from.",
    )
    if forecast.pause_seconds != 0:
        add_seconds("Guest stands still", forecast.pause_seconds, "")
    grid = QGridLayout()
    grid.setHorizontalSpacing(16)
    grid.setVerticalSpacing(4)
    grid.setColumnStretch(1, 1)
    for number, (title, value, explanation) in enumerate(rows):
        grid.addWidget(PlainLabel(title, parent, dim=True), number, 0)
        label = PlainLabel(value, parent)
        label.setToolTip(tooltip(explanation))
        grid.addWidget(label, number, 1)
    why_unknown = [*totals.unknown]
    if forecast.pause_seconds is None:
        why_unknown.append(
            "Not known: how long the guest stands still (nothing of this kind was measured on this host yet)."
        )
    for sentence in why_unknown:
        grid.addWidget(PlainLabel(sentence, parent, dim=True), grid.rowCount(), 0, 1, 2)
    return grid
