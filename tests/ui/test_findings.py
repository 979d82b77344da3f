"""What should be looked at, in the real window on real machines: it is told, and its plan is one click away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from snaptree.hosts.policies import policies_path
from snaptree.model.troubles import Kind, Severity
from snaptree.plans.advice import Advice, Cure
from snaptree.plans.intention import Capture, Recover, Revert, Take
from snaptree.plans.plan import Action, StateAfter
from snaptree.ui.findings import FindingNotice, Findings
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.theme import Theme
from tests.kit.machines import MIB, EmbeddedHost, Machine, unchanged
from tests.ui.conftest import Driver

OpenWindow = Callable[..., Driver]


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    """A machine that is off, on a line of four external snapshots."""
    made = host.make_machine(running=False)
    for number, name in enumerate("abcd"):
        made.write(number, offset=number * MIB // 2, length=MIB)
        made.change(Take(name, capture=Capture.DISKS))
    return made


def check_for(text: str) -> None:
    """Write the table [check] of the user's file."""
    policies_path().parent.mkdir(parents=True, exist_ok=True)
    policies_path().write_text(f"[check]\n{text}\n", encoding="utf-8")


def kinds(driver: Driver) -> list[Kind]:
    return [finding.kind for finding in driver.machine.findings]


def notice(driver: Driver) -> FindingNotice:
    """The only finding in the inspector, as soon as its cure is known."""

    def shown() -> list[FindingNotice]:
        return [each for each in driver.window.inspector.findings.notices if each.button is not None]

    driver.until(shown)
    (found,) = shown()
    return found


@pytest.mark.qemu
def test_a_schedule_that_nothing_runs_is_told_beside_its_host(open_window: OpenWindow, host: EmbeddedHost) -> None:
    host.make_machine(running=False)
    policies_path().parent.mkdir(parents=True, exist_ok=True)
    text = f'[schedule.nightly]\nconnect = "{host.uri}"\nwhen = "daily"\ntake = "best"\n'
    policies_path().write_text(text, encoding="utf-8")
    driver = open_window(host.uri)
    driver.until(lambda: host.uri in driver.session.estate and driver.session.estate[host.uri].findings)
    (finding,) = driver.session.estate[host.uri].findings
    assert finding.text == "The schedule “nightly” has no timer, so nothing runs it."
    hosts = driver.window.estate_view.list
    hosts.setCurrentIndex(hosts.model().index(0, 0))
    driver.until(lambda: driver.window.inspector.findings.isVisible())
    (notice,) = driver.window.inspector.findings.notices
    assert notice.text.text() == finding.text


@pytest.mark.qemu
def test_a_deep_chain_is_told_and_made_shorter_by_two_clicks(
    open_window: OpenWindow, host: EmbeddedHost, machine: Machine
) -> None:
    check_for("max-depth = 3")
    before = machine.contents()
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    found = notice(driver)
    assert "5 layers" in found.text.text()
    assert kinds(driver) == [Kind.DEEP_CHAIN]
    assert found.button is not None
    token = object()
    driver.window.activity.planning(token, "Revert it", host.uri, machine.uuid)
    assert not found.button.isEnabled(), "what is planned now would be out of date"
    assert "This is still to be done: Revert it." in found.button.toolTip()
    driver.window.activity.planned(token)
    assert found.button.isEnabled()
    assert not found.button.toolTip()
    found.button.setFocus()
    QTest.keyClick(found.button, Qt.Key.Key_Space)
    dialog = driver.plan_dialog()
    assert machine.name in dialog.windowTitle()
    assert any("can't go back to" in label.text() for label in dialog.view.findChildren(QLabel))
    said = [label.text() for label in dialog.view.findChildren(QLabel)]
    assert said[said.index("What goes: 2 snapshots") + 1] == "a\nb"
    assert machine.contents() == before, "it was only shown"
    dialog.run_button.click()
    assert driver.last_operation().plan.action is Action.PRUNE
    driver.until(lambda: not driver.machine.findings)
    driver.until(lambda: not driver.window.inspector.findings.isVisible())
    left = machine.contents()
    assert unchanged(before, left, *before.keys() - left.keys())
    assert {"c", "d"} < set(left)


@pytest.mark.qemu
def test_a_lost_layer_is_told_when_it_is_noticed_and_its_snapshot_forgotten(
    open_window: OpenWindow, host: EmbeddedHost, machine: Machine
) -> None:
    machine.change(Revert("a", take_safety_snapshot=False, state_after=StateAfter.OFF))
    driver = open_window(host.uri)
    driver.show_machine(host.uri, machine.uuid)
    driver.until(lambda: driver.machine.advice == ())
    (layer,) = (disk.frozen for disk in machine.tree()["d"].disks if disk.frozen)
    Path(layer).unlink()
    driver.session.estate.refresh()
    found = notice(driver)
    assert layer in found.text.text()
    assert driver.machine.worst is not None
    assert driver.machine.worst.severity is Severity.ERROR
    assert found.button is not None
    found.button.click()
    dialog = driver.dialog(PlanDialog)
    assert "“d”" in dialog.windowTitle()
    driver.plan_dialog().run_button.click()
    driver.until(lambda: driver.names() and "d" not in driver.names())
    driver.until(lambda: not driver.machine.findings)


def advice(number: int, cure: Cure | None = None) -> Advice:
    return Advice(Kind.LOW_SPACE, Severity(number % 3), f"Finding <b>{number}</b>.", "Why.", "What to do.", cure)


@pytest.fixture
def shown(qtbot: QtBot, light: Theme) -> Findings:
    made = Findings()
    qtbot.addWidget(made)
    return made


def test_without_findings_there_is_nothing(shown: Findings) -> None:
    assert shown.isHidden()
    shown.show_findings((advice(0),))
    assert not shown.isHidden()
    shown.show_findings(())
    assert shown.isHidden()
    assert not shown.notices


def test_the_worst_are_shown_and_the_others_by_a_click(shown: Findings) -> None:
    shown.show_findings(tuple(advice(number) for number in range(5)))
    assert [not each.isHidden() for each in shown.notices] == [True] * 3 + [False] * 2
    assert shown.more.text() == "Show 2 More"
    shown.more.click()
    assert not any(each.isHidden() for each in shown.notices)
    assert shown.more.isHidden()
    shown.show_findings((advice(1),))
    assert shown.more.isHidden()


def test_a_button_says_whose_plan_it_shows_and_is_there_only_for_one(shown: Findings, qtbot: QtBot) -> None:
    cure = Cure("uuid", "a&b", Recover())
    shown.show_findings((advice(1, cure), advice(2)), "uuid")
    first, second = shown.notices
    assert first.button is not None
    assert first.button.text() == "Show Plan…"
    assert second.button is None
    assert second.text.text() == "Finding <b>2</b>."
    with qtbot.waitSignal(shown.cure_wanted) as wanted:
        first.button.click()
    assert wanted.args == [cure]
    shown.show_findings((advice(1, cure),))
    button = shown.notices[0].button
    assert button is not None
    assert button.text() == "Show Plan for a&&b…"
