"""A policy as fields: how many of each period to keep, what else, and which snapshots it speaks of."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from PySide6.QtCore import QSignalBlocker, Qt, Signal
from PySide6.QtGui import QValidator
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QGridLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy import ALL, Duration, Period, Policy
from snaptree.plans.policy_file import PolicyFile, PolicyFileError, parse_size
from snaptree.ui.labels import PlainLabel, SectionTitle
from snaptree.ui.text import menu_text, tooltip

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")

START: Final = Policy(MappingProxyType({Period.LAST: 7, Period.DAILY: 14, Period.WEEKLY: 8, Period.MONTHLY: 12}))
"""What the form says at first: of what schedules took in three months nearly all is kept."""

_PERIODS: Final = {
    Period.LAST: ("&Last", 50, "The newest, so many of them."),
    Period.HOURLY: ("&Hourly", 48, "The newest of each of the last so many hours that have any."),
    Period.DAILY: ("&Daily", 31, "The newest of each of the last so many days that have any."),
    Period.WEEKLY: ("&Weekly", 52, "The newest of each of the last so many weeks that have any."),
    Period.MONTHLY: ("&Monthly", 36, "The newest of each of the last so many months that have any."),
    Period.YEARLY: ("&Yearly", 10, "The newest of each of the last so many years that have any."),
}
"""Label, where the slider ends, and what it means."""
_MOST: Final = 9_999
_OWN: Final = "As set here"
BY_SCHEDULES: Final = "By schedules"
BY_ANYBODY: Final = "By schedules or by hand"
_BY_WHOM: Final = (
    "Only what a schedule made may go, whatever its name, unless what was made by hand may as well."
    " Safety snapshots are among that only if a name is asked for that fits them."
)
_TIME: Final = "Years, months, weeks, days and hours, like 1y6m2w3d12h."


class CountBox(QSpinBox):
    """How many; one more than the most is all."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setRange(0, _MOST + 1)

    @property
    def count(self) -> int:
        """How many, or ALL."""
        return ALL if self.value() > _MOST else self.value()

    @count.setter
    def count(self, count: int) -> None:
        self.setValue(_MOST + 1 if count == ALL else min(count, _MOST))

    def textFromValue(self, value: int) -> str:
        """The number, or "all"."""
        return "all" if value > _MOST else str(value)

    def valueFromText(self, text: str) -> int:
        """The number that is meant."""
        return _MOST + 1 if text.strip().casefold() == "all" else int(text.strip() or 0)

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:
        """Numbers, and the word."""
        word = text.strip().casefold()
        if "all".startswith(word):
            return QValidator.State.Acceptable if word == "all" else QValidator.State.Intermediate, text, position
        return super().validate(text, position)


class PolicyForm(QScrollArea):
    """Fields for a policy, and a choice of those in the user's file. Nothing is read or worked out here."""

    changed = Signal()
    """It says something else now, or nothing that can be used."""
    file_chosen = Signal(object)
    """NamedPolicy: the user wants this one of the file."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._base = START
        """What the fields say nothing about comes from here."""
        self._file = PolicyFile()
        self._is_filling = False
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setAccessibleName("Policy")
        page = QWidget(self)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 0, 8, 0)
        column.setSpacing(6)
        self.choice = QComboBox(page)
        self.choice.addItem(_OWN)
        self.choice.setAccessibleName("Policy of your file")
        self.choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.choice.setMinimumContentsLength(12)
        self.choice.activated.connect(self._chosen)
        self.mistakes = PlainLabel("", page)
        self.mistakes.setObjectName("problem")
        self.mistakes.hide()
        column.addWidget(self.choice)
        column.addWidget(self.mistakes)
        column.addWidget(SectionTitle("Keep", page))
        column.addLayout(self._counts(page))
        column.addLayout(self._more(page))
        column.addWidget(SectionTitle("Let no more go than it takes", page))
        column.addLayout(self._limits(page))
        column.addWidget(SectionTitle("Which snapshots", page))
        column.addLayout(self._scope(page))
        self.problem = PlainLabel("", page)
        self.problem.setObjectName("problem")
        self.problem.hide()
        column.addWidget(self.problem)
        column.addStretch(1)
        self.setWidget(page)
        self.setMinimumWidth(page.minimumSizeHint().width() + 20)
        self.wanted_width = page.sizeHint().width() + 24
        """Pixels in which all of it can be read, a scroll bar beside it."""
        self._fill(START)

    # What it says

    def policy(self) -> Policy | None:
        """What the fields say; None if one of them says nothing that can be used, which is told beside it."""
        base = self._base
        try:
            found = replace(
                base,
                counts=MappingProxyType({period: box.count for period, box in self.counts.items()}),
                within=_read(self.within, Duration.parse, base.within, _time(base.within)),
                minimum_age=_read(self.minimum_age, Duration.parse, base.minimum_age, _time(base.minimum_age)),
                keep_forks=self.forks.isChecked(),
                maximum_depth=self.layers.value() or None,
                free_at_least=_read(self.free, parse_size, base.free_at_least, _size(base.free_at_least)),
                scope=replace(
                    base.scope,
                    by_hand=self.by_hand.currentIndex() == 1,
                    names=_words(self.names),
                    tags=tuple(tag.lstrip("#") for tag in _words(self.tags)),
                    owners=_words(self.owners),
                ),
            )
        except SnapTreeError as error:
            self._say(f"{error.summary} {error.hint}")
            return None
        self._say("")
        return found

    def _say(self, problem: str) -> None:
        self.problem.set_text(problem)
        self.problem.setVisible(bool(problem))
        if problem:
            self.ensureWidgetVisible(self.problem)

    # The user's file

    def show_file(self, result: PolicyFile | SnapTreeError) -> None:
        """Offer the policies of a file, and say what is wrong with it."""
        problems = result.problems if isinstance(result, PolicyFile | PolicyFileError) else ()
        if problems or isinstance(result, SnapTreeError):
            says = "\n".join(["The file of policies has mistakes:", *map(str, problems)]) if problems else str(result)
            self.mistakes.set_text(says)
            self.mistakes.show()
        if isinstance(result, PolicyFile):
            self._file = result
            for name in result.policies:
                self.choice.addItem(menu_text(name), name)

    def _chosen(self, index: int) -> None:
        name = self.choice.itemData(index)
        if name is None:
            return
        named = self._file.policy(name)
        self._fill(named.policy)
        self.choice.setCurrentIndex(index)
        self.file_chosen.emit(named)
        self.changed.emit()

    def _fill(self, policy: Policy) -> None:
        """Say what a policy says."""
        self._is_filling = True
        self._base = policy
        for period, box in self.counts.items():
            box.count = policy.counts.get(period, 0)
        self.within.setText(_time(policy.within))
        self.minimum_age.setText(_time(policy.minimum_age))
        self.forks.setChecked(policy.keep_forks)
        self.layers.setValue(policy.maximum_depth or 0)
        self.free.setText(_size(policy.free_at_least))
        self.by_hand.setCurrentIndex(int(policy.scope.by_hand))
        self.names.setText(", ".join(policy.scope.names))
        self.tags.setText(", ".join(policy.scope.tags))
        self.owners.setText(", ".join(policy.scope.owners))
        self._is_filling = False

    def _edited(self) -> None:
        if not self._is_filling:
            with QSignalBlocker(self.choice):
                self.choice.setCurrentIndex(0)
            self.changed.emit()

    # Building

    def _counts(self, page: QWidget) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(1, 1)
        self.counts: dict[Period, CountBox] = {}
        self.sliders: dict[Period, QSlider] = {}
        for row, (period, (text, most, meaning)) in enumerate(_PERIODS.items()):
            label, box, slider = QLabel(text, page), CountBox(page), QSlider(Qt.Orientation.Horizontal, page)
            label.setBuddy(box)
            slider.setRange(0, most + 1)  # its very end is all
            slider.setPageStep(5)
            slider.setMinimumWidth(60)
            name = text.replace("&", "")
            box.setAccessibleName(f"Keep {name.lower()}")
            slider.setAccessibleName(f"Keep {name.lower()}")
            for widget in (label, box, slider):
                widget.setToolTip(tooltip(meaning))
            box.valueChanged.connect(self._follows(slider, most))
            slider.valueChanged.connect(self._leads(box, most))
            grid.addWidget(label, row, 0)
            grid.addWidget(slider, row, 1)
            grid.addWidget(box, row, 2)
            self.counts[period], self.sliders[period] = box, slider
        return grid

    def _follows(self, slider: QSlider, most: int) -> Callable[[int], None]:
        def follow(value: int) -> None:
            with QSignalBlocker(slider):
                slider.setValue(most + 1 if value > _MOST else min(value, most))
            self._edited()

        return follow

    def _leads(self, box: CountBox, most: int) -> Callable[[int], None]:
        def lead(value: int) -> None:
            box.count = ALL if value > most else value

        return lead

    def _more(self, page: QWidget) -> QFormLayout:
        form = _form()
        self.within = self._line("2d", f"All that are not so much older than the newest. {_TIME}")
        self.minimum_age = self._line("36h", f"All that are younger. {_TIME}")
        self.forks = QCheckBox("Fork&s", page)
        self.forks.setToolTip(tooltip("Those from which several others descend."))
        self.forks.toggled.connect(self._edited)
        form.addRow("W&ithin", self.within)
        form.addRow("Minimum a&ge", self.minimum_age)
        form.addRow("", self.forks)
        return form

    def _limits(self, page: QWidget) -> QFormLayout:
        form = _form()
        self.layers = QSpinBox(page)
        self.layers.setRange(0, _MOST)
        self.layers.setSpecialValueText("any")
        self.layers.setSuffix(" layers")
        self.layers.setToolTip(tooltip("For each disk to stand on so many layers at most."))
        self.layers.valueChanged.connect(self._edited)
        self.free = self._line("20 GiB", "For so much to come back on each machine.")
        form.addRow("Ma&ximum depth", self.layers)
        form.addRow("&Free at least", self.free)
        return form

    def _scope(self, page: QWidget) -> QFormLayout:
        form = _form()
        self.by_hand = QComboBox(page)
        self.by_hand.addItems([BY_SCHEDULES, BY_ANYBODY])
        self.by_hand.setToolTip(tooltip(_BY_WHOM))
        self.by_hand.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.by_hand.setMinimumContentsLength(12)
        self.by_hand.currentIndexChanged.connect(self._edited)
        self.names = self._line("any", "Patterns like those of files, separated by commas: auto-*. Others are kept.")
        self.tags = self._line("any", "Words that stand in the note behind a #, separated by commas.")
        self.owners = self._line("anybody", "Who took them, separated by commas.")
        form.addRow("Mad&e", self.by_hand)
        form.addRow("&Name", self.names)
        form.addRow("&Tag", self.tags)
        form.addRow("Owne&r", self.owners)
        return form

    def _line(self, example: str, meaning: str) -> QLineEdit:
        line = QLineEdit(self)
        line.setPlaceholderText(example)
        line.setToolTip(tooltip(meaning))
        line.textChanged.connect(self._edited)
        return line


def _form() -> QFormLayout:
    form = QFormLayout()
    form.setHorizontalSpacing(8)
    form.setVerticalSpacing(4)
    form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.DontWrapRows)
    return form


def _read(line: QLineEdit, parse: Callable[[str], _Value], before: _Value | None, text_before: str) -> _Value | None:
    """What a line says; what it showed from the beginning is what that was, to the byte."""
    text = line.text().strip()
    if text == text_before:
        return before
    return parse(text) if text else None


def _size(number: int | None) -> str:
    return "" if number is None else words.size(number)


def _time(duration: Duration | None) -> str:
    return "" if duration is None else str(duration)


def _words(line: QLineEdit) -> tuple[str, ...]:
    return tuple(word for part in line.text().split(",") if (word := part.strip()))
