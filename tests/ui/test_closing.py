"""Closing the window with work that waits for its hours or goes on: asked where somebody sees it, and written down."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PySide6.QtWidgets import QMessageBox, QPushButton

from snaptree.hosts.journal import Journal, journal_path
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune
from snaptree.plans.operation import Operation, OperationState, Pause
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.ui import application
from tests.kit.machines import MIB, EmbeddedHost, Machine, unchanged
from tests.ui.conftest import Driver

OpenWindow = Callable[..., Driver]

TREE = Path(application.__file__).parent.parent.parent


def later() -> Hours:
    """An hour that begins in two."""
    now = dt.datetime.now().astimezone()
    begin, end = ((now + dt.timedelta(hours=hours)).time().replace(second=0, microsecond=0) for hours in (2, 3))
    return Hours(begin, end)


def make_machine(host: EmbeddedHost) -> Machine:
    machine = host.make_machine()
    for seed, name in enumerate(("a", "b", "c")):
        machine.write(seed, length=4 * MIB)  # more than QEMU copies at once, however slow it has to be
        machine.virsh_take_disk_only(name)
    return machine


def prune(driver: Driver, machine: Machine, between: Hours | None = None) -> int:
    """Have all but the last snapshot pruned; return the operation's number."""
    uri = driver.machine.id.uri
    backend = driver.session.estate[uri].backend
    policy = Policy(MappingProxyType({Period.LAST: 1}), scope=Scope(by_hand=True))
    answers: list[Any] = []
    backend.planner.plan_prunes({machine.uuid: Prune(policy, by_own_jobs=True)}, answers.append)
    driver.until(lambda: answers)
    ((planned,), _unread) = answers[0]
    return backend.prune(planned, between=between).id


def stall(driver: Driver, number: int) -> None:
    """Let work copy so slowly that it goes on until that is taken back."""
    backend = driver.session.estate[driver.machine.id.uri].backend
    backend.limit(number, 1)
    driver.until(lambda: (progress := now_of(driver, number).progress) and progress.done is not None)


def now_of(driver: Driver, number: int) -> Operation:
    return next(each for each in driver.operations if each.id == number)


def question(driver: Driver) -> QMessageBox:
    found = driver.dialog(QMessageBox)
    assert isinstance(found, QMessageBox)
    return found


def press(box: QMessageBox, text: str) -> None:
    (button,) = (each for each in box.buttons() if each.text().replace("&", "") == text)
    button.click()


def said_of(journal: Path, uuid: str) -> list[tuple[OperationState, str]]:
    """What the journal has of a machine: how it ended, and why."""
    known = Journal(journal)
    try:
        return [(each.state, str(each.error)) for each in known.recent(domain_uuid=uuid)]
    finally:
        known.close()


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    return make_machine(host)


@pytest.fixture
def driver(open_window: OpenWindow, host: EmbeddedHost, machine: Machine) -> Driver:
    """A window that shows the machine."""
    opened = open_window(host.uri)
    opened.show_machine(host.uri, machine.uuid)
    return opened


@pytest.mark.qemu
def test_what_only_waits_is_asked_about_once_and_written_down_when_it_is_given_up(
    driver: Driver, machine: Machine, host: EmbeddedHost
) -> None:
    hours = later()
    waits = prune(driver, machine, hours)
    assert not driver.window.close()
    box = question(driver)
    assert box.windowTitle() == "Work waits for its hours"
    assert f"Prune 2 snapshots of {machine.name}: waits until {hours.begin:%H:%M}" in box.text()
    assert f"stops at {hours.end:%H:%M}" in box.text()
    assert "going on" not in box.text()
    assert "snaptree schedule add" in box.informativeText()
    press(box, "Keep Open")
    assert driver.window.isVisible()
    assert now_of(driver, waits).is_for_later

    assert not driver.window.close()
    press(question(driver), "Cancel What Waits and Close")
    assert not driver.window.isVisible()
    given_up = now_of(driver, waits)
    assert given_up.state is OperationState.CANCELLED
    driver.session.close()
    why = f"Given up while it waited for its hours, {hours.in_words}: SnapTree was closed. Nothing was done."
    assert said_of(journal_path(host.uri), machine.uuid) == [(OperationState.CANCELLED, why)]
    assert list(machine.tree().snapshots) == ["a", "b", "c"]


@pytest.mark.qemu
def test_what_waits_is_given_up_at_once_and_what_goes_on_is_waited_for(
    driver: Driver, machine: Machine, host: EmbeddedHost
) -> None:
    other = make_machine(host)
    driver.session.estate.refresh()
    driver.until(lambda: driver.session.estate[host.uri].machine(other.uuid))
    backend = driver.session.estate[host.uri].backend
    waits, goes_on = prune(driver, other, later()), prune(driver, machine)
    stall(driver, goes_on)
    assert not driver.window.close()
    box = question(driver)
    assert box.windowTitle() == "Work is going on"
    assert f"going on:\nPrune 2 snapshots of {machine.name}\n" in box.text()
    assert f"Prune 2 snapshots of {other.name}: waits until" in box.text()
    press(box, "Cancel What Waits, Close When Done")
    assert now_of(driver, waits).state is OperationState.CANCELLED
    banner = driver.window.page.banners["closing"]
    assert banner.isVisible()
    assert "closes as soon as" in banner.text
    backend.limit(goes_on, None)
    driver.until(lambda: not driver.window.isVisible())
    assert now_of(driver, goes_on).state is OperationState.DONE
    assert list(machine.tree().snapshots) == ["c"]
    assert list(other.tree().snapshots) == ["a", "b", "c"]


@pytest.mark.qemu
def test_who_agreed_to_close_when_done_can_keep_the_window_open(driver: Driver, machine: Machine) -> None:
    goes_on = prune(driver, machine)
    stall(driver, goes_on)
    assert not driver.window.close()
    press(question(driver), "Close When Done")
    banner = driver.window.page.banners["closing"]
    next(each for each in banner.findChildren(QPushButton) if each.text() == "&Keep Open").click()
    assert not banner.isVisible()
    driver.session.estate[driver.machine.id.uri].backend.limit(goes_on, None)
    driver.until(lambda: now_of(driver, goes_on).state is OperationState.DONE)
    driver.settle()
    assert driver.window.isVisible()
    assert list(machine.tree().snapshots) == ["c"]


@pytest.mark.qemu
@pytest.mark.parametrize("asks", [True, False], ids=["asked", "told to end"])
def test_what_is_paused_is_cancelled_and_never_goes_on(
    driver: Driver, machine: Machine, host: EmbeddedHost, asks: bool
) -> None:
    """What was done before stays done, and nothing is half done."""
    machine.write(9)
    machine.virsh_take_disk_only("d")
    machine.write(10)
    before = machine.contents()
    driver.session.estate.refresh()
    driver.until(lambda: driver.machine.tree is not None and "d" in driver.machine.tree)
    backend = driver.session.estate[host.uri].backend
    paused = prune(driver, machine)
    backend.pause(paused)
    driver.until(lambda: (progress := now_of(driver, paused).progress) and progress.pause is Pause.PAUSED)
    if asks:
        assert not driver.window.close()
        box = question(driver)
        steps = len(now_of(driver, paused).plan.steps)
        assert box.windowTitle() == "Work is paused"
        done = now_of(driver, paused).steps_done
        assert f"paused, half-way:\nPrune 3 snapshots of {machine.name}, after {done} of {steps} steps" in box.text()
        assert box.defaultButton().text() == "&Keep Open"
        press(box, "Cancel What Is Paused and Close")
    else:
        assert not driver.window.end()
    driver.until(lambda: not driver.window.isVisible())
    ended = now_of(driver, paused)
    assert ended.state is OperationState.CANCELLED
    left = machine.tree().snapshots
    assert len(left) > 1, "what was paused did not go on"
    assert unchanged(before, machine.contents(), *(set("abcd") - left.keys()))
    machine.check_images()


@pytest.mark.qemu
def test_who_is_told_to_end_asks_nobody(driver: Driver, machine: Machine, host: EmbeddedHost) -> None:
    waits = prune(driver, machine, later())
    assert not driver.window.close(), "somebody is asked, and does not answer"
    box = question(driver)
    driver.window.closing.session_ends()
    assert driver.window.close()
    assert not box.isVisible()
    assert now_of(driver, waits).state is OperationState.CANCELLED


@pytest.mark.qemu
def test_a_host_with_work_is_not_removed(driver: Driver, machine: Machine, host: EmbeddedHost) -> None:
    waits = prune(driver, machine, later())
    driver.window.actions_.remove_host.trigger()
    box = question(driver)
    assert "still work: Prune 2 snapshots" in box.text()
    box.close()
    assert host.uri in driver.session.estate
    driver.session.estate[host.uri].backend.cancel(waits)
    driver.window.actions_.remove_host.trigger()
    assert host.uri not in driver.session.estate


PROGRAM = """
import sys
from types import MappingProxyType

import libvirt
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication, QMessageBox
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Action, Plan
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.ui import application

URI = "test:///default"
connection = libvirt.open(URI)
domain = connection.lookupByName("test")
for name in "ab":
    domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
planned = []


def look():
    (window,) = [each for each in QApplication.topLevelWidgets() if hasattr(each, "activity")]
    machine = window.machine
    if machine is None or machine.costs is None:
        return
    timer.stop()
    backend = window._estate[URI].backend
    if sys.argv[1] == "waits":
        policy = Policy(MappingProxyType({Period.LAST: 1}), scope=Scope(by_hand=True))

        def answer(found):
            backend.prune(found[0][0], between=Hours.parse(sys.argv[2]))
            print("ready", flush=True)

        backend.planner.plan_prunes({machine.id.uuid: Prune(policy)}, answer)
    else:
        plan = Plan(Action.PRUNE, URI, machine.id.uuid, "test", snapshots=("a",))
        window.activity.show_operation(URI, Operation(1, plan, OperationState.RUNNING, started=0))
        print("ready", flush=True)


timer = QTimer(interval=50)
QTimer.singleShot(0, timer.start)
timer.timeout.connect(look)
application.make_application()
status = application.run_window([URI])
print([each.windowTitle() for each in QApplication.topLevelWidgets() if isinstance(each, QMessageBox)])
sys.exit(status)
"""


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The window in a process of its own, once it has something to do."""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": str(TREE)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_up_what_waits_and_the_journal_says_so(number: signal.Signals) -> None:
    with started("waits", str(later())) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "[]\n"), err
    ((state, why),) = said_of(journal_path("test:///default"), "6695eb01-f6a4-8304-79aa-97f2502e193f")
    assert state is OperationState.CANCELLED
    assert why.startswith("Given up while it waited for its hours")


def test_the_first_signal_waits_for_what_goes_on_and_the_second_does_not() -> None:
    with started("works") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("snaptree:"))
        assert "Closes as soon as this is done: Prune 1 snapshot of test." in said
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "[]\n"), err
