"""The dialogs: what they ask, what they refuse, and that nothing happens before somebody says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QSignalSpy, QTest
from PySide6.QtWidgets import QLabel, QLineEdit, QMessageBox, QWidget
from pytestqt.qtbot import QtBot

from snaptree.hosts.connection import CredentialQuestion
from snaptree.jobs.connecting import CredentialsRequest
from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import Confidence, Figure, exact
from snaptree.plans.intention import Delete, Intention, Revert
from snaptree.plans.plan import Action, DeleteSnapshot, Finding, Forecast, Plan, RevertToSnapshot, StateAfter, Undo
from snaptree.ui.commands import OWN_JOBS
from snaptree.ui.connect_dialog import ConnectDialog, address_problem
from snaptree.ui.credentials_dialog import CredentialsDialog
from snaptree.ui.error_dialog import show_error
from snaptree.ui.plan_dialog import Alternatives, Choice, PlanDialog
from snaptree.ui.plan_view import FoldedNames, PlanView
from snaptree.ui.planning import Planner
from snaptree.ui.settings import HostRequest
from tests.ui.values import HOSTILE_NAMES, MIB, URI

DELETE = Plan(
    Action.DELETE,
    URI,
    "web",
    "web-01",
    ("s1",),
    steps=(DeleteSnapshot("s1", ("s2",), merges=True),),
    forecast=Forecast(copies=Figure(3 * MIB, Confidence.UPPER_BOUND), frees=exact(5 * MIB), seconds=40),
    warnings=(Finding("no-cancel", "A merge can't be stopped."),),
)
REVERT = Plan(
    Action.REVERT,
    URI,
    "web",
    "web-01",
    ("s1",),
    steps=(RevertToSnapshot("s1", StateAfter.AS_CAPTURED, "s2"),),
    undo=Undo("Goes back to before-revert.", "before-revert"),
)
REFUSED = Plan(
    Action.DELETE, URI, "web", "web-01", ("s1",), refusals=(Finding("fork", "Two stand on it.", "Delete one first."),)
)


@dataclass
class Answers:
    """A planner that answers when the test wants it to."""

    asked: list[Intention] = field(default_factory=list)
    ran: list[Plan] = field(default_factory=list)
    answer: Callable[[Plan | SnapTreeError], None] = lambda _result: None
    is_forgotten: bool = False

    def make(self, intention: Intention, on_ready: Callable[[Plan | SnapTreeError], None]) -> None:
        self.asked.append(intention)
        self.answer = on_ready

    def forget(self) -> None:
        self.is_forgotten = True

    def run(self, plan: Plan) -> None:
        self.ran.append(plan)


@pytest.fixture
def parent(qtbot: QtBot) -> QWidget:
    made = QWidget()
    qtbot.addWidget(made)
    made.show()
    return made


def preview(answers: Answers, parent: QWidget, intention: Intention | None = None, **more: object) -> PlanDialog:
    dialog = PlanDialog(
        cast("Planner", answers),
        intention or Delete(("s1",)),
        title="Delete s1",
        verb="&Delete",
        parent=parent,
        **more,  # type: ignore[arg-type]  # by name
    )
    dialog.open()
    return dialog


def texts(widget: QWidget) -> str:
    labels = [label for label in widget.findChildren(QLabel) if label.isVisibleTo(widget) and label.text()]
    assert all(label.textFormat() is Qt.TextFormat.PlainText for label in labels)
    return "\n".join(label.text() for label in labels)


# The preview


def test_the_preview_is_there_before_the_plan(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    assert dialog.isVisible()
    assert "Planning" in texts(dialog)
    assert not dialog.run_button.isEnabled()
    dialog.accept()
    assert answers.ran == []
    answers.answer(DELETE)
    shown = texts(dialog)
    for expected in ("Delete “s1” and merge its layer", "5.0 MiB", "≤ 3.0 MiB", "40 seconds", "can't be undone"):
        assert expected in shown
    assert "A merge can't be stopped." in shown
    dialog.run_button.click()
    assert answers.ran == [DELETE]
    assert not dialog.isVisible()


def test_finality_is_said_once(parent: QWidget) -> None:
    for reason, times in (("web-01 can't go back to “s1”; this can't be undone.", 1), ("It takes long.", 1)):
        answers = Answers()
        dialog = preview(answers, parent)
        answers.answer(replace(DELETE, warnings=(Finding("rule", reason),)))
        assert texts(dialog).count("can't be undone") == times
        dialog.close()


def test_finality_is_said_before_what_may_be_out_of_sight(parent: QWidget) -> None:
    said = "web-01 can't go back to “s1”; this can't be undone."
    for more in ((), (Finding("rule", said),)):
        answers = Answers()
        dialog = preview(answers, parent)
        answers.answer(replace(DELETE, warnings=(Finding("slow", "It takes long."), *more)))
        shown = texts(dialog.view)
        assert shown.index("can't be undone") < shown.index("It takes long.") < shown.index("What will happen")
        dialog.close()


def test_what_cannot_be_undone_needs_more_than_enter(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(DELETE)
    QTest.keyClick(dialog, Qt.Key.Key_Return)
    assert answers.ran == []
    dialog = preview(answers, parent)
    answers.answer(REVERT)
    assert "Goes back to before-revert." in texts(dialog)
    QTest.keyClick(dialog, Qt.Key.Key_Return)
    assert answers.ran == [REVERT]


def test_a_refusal_says_why_and_what_to_do(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(REFUSED)
    assert "Two stand on it.\nDelete one first." in texts(dialog)
    assert not dialog.run_button.isEnabled()
    dialog.accept()
    assert answers.ran == []


def test_no_plan_says_why(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(SnapTreeError("It vanished.", hint="Look again.", details="libvirt error 42"))
    assert "It vanished.\nLook again.\nlibvirt error 42" in texts(dialog)
    assert not dialog.run_button.isEnabled()


def test_a_choice_makes_another_plan(parent: QWidget) -> None:
    def apply(intention: Intention, ticked: bool) -> Intention:
        assert isinstance(intention, Revert)
        return replace(intention, take_safety_snapshot=ticked)

    answers = Answers()
    dialog = preview(answers, parent, Revert("s1"), choices=[Choice("Safety first", True, apply)], plan=REVERT)
    assert answers.asked == [], "it was made already"
    assert dialog.run_button.isEnabled()
    dialog.ticks[0].setChecked(False)
    assert answers.asked == [Revert("s1", take_safety_snapshot=False)]
    assert not dialog.run_button.isEnabled(), "the plan before is no longer what would be run"


def test_a_choice_is_offered_where_it_makes_a_difference(parent: QWidget) -> None:
    nothing_merged = replace(DELETE, steps=(DeleteSnapshot("s1", (), merges=False),))
    for plan, is_offered in ((DELETE, True), (nothing_merged, False)):
        answers = Answers()
        dialog = preview(answers, parent, Delete(("s1",)), choices=[OWN_JOBS])
        assert not dialog.ticks[0].isVisible()
        answers.answer(plan)
        assert dialog.ticks[0].isVisible() == is_offered
        dialog.close()


def test_why_nobody_knows_how_long_the_guest_stands_still_is_said(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(DELETE)
    assert "Guest stands still\n?" in texts(dialog)
    assert "Not known: how long the guest stands still (nothing of this kind was measured" in texts(dialog)


def test_one_of_several_makes_another_plan(parent: QWidget) -> None:
    def ending(state: StateAfter) -> Callable[[Intention], Intention]:
        return lambda intention: replace(intention, state_after=state) if isinstance(intention, Revert) else intention

    alternatives = Alternatives(
        "After&wards:", {"As captured": ending(StateAfter.AS_CAPTURED), "Off": ending(StateAfter.OFF)}
    )
    answers = Answers()
    dialog = preview(answers, parent, Revert("s1"), alternatives=alternatives, plan=REVERT)
    assert dialog.alternatives is not None
    assert dialog.alternatives.currentText() == "As captured"
    dialog.alternatives.setCurrentText("Off")
    assert answers.asked == [Revert("s1", state_after=StateAfter.OFF)]
    assert not dialog.run_button.isEnabled(), "the plan before is no longer what would be run"


def test_a_closed_preview_runs_nothing(parent: QWidget) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(DELETE)
    QTest.keyClick(dialog, Qt.Key.Key_Escape)
    assert answers.is_forgotten
    assert answers.ran == []


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_in_plans_are_plain_text(parent: QWidget, name: str) -> None:
    answers = Answers()
    dialog = preview(answers, parent)
    answers.answer(
        replace(DELETE, steps=(DeleteSnapshot(name, (), merges=True),), refusals=(Finding("x", name, name),))
    )
    assert texts(dialog)


# Hosts


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu+ssh://root@kvm-01:2222/system", "test:///default", "lxc:///"])
def test_addresses(uri: str) -> None:
    assert address_problem(uri, []) == ""


@pytest.mark.parametrize("uri", ["", "kvm-01", "qemu:/system", "qemu:/// system", "qemu+ssh://[::1/system"])
def test_no_addresses(uri: str) -> None:
    assert address_problem(uri, []).endswith((".", "system."))


def test_a_host_is_added_once(parent: QWidget) -> None:
    dialog = ConnectDialog(["qemu:///system"], parent)
    chosen = QSignalSpy(dialog.chosen)
    dialog.open()
    dialog.address.setEditText("qemu:///system")
    assert not dialog.connect_button.isEnabled()
    dialog.accept()
    assert chosen.count() == 0
    dialog.address.setEditText("  qemu+ssh://root@kvm-01/system ")
    dialog.read_only.setChecked(True)
    dialog.connect_button.click()
    assert chosen.at(0) == [HostRequest("qemu+ssh://root@kvm-01/system", read_only=True)]


def test_a_host_is_asked_for_in_no_more_room_than_that_takes(parent: QWidget) -> None:
    dialog = ConnectDialog([], parent)
    dialog.open()
    layout = dialog.layout()
    assert layout is not None
    assert dialog.height() <= layout.heightForWidth(dialog.width()) + 8
    dialog.address.setEditText("nonsense")
    assert dialog.problem.height() >= dialog.problem.heightForWidth(dialog.problem.width())
    dialog.close()


def test_credentials_are_answered_in_order_and_secrets_hidden(parent: QWidget) -> None:
    questions = (
        CredentialQuestion("User <b>name</b>:", is_secret=False, default="root"),
        CredentialQuestion("Password", is_secret=True),
    )
    request = CredentialsRequest(URI, questions)
    dialog = CredentialsDialog(request, parent)
    dialog.open()
    assert dialog.fields[1].echoMode() is QLineEdit.EchoMode.Password
    dialog.fields[1].setText("secret")
    dialog.accept()
    assert request.wait() == ["root", "secret"]


def test_credentials_can_be_refused(parent: QWidget) -> None:
    request = CredentialsRequest(URI, (CredentialQuestion("Password", is_secret=True),))
    dialog = CredentialsDialog(request, parent)
    dialog.open()
    QTest.keyClick(dialog, Qt.Key.Key_Escape)
    assert request.wait() is None


def test_errors_are_plain_text(parent: QWidget) -> None:
    box = show_error(SnapTreeError("<b>bad</b>", hint="<i>do</i>", details="raw & <u>"), parent)
    assert box.textFormat() is Qt.TextFormat.PlainText
    assert box.text() == "<b>bad</b>"
    assert box.detailedText() == "raw & <u>"
    assert isinstance(box, QMessageBox)
    assert not box.isModal() or box.windowModality() is Qt.WindowModality.WindowModal
    box.close()


def test_a_plan_names_all_that_goes_and_many_by_a_click(qtbot: QtBot) -> None:
    names = tuple(f"auto-{number}" for number in range(30))
    plan = replace(DELETE, snapshots=names)
    view = PlanView()
    qtbot.addWidget(view)
    view.show_plan(plan)
    assert "What goes: 30 snapshots" in [label.text() for label in view.findChildren(QLabel)]
    (folded,) = view.findChildren(FoldedNames)
    assert folded.label.text().split("\n") == list(names[:8])
    assert folded.more.text() == "Show All 30"
    folded.more.click()
    assert folded.label.text().split("\n") == list(names)
    assert folded.more.isHidden()
    view.show_plan(DELETE)
    assert not view.findChildren(FoldedNames), "the heading names it"
