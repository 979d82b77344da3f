"""Notes, marks and names in the window, by keyboard and menu, and what libvirt has on record afterwards."""

from __future__ import annotations

from collections.abc import Callable

import libvirt
import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLineEdit, QMessageBox

from snaptree.model.estate import Annotations
from snaptree.plans.intention import Describe
from snaptree.plans.operation import OperationState
from snaptree.ui.rename_dialog import RenameDialog
from snaptree.ui.snapshot_model import Column
from tests.kit.machines import EmbeddedHost, Machine
from tests.ui.conftest import Driver

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    """A machine that is off, with three external snapshots."""
    made = host.make_machine(running=False)
    for name, note in (("a", "clean install"), ("b", ""), ("c", "two\nlines")):
        made.virsh_take(name, note=note, flags=DISK_ONLY)
    return made


@pytest.fixture
def driver(open_window: OpenWindow, host: EmbeddedHost, machine: Machine) -> Driver:
    """A window that shows it."""
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    driver.view.setFocus()
    return driver


def editor(driver: Driver) -> QLineEdit:
    """The line in which a note is written."""

    def lines() -> list[QLineEdit]:
        return [line for line in driver.view.viewport().findChildren(QLineEdit) if line.isVisible()]

    driver.until(lines)
    (line,) = lines()
    return line


def edit(driver: Driver, name: str) -> QLineEdit:
    driver.view.select([name])
    QTest.keyClick(driver.window, Qt.Key.Key_F2)
    line = editor(driver)
    driver.until(line.hasFocus)
    return line


def note_of(driver: Driver, name: str) -> str:
    row = driver.view.snapshot_model.row_of(("snapshot", name))
    assert row is not None
    return driver.view.snapshot_model.text(row, Column.NOTE)


# Notes


def test_a_note_is_written_in_its_row(driver: Driver, machine: Machine) -> None:
    line = edit(driver, "a")
    assert line.text() == "clean install"
    assert line.selectedText() == line.text(), "typing writes another, and an arrow key goes on with this one"
    QTest.keyClicks(line, "<b>before</b> & after")
    QTest.keyClick(line, Qt.Key.Key_Return)
    assert driver.last_operation().plan.steps
    driver.until(lambda: note_of(driver, "a") == "<b>before</b> & after")
    assert machine.tree()["a"].description == "<b>before</b> & after"
    assert driver.view.selected_names() == ("a",)
    assert driver.view.hasFocus()
    assert not driver.window.activity.isVisible(), "what is seen in the tree needs no panel to open"

    driver.window.actions_.undo.trigger()
    driver.until(lambda: note_of(driver, "a") == "clean install")
    assert machine.tree()["a"].description == "clean install"
    assert not driver.window.activity.isVisible()


def test_escape_and_no_change_write_nothing(driver: Driver) -> None:
    line = edit(driver, "a")
    QTest.keyClicks(line, "never mind")
    QTest.keyClick(line, Qt.Key.Key_Escape)
    driver.until(lambda: not driver.view.is_editing)
    line = edit(driver, "b")
    QTest.keyClick(line, Qt.Key.Key_Return)
    driver.until(lambda: not driver.view.is_editing)
    assert not driver.operations
    assert note_of(driver, "a") == "clean install"


def test_what_is_read_meanwhile_does_not_disturb_who_writes(driver: Driver, machine: Machine) -> None:
    line = edit(driver, "b")
    QTest.keyClicks(line, "half a sen")
    machine.virsh_take("by-virsh", flags=DISK_ONLY)
    driver.until(lambda: driver.machine.tree is not None and "by-virsh" in driver.machine.tree)
    driver.window.actions_.refresh.trigger()
    driver.until(lambda: driver.window.page.machine is driver.machine)
    assert editor(driver) is line
    assert line.hasFocus()
    assert line.text() == "half a sen"
    QTest.keyClicks(line, "tence")
    QTest.keyClick(line, Qt.Key.Key_Return)
    driver.last_operation()
    driver.until(lambda: note_of(driver, "b") == "half a sentence")
    assert "by-virsh" in driver.names()
    assert driver.view.selected_names() == ("b",)


def test_a_click_elsewhere_writes_what_was_begun(driver: Driver, machine: Machine) -> None:
    line = edit(driver, "b")
    QTest.keyClicks(line, "kept")
    driver.window.estate_view.list.setFocus()
    driver.last_operation()
    assert machine.tree()["b"].description == "kept"


def test_a_note_whose_snapshot_vanished_is_not_thrown_away(driver: Driver, machine: Machine) -> None:
    line = edit(driver, "b")
    QTest.keyClicks(line, "a long story")
    machine.handle.snapshotLookupByName("b").delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    QTest.keyClick(line, Qt.Key.Key_Return)
    driver.until(lambda: driver.window.findChild(QMessageBox))
    dialog = driver.window.findChild(QMessageBox)
    assert isinstance(dialog, QMessageBox)
    assert "“b”" in dialog.text()
    assert "a long story" in dialog.detailedText()
    dialog.close()


def test_a_note_of_several_lines_is_written_in_the_inspector(driver: Driver, machine: Machine) -> None:
    driver.view.select(["c"])
    QTest.keyClick(driver.window, Qt.Key.Key_F2)
    note = driver.window.inspector.note
    driver.until(note.hasFocus)
    assert note.toPlainText() == "two\nlines"
    assert not driver.view.is_editing
    note.setPlainText("one\n\nand two")
    # A reading comes and goes, and the text stays.
    machine.change(Describe(("a",), pinned=True))
    driver.until(lambda: driver.machine.tree is not None and driver.machine.tree["a"].annotations.pinned is not None)
    driver.settle()
    assert note.toPlainText() == "one\n\nand two"
    QTest.keyClick(note, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)
    driver.last_operation()
    assert machine.tree()["c"].description == "one\n\nand two"
    driver.until(lambda: note_of(driver, "c") == "one and two")
    note.setPlainText("not this")
    QTest.keyClick(note, Qt.Key.Key_Escape)
    assert note.toPlainText() == "one\n\nand two"
    note.setPlainText("on \x1bleaving")  # as what was pasted may have it
    driver.view.setFocus()
    driver.until(lambda: machine.tree()["c"].description == "on leaving")
    driver.last_operation()


# Marks


def test_marks_of_several_come_and_go_together(driver: Driver, machine: Machine) -> None:
    pin, good = driver.window.actions_.pin, driver.window.actions_.known_good
    driver.view.select(["a", "b"])
    assert pin.text() == "&Pin"
    pin.trigger()
    driver.last_operation()
    driver.until(lambda: driver.window.selection().is_pinned)
    driver.until(lambda: pin.text() == "Un&pin")
    tree = machine.tree()
    assert [snapshot.name for snapshot in tree if snapshot.annotations.pinned] == ["a", "b"]
    assert driver.view.selected_names() == ("a", "b")
    driver.view.select(["b", "c"])
    assert pin.text() == "&Pin", "not all of these are"
    driver.view.select(["b"])
    good.trigger()
    driver.until(lambda: driver.window.selection().is_known_good)
    driver.settle()
    facts = {fact.title: fact for fact in driver.window.inspector.facts.facts}
    mark = tree["b"].annotations.pinned
    assert mark is not None
    assert facts["Pinned"].value.startswith(f"by {mark.by}, ")
    assert ":" in facts["Pinned"].explanation, "the exact time"
    row = driver.view.snapshot_model.row_of(("snapshot", "b"))
    assert row is not None
    assert f"by {mark.by}" in driver.view.snapshot_model.badges(row)[0].meaning
    pin.trigger()
    good.trigger()
    driver.until(lambda: len(driver.operations) == 4)
    driver.last_operation()
    assert machine.tree()["b"].annotations == Annotations()


def test_a_mark_is_taken_back_after_a_restart(open_window: OpenWindow, host: EmbeddedHost, machine: Machine) -> None:
    first = open_window(host.uri)
    first.show_machine(host.uri, machine.uuid)
    first.view.select(["a"])
    first.window.actions_.pin.trigger()
    first.last_operation()
    first.window.close()
    second = open_window(host.uri)
    second.show_machine(host.uri, machine.uuid)
    second.until(second.window.actions_.undo.isEnabled)
    assert "Unpin “a”" in second.window.actions_.undo.toolTip()
    second.window.actions_.undo.trigger()
    second.last_operation()
    assert machine.tree()["a"].annotations.pinned is None


def test_read_only_says_why_not(open_window: OpenWindow, host: EmbeddedHost, machine: Machine) -> None:
    driver = open_window(host.uri, read_only=True)
    driver.show_machine(host.uri, machine.uuid)
    driver.view.select(["a", "c"])
    actions = driver.window.actions_
    for action in (actions.pin, actions.known_good, actions.note):
        assert not action.isEnabled()
        assert "read-only" in action.toolTip()
    driver.view.select(["a"])
    assert driver.window.inspector.note.isReadOnly()
    assert "read-only" in driver.window.inspector.note.toolTip()
    QTest.keyClick(driver.window, Qt.Key.Key_F2)
    assert not driver.view.is_editing


# Names


def test_a_snapshot_is_renamed(driver: Driver, machine: Machine) -> None:
    driver.view.select(["b"])
    driver.window.actions_.rename.trigger()
    dialog = driver.dialog(RenameDialog)
    assert isinstance(dialog, RenameDialog)
    assert not dialog.run_button.isEnabled()
    for wrong, why in (("a", "already"), ("b b", "a space"), ("", "needs a name")):
        dialog.name.setText(wrong)
        assert why in dialog.problem.text()
        assert not dialog.run_button.isEnabled()
    dialog.name.selectAll()
    QTest.keyClicks(dialog.name, "before-upgrade")
    QTest.keyClick(dialog.name, Qt.Key.Key_Return)
    driver.last_operation()
    driver.until(lambda: "before-upgrade" in driver.names())
    assert machine.tree()["c"].parent == "before-upgrade"
    driver.window.actions_.undo.trigger()
    driver.until(lambda: "before-upgrade" not in driver.names())
    assert list(machine.tree().snapshots) == ["a", "b", "c"]


def test_an_internal_snapshot_says_why_it_keeps_its_name(open_window: OpenWindow, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.virsh_take("inside")
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    driver.view.select(["inside"])
    assert not driver.window.actions_.rename.isEnabled()
    assert "F2" in driver.window.actions_.rename.toolTip()


def test_a_failure_opens_the_panel(driver: Driver, machine: Machine) -> None:
    plan = machine.plan(Describe(("a",), note="mine"))
    machine.change(Describe(("a",), note="theirs"))
    driver.session.estate[driver.machine.id.uri].backend.run(plan)
    driver.until(lambda: driver.operations and driver.operations[-1].state is OperationState.FAILED)
    driver.until(driver.window.activity.isVisible)
