"""Looking at a snapshot in a new machine, in the window: offered, previewed, shown as what it is, and removed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QWidget
from pytestqt.qtbot import QtBot

from snaptree.model.estate import LooksAt
from snaptree.plans.intention import Capture, Take
from snaptree.plans.plan import Action
from snaptree.ui.actions import Actions
from snaptree.ui.availability import Selection
from snaptree.ui.machine import Machine as Shown
from snaptree.ui.machine import MachineId
from tests.kit.machines import NOW, EmbeddedHost
from tests.ui import values
from tests.ui.conftest import Driver

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]


def estate_text(driver: Driver, shown: Shown, role: Qt.ItemDataRole) -> str:
    model = driver.window.model
    return str(model.index_of(shown.id).data(role))


def test_a_look_comes_and_goes(open_window: OpenWindow, host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for number, name in enumerate(("one", "two")):
        machine.write(number)
        machine.change(Take(name, capture=Capture.DISKS))
    before = machine.contents()
    files = set(machine.directory.iterdir())
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    actions, inspector = driver.window.actions_, driver.window.inspector
    assert not actions.look.isEnabled()
    assert not actions.unlook.isEnabled()
    assert not inspector.unlook.isVisible()

    driver.view.select(["one"])
    assert inspector.look.isVisible()
    actions.look.trigger()
    dialog = driver.plan_dialog()
    assert [tick.isChecked() for tick in dialog.ticks] == [False, False]
    said = " ".join(label.text() for label in dialog.view.findChildren(QLabel))
    assert f"{machine.name}-at-one" in said
    assert "unplugged" in said
    dialog.ticks[0].click()
    dialog = driver.plan_dialog()
    dialog.accept()
    made = driver.last_operation()
    assert made.plan.action is Action.LOOK
    assert made.plan.undo is not None
    assert made.plan.undo.removes is not None
    look_id = MachineId(host.uri, made.plan.undo.removes)
    driver.until(lambda: (shown := driver.session.estate.machine(look_id)) is not None and shown.looks_at is not None)
    shown = cast(Shown, driver.session.estate.machine(look_id))
    assert shown.domain.state.is_active
    driver.until(lambda: driver.window.model.index_of(look_id).isValid())
    assert f"“one” of {machine.name}" in estate_text(driver, shown, Qt.ItemDataRole.ToolTipRole)
    assert f"“one” of {machine.name}" in estate_text(driver, shown, Qt.ItemDataRole.AccessibleTextRole)
    driver.until(lambda: ("Base of", shown.domain.name) in [fact[:2] for fact in inspector.facts.facts])
    assert actions.undo.isEnabled()

    driver.show_machine(*look_id)
    driver.until(actions.unlook.isEnabled)
    assert inspector.unlook.isVisible()
    assert ("Looks at", f"“one” of {machine.name}") in [fact[:2] for fact in inspector.facts.facts]
    actions.unlook.trigger()
    driver.plan_dialog().accept()
    assert driver.last_operation().plan.action is Action.UNLOOK
    driver.until(lambda: driver.session.estate.machine(look_id) is None)
    driver.show_machine(host.uri, machine.uuid)
    driver.until(lambda: not actions.undo.isEnabled())
    assert set(machine.directory.iterdir()) == files
    assert machine.contents() == before


def test_undo_of_a_look_says_what_is_lost(open_window: OpenWindow, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.change(Take("one", capture=Capture.DISKS))
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    driver.view.select(["one"])
    driver.window.actions_.look.trigger()
    driver.plan_dialog().accept()
    made = driver.last_operation()
    driver.until(driver.window.actions_.undo.isEnabled)
    driver.window.actions_.undo.trigger()
    dialog = driver.plan_dialog()
    assert f"{machine.name}-at-one" in dialog.windowTitle()
    assert "lost for good" in " ".join(label.text() for label in dialog.view.findChildren(QLabel))
    dialog.accept()
    assert driver.last_operation().plan.action is Action.UNLOOK
    driver.until(lambda: any(each.id == made.id and each.undone for each in driver.operations))
    assert machine.contents().keys() == {NOW, "one"}


def test_only_a_machine_that_was_made_for_it_is_offered_to_be_removed(qtbot: QtBot) -> None:
    window = QWidget()
    qtbot.addWidget(window)
    actions = Actions(window)
    ordinary = values.machine(values.chain(2))
    assert ordinary.tree is not None
    layers = values.layers_for(ordinary.tree)
    look = values.machine(values.chain(2), layers=replace(layers, looks_at=LooksAt("a", "db-01", "u")))
    for machine, offered in ((ordinary, False), (look, True), (None, False)):
        actions.offer(Selection(machine))
        assert actions.unlook.isEnabled() is offered
    actions.offer(Selection(ordinary, ("s1",)))
    assert actions.look.isEnabled()
    actions.offer(Selection(ordinary, ("s1", "s2")))
    assert "one snapshot only" in actions.look.toolTip()
