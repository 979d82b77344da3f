"""What was interrupted, in the window: it is said, offered to be finished or left, and earlier work can be undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QPushButton

from snaptree.hosts.journal import Journal, journal_path
from snaptree.hosts.running import run_plan
from snaptree.model.troubles import Severity
from snaptree.plans.intention import Capture, Revert, Take
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Action
from snaptree.ui.machine import MachineId
from snaptree.ui.plan_view import Notice
from tests.hosts.test_recovery import by_libvirt
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import NOW, Machine, unchanged
from tests.ui.conftest import Driver
from tests.ui.test_text import read_tooltip

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]


@pytest.fixture
def machine(daemon: LibvirtDaemon) -> Machine:
    """A running machine with three external snapshots, each with content of its own."""
    made = daemon.make_machine()
    for number, name in enumerate(("one", "two", "three")):
        made.write(number)
        made.change(Take(name, capture=Capture.DISKS))
    made.write(9)
    return made


@pytest.fixture
def path(daemon: LibvirtDaemon) -> Path:
    """Where the window keeps its journal."""
    return journal_path(daemon.uri)


def button(driver: Driver, text: str) -> QPushButton:
    banner = driver.window.page.banners["unfinished"]
    return next(each for each in banner.findChildren(QPushButton) if text in each.text())


def said(driver: Driver) -> str:
    return " ".join(f"{each.text.text()} {each.more.text()}" for each in driver.plan_dialog().view.findChildren(Notice))


def test_what_was_interrupted_is_offered_and_finished(
    open_window: OpenWindow, daemon: LibvirtDaemon, machine: Machine, path: Path
) -> None:
    before = machine.contents()
    run_and_kill(daemon.uri, by_libvirt(machine, "one", "two"), path, Moment.BEGUN, 1)
    driver = open_window(daemon.uri)
    driver.show_machine(daemon.uri, machine.uuid)
    banner = driver.window.page.banners["unfinished"]
    driver.until(banner.isVisible)
    assert "A delete was interrupted on" in banner.text
    assert "after 1 of 2 steps" in banner.text
    worst = driver.machine.worst
    assert worst is not None
    assert (worst.severity, worst.text) == (Severity.ERROR, banner.text)
    model = driver.view.snapshot_model
    marked = {name: [badge.text for badge in model.badges(row)] for row, name in enumerate(driver.names())}
    assert "half deleted" in marked["two"]
    assert "half deleted" not in marked["three"]

    actions = driver.window.actions_
    driver.view.select(["three"])
    for action in (actions.take, actions.revert, actions.delete):
        assert not action.isEnabled()
        assert "was interrupted" in read_tooltip(action.toolTip())

    # By keyboard alone.
    finish = button(driver, "Finish")
    assert finish.focusPolicy() & Qt.FocusPolicy.TabFocus
    finish.setFocus()
    QTest.keyClick(finish, Qt.Key.Key_Space)
    assert "Half done" in said(driver)
    driver.plan_dialog().run_button.click()
    driver.until(lambda: driver.operations and driver.operations[-1].plan.action is Action.FINISH)
    assert driver.last_operation().state is OperationState.DONE
    driver.until(lambda: not banner.isVisible())
    driver.until(lambda: driver.names() == ["three", "Now"])
    driver.until(actions.take.isEnabled)
    assert unchanged(before, machine.contents(), "one", "two")
    details = [
        row.detail.text
        for row in driver.window.activity.findChildren(type(driver.window.activity.row(driver.operations[-1].id)))
    ]
    assert any("taken up again" in detail for detail in details)


def test_what_was_interrupted_is_left_as_it_is(
    open_window: OpenWindow, daemon: LibvirtDaemon, machine: Machine, path: Path
) -> None:
    before = machine.contents()
    run_and_kill(daemon.uri, by_libvirt(machine, "one", "two"), path, Moment.BEGUN, 0)
    driver = open_window(daemon.uri)
    driver.show_machine(daemon.uri, machine.uuid)
    driver.until(driver.window.page.banners["unfinished"].isVisible)
    button(driver, "Leave").click()
    assert "do not revert to it" in said(driver)
    driver.plan_dialog().run_button.click()
    driver.until(lambda: not driver.window.page.banners["unfinished"].isVisible())
    driver.until(driver.window.actions_.take.isEnabled)
    assert machine.contents() == before


def test_other_machines_are_not_held_up(
    open_window: OpenWindow, daemon: LibvirtDaemon, machine: Machine, path: Path
) -> None:
    other = daemon.make_machine(running=False)
    run_and_kill(daemon.uri, by_libvirt(machine, "one"), path, Moment.BEGUN, 0)
    driver = open_window(daemon.uri)
    driver.show_machine(daemon.uri, machine.uuid)
    driver.until(driver.window.page.banners["unfinished"].isVisible)
    driver.show_machine(daemon.uri, other.uuid)
    assert not driver.window.page.banners["unfinished"].isVisible()
    driver.until(driver.window.actions_.take.isEnabled)


def test_earlier_work_is_shown_with_its_undo(open_window: OpenWindow, daemon: LibvirtDaemon, path: Path) -> None:
    machine = daemon.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.INTERNAL))
    machine.write(2)
    before = machine.contents()
    journal = Journal(path)
    assert run_plan(daemon.connection, machine.plan(Revert("good")), journal=journal).error is None
    assert machine.contents()[NOW] == before["good"]

    driver = open_window(daemon.uri)
    driver.show_machine(daemon.uri, machine.uuid)
    driver.until(lambda: driver.window.activity.operations)
    (earlier,) = driver.window.activity.operations
    row = driver.window.activity.row(earlier.id)
    assert "ago: Done in" in row.detail.text
    assert row.title.text == f"Revert {machine.name} to “good”"
    assert not driver.window.activity.isVisible(), "nothing new goes on"
    driver.until(driver.window.actions_.undo.isEnabled)
    driver.window.actions_.activity.trigger()
    assert row.undo.isVisible()
    row.undo.click()
    driver.last_operation()
    driver.until(lambda: not row.undo.isVisible())
    assert machine.contents() == before
    assert [each.undone for each in journal.recent()] == [False, True]
    journal.close()
    assert driver.session.estate.machine(MachineId(daemon.uri, machine.uuid))
