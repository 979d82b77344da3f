"""The prune sheet over real machines: what goes is seen before anything is done, and what was seen is what goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint, Qt, QTime
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel

from snaptree.jobs import prune_preview
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Action
from snaptree.plans.policy import ALL, Period
from snaptree.ui.machine import Machine as ShownMachine
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.prune_dialog import PruneDialog
from snaptree.ui.prune_view import WHY
from tests.kit.machines import NOW, EmbeddedHost, Machine
from tests.ui.conftest import Driver

pytestmark = pytest.mark.qemu

OpenWindow = Callable[..., Driver]

POLICIES = """
[policy.few]
machines = ["prune-*"]
keep-last = 1
by-hand = true
"""


def make_machine(host: EmbeddedHost, name: str) -> Machine:
    machine = host.make_machine(name=name)
    for seed, snapshot in enumerate(("a", "b", "c", "d")):
        machine.write(seed, offset=seed * 64 * 1024)
        machine.virsh_take_disk_only(snapshot)
    return machine


def sheet(driver: Driver) -> PruneDialog:
    driver.window.actions_.prune.trigger()
    dialog = driver.dialog(PruneDialog)
    assert isinstance(dialog, PruneDialog)
    return dialog


def why(dialog: PruneDialog) -> dict[str, str]:
    """What is said of each snapshot; with a line through its name if it is struck out."""
    rows = dialog.tree.decided
    found = {}
    for row in range(rows.rowCount()):
        if (snapshot := rows.snapshot(row)) is not None:
            found[snapshot.name] = rows.text(row, WHY)
            assert rows.is_struck_out(row) == found[snapshot.name].startswith("goes"), snapshot.name
    return found


def keep_last(driver: Driver, dialog: PruneDialog, number: int) -> None:
    for period, box in dialog.form.counts.items():
        box.count = number if period is Period.LAST else 0
    driver.until(lambda: dialog.is_up_to_date)


def test_what_is_seen_goes_on_all_machines_that_are_ticked(
    open_window: OpenWindow, host: EmbeddedHost, tmp_path: Path
) -> None:
    first, second = (make_machine(host, name) for name in ("prune-1", "prune-2"))
    before = [machine.contents() for machine in (first, second)]
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(POLICIES)
    driver = open_window(host.uri)
    driver.show_machine(host.uri, first.uuid)
    dialog = sheet(driver)
    assert dialog.machines.ticked() == (first.uuid,)
    driver.until(lambda: "4 snapshots were not made by a schedule" in dialog.remarks.text())
    assert dialog.sums.text() == "Nothing goes: all 4 snapshots are kept."
    assert not dialog.prune_button.isEnabled()
    assert why(dialog)["a"] == "kept: not made by a schedule"

    keep_last(driver, dialog, 2)
    dialog.form.names.setText("[ab]")
    driver.until(lambda: dialog.remarks.text().startswith("2 snapshots match the name but were not made by a schedule"))
    assert "choose “By schedules or by hand”" in dialog.remarks.text()
    assert not dialog.prune_button.isEnabled(), "a name alone lets nothing go that was made by hand"
    dialog.form.names.clear()
    dialog.form.by_hand.setCurrentIndex(1)
    driver.until(lambda: dialog.is_up_to_date)
    assert dialog.prune_button.isEnabled()
    assert why(dialog) == {
        "a": "goes: no rule keeps it",
        "b": "goes: no rule keeps it",
        "c": "kept: last",
        "d": "kept: last",
    }
    assert dialog.machines.texts(first.uuid)[-1] == "5 → 3"
    assert "2 of 4 snapshots go" in dialog.sums.text()
    assert ("takes ?" in dialog.sums.text()) == ("the time it takes (" in dialog.remarks.text())

    dialog.tree.select(["a"])
    QTest.keyClick(dialog.tree, Qt.Key.Key_Space)
    driver.until(lambda: why(dialog)["a"] == "kept: by hand")
    assert dialog.keep.isChecked()
    dialog.keep.click()
    driver.until(lambda: why(dialog)["a"].startswith("goes"))
    cell = dialog.tree.visualRect(dialog.tree.decided.index(1, WHY))
    QTest.mouseClick(dialog.tree.viewport(), Qt.MouseButton.LeftButton, pos=cell.topLeft() + QPoint(14, 12))
    driver.until(lambda: why(dialog)["b"] == "kept: by hand")
    keep_last(driver, dialog, ALL)
    assert "all 4 snapshots are kept" in dialog.sums.text()
    assert not dialog.prune_button.isEnabled()

    driver.until(lambda: dialog.form.choice.count() == 2)
    dialog.form.choice.setCurrentIndex(1)
    dialog.form.choice.activated.emit(1)
    driver.until(lambda: "on 2 machines" in dialog.sums.text() and dialog.is_up_to_date)
    assert set(dialog.machines.ticked()) == {first.uuid, second.uuid}, "those that the policy is for"
    assert why(dialog) == {
        "a": "goes: no rule keeps it",
        "b": "kept: by hand",
        "c": "goes: no rule keeps it",
        "d": "kept: last",
    }
    assert "In all, 5 of 8 snapshots" in dialog.sums.text()
    assert dialog.stays_open.isHidden()
    now = QTime.currentTime()
    dialog.begin.setTime(now.addSecs(-3600))
    dialog.end.setTime(now.addSecs(9 * 3600))
    dialog.between.click()
    assert "snaptree schedule add" in dialog.stays_open.text()
    assert dialog.stays_open.isVisible()
    preview = previewed(driver, dialog)
    assert preview.windowTitle() == "Prune 2 machines", "of which something goes"
    said = said_in(preview)
    assert f"Begins now, and stops at {dialog.end.time().toString('HH:mm')}:" in said
    assert "Machines whose turn has not come by then wait for the next day. The window has to stay open" in said
    assert "to prune-1" in said
    assert "to prune-2" in said
    preview.accept()
    driver.last_operation()
    assert [(each.plan.action, each.plan.domain) for each in driver.operations] == [
        (Action.PRUNE, "prune-1"),
        (Action.PRUNE, "prune-2"),
    ]
    assert first.contents() == {name: before[0][name] for name in ("b", "d", NOW)}
    assert second.contents() == {name: before[1][name] for name in ("d", NOW)}


def machine_of(driver: Driver, machine: Machine) -> ShownMachine:
    found = next(iter(driver.session.estate)).machine(machine.uuid)
    assert found is not None
    return found


def previewed(driver: Driver, dialog: PruneDialog) -> PlanDialog:
    """The plans that follow from what the sheet says."""
    assert dialog.prune_button.isEnabled()
    dialog.prune_button.click()
    return driver.plan_dialog()


def said_in(preview: PlanDialog) -> str:
    return " ".join(label.text() for label in preview.findChildren(QLabel))


def test_mistakes_are_said_where_they_are_and_a_refusal_stops_no_other(
    open_window: OpenWindow, host: EmbeddedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, busy = (make_machine(host, name) for name in ("prune-3", "prune-4"))
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[policy.few]\nkeep-last = 1\nkeep-dayly = 2\n")
    driver = open_window(host.uri)
    driver.show_machine(host.uri, good.uuid)
    driver.until(lambda: all(machine.costs for machine in next(iter(driver.session.estate)).machines()))
    dialog = sheet(driver)
    driver.until(lambda: "line 3: “keep-dayly”" in dialog.form.mistakes.text())
    dialog.form.by_hand.setCurrentIndex(1)
    keep_last(driver, dialog, 3)
    dialog.form.within.setText("2 days")
    assert "is not a time" in dialog.form.problem.text()
    assert not dialog.prune_button.isEnabled()
    dialog.form.within.clear()
    dialog.all.click()
    driver.until(lambda: "2 of 8 snapshots on 2 machines" in dialog.sums.text())
    dialog.form.layers.setValue(1)
    driver.until(lambda: "More than 1 layers are left" in dialog.short.text())
    dialog.form.layers.setValue(0)
    driver.until(lambda: not dialog.short.text())

    with monkeypatch.context() as patched:
        patched.setattr(prune_preview, "likely_refusal", lambda *_: None)  # the window knows of nothing
        dialog.form.layers.setValue(4)
        busy.handle.managedSave()
        driver.until(lambda: machine_of(driver, busy).domain.has_managed_save and dialog.is_up_to_date)
        assert "2 of 8 snapshots on 2 machines" in dialog.sums.text()
        preview = previewed(driver, dialog)
        assert "to prune-3" in said_in(preview)
        preview.reject()
        assert "prune-4 is left out: " in dialog.short.text(), "what the plan knew is known now"
        assert "In all, 1 of 4 snapshots on 1 machine goes" in dialog.sums.text(), "what can't go is not counted"
    dialog.form.layers.setValue(0)
    driver.until(lambda: dialog.is_up_to_date and "prune-4 is left out: " in dialog.short.text())
    assert "In all, 1 of 4 snapshots on 1 machine goes" in dialog.sums.text()
    assert dialog.machines.texts(busy.uuid)[:3] == ["prune-4", "left out", "—"]
    preview = previewed(driver, dialog)
    said = said_in(preview)
    assert "to prune-3" in said
    assert "to prune-4" not in said
    assert "prune-4 is left out; the others go on without it. " in said
    preview.accept()
    driver.until(lambda: len(driver.operations) == 2 and all(each.state.is_over for each in driver.operations))
    assert list(good.tree().snapshots) == ["b", "c", "d"]
    assert list(busy.tree().snapshots) == ["a", "b", "c", "d"]
    states = {each.plan.domain: each.state for each in driver.operations}
    assert states == {"prune-3": OperationState.DONE, "prune-4": OperationState.FAILED}
    (refused,) = [each for each in driver.operations if each.plan.domain == "prune-4"]
    row = driver.window.activity.row(refused.id)
    assert row.title.text == "Prune 1 snapshot of prune-4"
    assert row.detail.text.startswith("Left out, as it was refused: ")
