"""Several machines taken together in the window: chosen, previewed as one, shown as a group, and taken back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel

from snaptree.ui.group_take_dialog import GroupTakeDialog
from snaptree.ui.machine_order import MachineOrder
from tests.kit.machines import NOW, EmbeddedHost, wait_for_the_next_second
from tests.ui.conftest import Driver

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]


def texts(dialog: GroupTakeDialog) -> str:
    return " ".join(label.text() for label in dialog.view.findChildren(QLabel))


def group_badge(driver: Driver, name: str) -> str:
    """What the badge says that a snapshot has for being one of a group."""
    model = driver.view.snapshot_model
    rows = (row for row in range(model.rowCount()) if (shown := model.snapshot(row)) is not None and shown.name == name)
    return " ".join(badge.meaning for row in rows for badge in model.badges(row) if badge.text == "group")


def test_a_group_is_taken_reverted_and_deleted_together(open_window: OpenWindow, host: EmbeddedHost) -> None:
    pair = [host.make_machine(name=name) for name in ("group-db", "group-web")]
    for number, machine in enumerate(pair):
        machine.write(number)
    driver = open_window(host.uri)
    driver.show_machine(host.uri, pair[0].uuid)
    actions = driver.window.actions_
    actions.take_group.trigger()
    dialog = driver.dialog(GroupTakeDialog)
    assert isinstance(dialog, GroupTakeDialog)
    assert dialog.ticked() == (pair[0].uuid,)
    assert "two machines" in dialog.problem.text()
    assert not dialog.take_button.isEnabled()
    dialog.machines[pair[1].uuid].click()
    dialog.name.setText("together")
    dialog.note.setPlainText("before it")
    driver.until(dialog.take_button.isEnabled)
    assert "to group-db" in texts(dialog)
    assert "to group-web" in texts(dialog)
    assert "can be undone" in texts(dialog)
    dialog.accept()
    driver.last_operation()
    assert [operation.plan.domain for operation in driver.operations] == ["group-db", "group-web"]
    assert [machine.tree()["together"].description for machine in pair] == ["before it"] * 2

    driver.until(lambda: "together" in (driver.machine.tree or ()))
    group = pair[0].tree()["together"].annotations.group
    driver.until(lambda: len(driver.machine.together.get(group, ())) == 2)
    driver.until(lambda: "group-web" in group_badge(driver, "together"))

    for number, machine in enumerate(pair):
        machine.write(number + 10)
    later = [machine.contents() for machine in pair]
    driver.view.select(["together"])
    driver.until(actions.revert_group.isEnabled)
    wait_for_the_next_second()
    actions.revert_group.trigger()
    preview = driver.plan_dialog()
    order = preview.findChild(MachineOrder)
    assert order is not None
    assert order.uuids == tuple(machine.uuid for machine in pair)
    order.list.setFocus()
    QTest.keyClick(order.list, Qt.Key.Key_Down, Qt.KeyboardModifier.AltModifier)
    assert order.uuids == (pair[1].uuid, pair[0].uuid)
    driver.until(preview.run_button.isEnabled)
    preview.accept()
    driver.last_operation()
    assert [operation.plan.domain for operation in driver.operations[-2:]] == ["group-web", "group-db"]
    assert [machine.contents()[NOW] for machine in pair] == [each["together"] for each in later]

    wait_for_the_next_second()
    driver.until(actions.undo.isEnabled)
    actions.undo.trigger()
    driver.plan_dialog().accept()
    driver.last_operation()
    assert [machine.contents() for machine in pair] == later

    driver.until(actions.undo.isEnabled)
    actions.undo.trigger()
    preview = driver.plan_dialog()
    assert "2 machines" in preview.windowTitle()
    assert preview.run_button.text() == "&Delete All"
    preview.accept()
    driver.last_operation()
    assert [list(machine.tree().snapshots) for machine in pair] == [[], []]
