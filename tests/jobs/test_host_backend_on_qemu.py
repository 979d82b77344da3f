"""The backend over real QEMU: changes by plans, their undo, and daemons that go away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snaptree.hosts.journal import Journal
from snaptree.hosts.running import Run, begin_run
from snaptree.jobs import host_backend
from snaptree.jobs.host_backend import Phase
from snaptree.model.errors import CancelledError, ConnectionLostError, SnapTreeError, VanishedError
from snaptree.model.estate import DomainState
from snaptree.model.figures import Confidence
from snaptree.plans.intention import Capture, Delete, Revert, Take
from snaptree.plans.operation import Operation, OperationState, half_deleted
from snaptree.plans.plan import MergeLayers, Plan
from snaptree.plans.plan_json import plan_to_record
from tests.jobs.conftest import Listener
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, EmbeddedHost, Machine

pytestmark = pytest.mark.qemu

Listen = Callable[..., Listener]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


@pytest.fixture
def listener(listen: Listen, host: EmbeddedHost, journal: Journal) -> Listener:
    return listen(host.uri, journal=journal)


def look_at(listener: Listener, machine: Machine) -> None:
    """Open the host, with this machine on screen, and wait until all is known of it."""
    listener.backend.look_at(machine.uuid)
    listener.open()
    listener.until(lambda: listener.backend.costs(machine.uuid))


def run(listener: Listener, plan: Plan) -> Operation:
    """Run a plan to its end, and wait until the machine has been read after it."""
    return finish(listener, listener.backend.run(plan).id)


def finish(listener: Listener, number: int) -> Operation:
    listener.until(lambda: state(listener, number).is_over)
    return operation(listener, number)


def operation(listener: Listener, number: int) -> Operation:
    return next(operation for operation in listener.backend.operations() if operation.id == number)


def state(listener: Listener, number: int) -> OperationState:
    return operation(listener, number).state


class Hold:
    """Lets changes wait before they begin, so that a test can look at what goes on beside them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds = threading.Event()
        self.released = threading.Event()
        monkeypatch.setattr(host_backend, "begin_run", self._begin_run)

    def _begin_run(self, connection: Any, plan: Plan, *, on_progress: Any, **options: Any) -> Run:
        # As the runner does: it runs, and says so.
        on_progress(Operation(id=1, plan=plan, state=OperationState.RUNNING, started=time.time()))
        self.holds.set()
        assert self.released.wait(30)
        return begin_run(connection, plan, on_progress=on_progress, **options)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    hold = Hold(monkeypatch)
    yield hold
    hold.released.set()


# Reading


def test_trees_and_costs_of_real_machines_arrive(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.write(1, length=MIB)
    machine.virsh_take_disk_only("before the update")
    machine.write(2, length=2 * MIB)
    listener.open()
    listener.settle()
    assert listener.names(machine.uuid) == ["before the update"]
    costs = listener.backend.costs(machine.uuid)
    assert costs is not None
    written = costs.costs.snapshots["before the update"].written
    assert written.confidence is Confidence.EXACT
    assert written.bytes is not None
    assert MIB <= written.bytes < 2 * MIB
    assert costs.costs.now.bytes is not None
    assert costs.costs.now.bytes >= 2 * MIB


def test_the_costs_of_a_running_machine_on_screen_follow_what_it_writes(
    listener: Listener, host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_backend, "LIVE_COSTS_SECONDS", 0.1)
    machine = host.make_machine()
    machine.virsh_take_disk_only("one")
    look_at(listener, machine)

    def now() -> int:
        costs = listener.backend.costs(machine.uuid)
        assert costs is not None
        return costs.costs.now.bytes or 0

    before = now()
    machine.write(1, length=2 * MIB)
    listener.until(lambda: now() >= before + 2 * MIB)


@pytest.mark.usefixtures("brisk")
def test_real_changes_by_others_appear(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine()
    look_at(listener, machine)
    machine.virsh_take_disk_only("one")
    listener.until(lambda: listener.names(machine.uuid) == ["one"])
    listener.until(lambda: "one" in listener.costs[-1][1].costs.snapshots)
    machine.handle.snapshotLookupByName("one").delete()
    listener.until(lambda: listener.names(machine.uuid) == [])
    machine.handle.destroy()
    listener.until(lambda: getattr(listener.backend.domain(machine.uuid), "state", None) is DomainState.OFF)


# Changing


def test_a_plan_is_queued_run_journaled_and_what_came_of_it_is_read(
    listener: Listener, host: EmbeddedHost, journal: Journal
) -> None:
    machine = host.make_machine()
    look_at(listener, machine)
    plan = listener.plan(machine.uuid, Take("before-update", capture=Capture.DISKS))
    queued = listener.backend.run(plan)
    assert queued.state is OperationState.QUEUED
    done = finish(listener, queued.id)
    assert done.error is None
    assert done.state is OperationState.DONE
    states = [told.state for told in listener.operations]
    assert states[0] is OperationState.QUEUED
    assert states[-1] is OperationState.DONE
    assert OperationState.RUNNING in states
    assert {told.id for told in listener.operations} == {queued.id}
    listener.until(lambda: listener.names(machine.uuid) == ["before-update"])
    (recorded,) = journal.recent()
    assert recorded.state is OperationState.DONE
    assert recorded.plan == plan


def test_a_take_is_taken_back(listener: Listener, host: EmbeddedHost, journal: Journal) -> None:
    machine = host.make_machine(running=False)
    machine.write(1)
    before = machine.contents()
    look_at(listener, machine)
    taken = run(listener, listener.plan(machine.uuid, Take("mistake", capture=Capture.INTERNAL)))
    assert taken.can_undo
    listener.backend.undo(taken)
    listener.backend.undo(taken)  # a double click
    listener.until(lambda: operation(listener, taken.id).undone)
    listener.until(lambda: listener.names(machine.uuid) == [])
    assert machine.contents() == before
    assert len(listener.backend.operations()) == 2
    undo, take = journal.recent()
    assert take.undone
    assert undo.state is OperationState.DONE
    assert not operation(listener, taken.id).can_undo


def test_a_revert_is_taken_back_with_one_click(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.write(1)
    look_at(listener, machine)
    run(listener, listener.plan(machine.uuid, Take("good", capture=Capture.INTERNAL)))
    machine.write(2)
    before = machine.contents()
    reverted = run(listener, listener.plan(machine.uuid, Revert("good")))
    assert reverted.error is None
    assert machine.contents()["Now"] == before["good"]
    listener.backend.undo(reverted)
    listener.until(lambda: operation(listener, reverted.id).undone)
    assert machine.contents() == before
    listener.until(lambda: listener.names(machine.uuid) == ["good"])


def test_an_operation_of_an_earlier_run_is_taken_back_from_the_journal(
    listen: Listen, host: EmbeddedHost, journal: Journal
) -> None:
    machine = host.make_machine(running=False)
    yesterday = listen(host.uri, journal=journal)
    look_at(yesterday, machine)
    run(yesterday, yesterday.plan(machine.uuid, Take("mistake", capture=Capture.INTERNAL)))
    yesterday.backend.close()

    today = listen(host.uri, journal=journal)
    look_at(today, machine)
    (recorded,) = journal.recent()
    today.backend.undo(recorded)
    today.until(lambda: any(told.id == recorded.id and told.undone for told in today.operations))
    today.until(lambda: today.names(machine.uuid) == [])
    assert journal.recent()[1].undone


def test_an_undo_that_is_not_possible_any_more_says_why(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.virsh_take("good")
    look_at(listener, machine)
    reverted = run(listener, listener.plan(machine.uuid, Revert("good")))
    assert reverted.plan.undo is not None
    assert reverted.plan.undo.revert_to is not None
    machine.handle.snapshotLookupByName(reverted.plan.undo.revert_to).delete()
    listener.backend.undo(reverted)
    listener.until(lambda: len(listener.backend.operations()) == 2)
    failed = finish(listener, listener.backend.operations()[-1].id)
    assert failed.state is OperationState.FAILED
    assert failed.error is not None
    assert reverted.plan.undo.revert_to in failed.error.summary
    assert not operation(listener, reverted.id).undone


def test_changes_wait_for_each_other_in_order_and_can_be_taken_back_while_they_wait(
    listener: Listener, host: EmbeddedHost, hold: Hold
) -> None:
    machines = [host.make_machine(running=False) for _ in range(3)]
    look_at(listener, machines[0])
    first, second, third = (
        listener.backend.run(listener.plan(machine.uuid, Take("now", capture=Capture.INTERNAL))).id
        for machine in machines
    )
    listener.until(lambda: state(listener, first) is OperationState.RUNNING)
    assert state(listener, second) is OperationState.QUEUED
    listener.backend.cancel(second)
    assert state(listener, second) is OperationState.CANCELLED
    hold.released.set()
    assert finish(listener, third).state is OperationState.DONE
    assert state(listener, first) is OperationState.DONE
    assert [machine.tree().current for machine in machines] == ["now", None, "now"]
    over = [told.id for told in listener.operations if told.state is OperationState.DONE]
    assert over == [first, third]


def test_a_change_that_runs_is_stopped_between_two_steps(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number, offset=4 * number * MIB, length=4 * MIB)
        machine.virsh_take_disk_only(name)
    before = machine.contents()
    look_at(listener, machine)
    plan = listener.plan(machine.uuid, Delete(("one", "two", "three")))
    assert len(plan.steps) >= 3
    # Of layers that were merged by us libvirt was not told yet: that has to be finished, or left.
    is_ours = isinstance(plan.steps[0], MergeLayers)

    def cancel(told: Operation) -> None:
        merges = told.progress is not None and told.progress.total is not None
        if told.state is OperationState.QUEUED:
            listener.backend.limit(told.id, MIB)  # so that it takes its time
        elif told.state is OperationState.RUNNING and (merges or not is_ours):
            listener.backend.cancel(told.id)

    listener.backend.operation_changed.connect(cancel)
    cancelled = run(listener, plan)
    assert cancelled.state is (OperationState.INTERRUPTED if is_ours else OperationState.CANCELLED)
    assert isinstance(cancelled.error, CancelledError)
    listener.until(lambda: (machine.uuid in listener.backend.unfinished()) == is_ours)
    left = set(machine.contents())
    listener.until(lambda: set(listener.names(machine.uuid)) == left - {"Now"})
    now, whole = machine.contents(), left.difference(half_deleted(cancelled))
    assert {name: now[name] for name in whole} == {name: before[name] for name in whole}


def test_a_plan_that_was_overtaken_by_events_fails_and_the_tree_is_read_again(
    listener: Listener, host: EmbeddedHost
) -> None:
    machine = host.make_machine()
    look_at(listener, machine)
    plan = listener.plan(machine.uuid, Take("mine", capture=Capture.DISKS))
    machine.virsh_take_disk_only("theirs")
    failed = run(listener, plan)
    assert failed.state is OperationState.FAILED
    assert failed.error is not None
    assert "changed this machine meanwhile" in failed.error.hint
    listener.until(lambda: listener.names(machine.uuid) == ["theirs"])


def test_planning_for_a_machine_that_is_gone_says_so(listener: Listener, host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    machine.handle.undefine()
    answers: list[Plan | SnapTreeError] = []
    listener.backend.planner.plan(machine.uuid, Take("late"), answers.append)
    listener.until(lambda: answers)
    assert isinstance(answers[0], VanishedError)


@pytest.mark.usefixtures("brisk")
def test_looking_does_not_wait_for_changing(listener: Listener, host: EmbeddedHost, hold: Hold) -> None:
    changing, other = host.make_machine(running=False), host.make_machine(running=False)
    look_at(listener, changing)
    number = listener.backend.run(listener.plan(changing.uuid, Take("ours", capture=Capture.INTERNAL))).id
    listener.until(hold.holds.is_set)
    listener.backend.look_at(other.uuid)
    other.virsh_take("theirs")
    listener.until(lambda: listener.names(other.uuid) == ["theirs"])
    listener.plan(other.uuid, Take("next"))
    assert state(listener, number) is OperationState.RUNNING
    hold.released.set()
    finish(listener, number)


@pytest.mark.usefixtures("brisk")
def test_a_machine_is_not_watched_while_we_change_it_and_nothing_is_missed(
    listener: Listener, host: EmbeddedHost, hold: Hold
) -> None:
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    number = listener.backend.run(listener.plan(machine.uuid, Take("ours", capture=Capture.INTERNAL))).id
    listener.until(hold.holds.is_set)
    machine.virsh_take("theirs")
    listener.qtbot.wait(300)  # several looks at its pace
    assert listener.names(machine.uuid) == []
    hold.released.set()
    finish(listener, number)
    listener.until(lambda: "theirs" in listener.names(machine.uuid))


def test_progress_is_told_ten_times_a_second_at_most(
    listener: Listener, host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = 1000

    def chatty(plan: Plan, on_progress: Any, _is_paused: Any) -> Operation:
        running = Operation(id=7, plan=plan, state=OperationState.RUNNING, started=time.time())
        began = time.monotonic()
        for _ in range(reports):
            on_progress(running)
        chatty_seconds.append(time.monotonic() - began)
        return Operation(id=7, plan=plan, state=OperationState.DONE, started=running.started, finished=time.time())

    def begin(_connection: Any, plan: Plan, *, on_progress: Any, **_options: Any) -> Any:
        return SimpleNamespace(until_paused=partial(chatty, plan, on_progress))

    chatty_seconds: list[float] = []
    monkeypatch.setattr(host_backend, "begin_run", begin)
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    done = run(listener, listener.plan(machine.uuid, Take("now", capture=Capture.INTERNAL)))
    assert done.state is OperationState.DONE
    running = [told for told in listener.operations if told.state is OperationState.RUNNING]
    assert 1 <= len(running) <= 1 + 10 * chatty_seconds[0]


def test_a_journal_that_cannot_be_written_stops_the_change(
    listener: Listener, host: EmbeddedHost, journal: Journal
) -> None:
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    plan = listener.plan(machine.uuid, Take("unrecorded", capture=Capture.INTERNAL))
    journal.close()
    failed = run(listener, plan)
    assert failed.state is OperationState.FAILED
    assert failed.error is not None
    assert f"The journal {journal.path} cannot be written" in failed.error.summary
    assert len(machine.tree()) == 0
    look_at(listener, host.make_machine(running=False))  # that needs no journal
    assert not listener.failures


def test_closing_stops_a_change_between_its_steps(
    listener: Listener, host: EmbeddedHost, journal: Journal, hold: Hold
) -> None:
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    listener.backend.run(listener.plan(machine.uuid, Take("no-more", capture=Capture.INTERNAL)))
    listener.until(hold.holds.is_set)
    listener.backend.close()
    hold.released.set()
    assert listener.backend.wait_until_closed(20)
    assert len(machine.tree()) == 0
    (recorded,) = journal.recent()
    assert recorded.state is OperationState.CANCELLED


# Daemons that go away


@pytest.mark.daemon
def test_a_daemon_that_crashes_and_comes_back_is_found_again(
    listen: Listen, daemon: LibvirtDaemon, journal: Journal
) -> None:
    machine = daemon.make_machine()
    machine.virsh_take_disk_only("before")
    listener = listen(daemon.uri, journal=journal)
    look_at(listener, machine)
    run(listener, listener.plan(machine.uuid, Take("first", capture=Capture.DISKS)))
    listener.until(lambda: listener.names(machine.uuid) == ["before", "first"])
    known = listener.backend.tree(machine.uuid)

    daemon.kill()
    listener.until(lambda: listener.backend.status.retry_at is not None)
    assert listener.backend.status.phase is Phase.LOST
    assert isinstance(listener.backend.status.error, ConnectionLostError)
    assert listener.backend.tree(machine.uuid) is known
    listener.forget()
    daemon.start()
    daemon.virsh("snapshot-create-as", machine.name, "meanwhile", "--disk-only")
    listener.backend.reconnect_now()
    listener.until(lambda: listener.backend.status.phase is Phase.CONNECTED)
    listener.until(lambda: listener.names(machine.uuid) == ["before", "first", "meanwhile"])
    assert Phase.FAILED not in listener.phases

    # The connection for changes broke as well.
    done = run(listener, listener.plan(machine.uuid, Take("second", capture=Capture.DISKS)))
    assert done.error is None
    listener.until(lambda: len(listener.names(machine.uuid)) == 4)


@pytest.mark.daemon
def test_virsh_and_the_window_agree_within_two_seconds(listen: Listen, daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine()
    listener = listen(daemon.uri)
    look_at(listener, machine)
    daemon.virsh("snapshot-create-as", machine.name, "by-virsh", "--disk-only")
    since = time.monotonic()
    listener.until(lambda: listener.names(machine.uuid) == ["by-virsh"])
    assert time.monotonic() - since < 2.0
    daemon.virsh("snapshot-delete", machine.name, "by-virsh", "--metadata")
    since = time.monotonic()
    listener.until(lambda: listener.names(machine.uuid) == [])
    assert time.monotonic() - since < 2.0


@pytest.mark.daemon
def test_a_daemon_that_crashes_during_a_change_fails_it_and_the_machine_is_read_again(
    listen: Listen, daemon: LibvirtDaemon, hold: Hold
) -> None:
    machine = daemon.make_machine()
    listener = listen(daemon.uri)
    look_at(listener, machine)
    number = listener.backend.run(listener.plan(machine.uuid, Take("lost", capture=Capture.DISKS))).id
    listener.until(hold.holds.is_set)
    daemon.kill()
    hold.released.set()
    failed = finish(listener, number)
    assert failed.state is OperationState.FAILED
    assert isinstance(failed.error, ConnectionLostError)
    daemon.start()
    listener.backend.reconnect_now()
    listener.until(lambda: listener.backend.status.phase is Phase.CONNECTED)


@pytest.mark.daemon
def test_a_daemon_that_hangs_does_not_keep_the_window_from_closing(listen: Listen, daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine(running=False)
    listener = listen(daemon.uri)
    look_at(listener, machine)
    daemon.freeze()
    listener.backend.refresh()
    listener.qtbot.wait(200)
    began = time.monotonic()
    listener.backend.close()
    assert time.monotonic() - began < 0.5
    daemon.thaw()


ENDS_WHILE_A_DAEMON_HANGS = """
import os, signal, sys, threading
from PySide6.QtCore import QCoreApplication, QTimer
from snaptree.hosts import connection, reading
from snaptree.jobs.host_backend import HostBackend
from snaptree.jobs.leaving import leave
connection.KEEPALIVE_SECONDS = connection.KEEPALIVE_COUNT = 1
uri, pid = sys.argv[1:]
app = QCoreApplication([])
backend = HostBackend(uri)
current_name = reading.current_name
def hang_afterwards(domain):
    # The snapshots' XML is asked for next, by several threads.
    name = current_name(domain)
    os.kill(int(pid), signal.SIGSTOP)
    hangs.set()
    return name
hangs = threading.Event()
reading.current_name = hang_afterwards
timer = QTimer(interval=200)
timer.timeout.connect(lambda: app.quit() if hangs.is_set() else None)
timer.start()
backend.open()
app.exec()
backend.close()
backend.wait_until_closed(0.5)
print("bye")
leave(0)
"""


@pytest.mark.daemon
def test_the_program_ends_although_a_daemon_hangs(daemon: LibvirtDaemon) -> None:
    """Readings that are on their way are not waited for."""
    daemon.make_machine(running=False).virsh_take("one")
    assert daemon._process is not None
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_A_DAEMON_HANGS, daemon.uri, str(daemon._process.pid)],
        env=os.environ | {"PYTHONPATH": str(Path(host_backend.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    daemon.thaw()
    assert done.stdout == "bye\n", done.stderr
    assert done.returncode == 0
    assert time.monotonic() - began < 15


# Beside other programs

_ANOTHER_PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
from snaptree.hosts.journal import Journal
from snaptree.plans.operation import OperationState
from snaptree.plans.plan_json import plan_from_record

journal = Journal(Path(sys.argv[1]))
operation = journal.begin(plan_from_record(json.loads(sys.argv[2])))
journal.step_begins(operation.id, 0, was_active=False)
print("here", flush=True)
sys.stdin.read()
journal.step_is_done(operation.id, 0)
journal.finish(dataclasses.replace(operation, state=OperationState.DONE, finished=operation.started, steps_done=1))
"""


@contextmanager
def another_program(journal: Journal, plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """A process that records what a plan does, as a run of it would, and has begun with it; on end of file it ends."""
    command = [sys.executable, "-c", _ANOTHER_PROGRAM, str(journal.path), json.dumps(plan_to_record(plan))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process


@pytest.mark.usefixtures("brisk")
def test_what_another_program_does_is_told_from_its_beginning_to_its_end(
    listener: Listener, host: EmbeddedHost, journal: Journal
) -> None:
    """A schedule, say: its run is shown, and is nothing of ours that could be stopped or waited for."""
    machine = host.make_machine(running=False)
    look_at(listener, machine)
    elsewhere: list[Operation] = []
    listener.backend.done_elsewhere.connect(elsewhere.append)
    plan = machine.plan(Take("nightly-1", schedule="nightly"))
    with another_program(journal, plan) as program:
        listener.until(lambda: elsewhere)
        assert elsewhere[0].state is OperationState.RUNNING
        assert elsewhere[0].progress is not None
        assert "nightly-1" in elsewhere[0].progress.doing
        assert not elsewhere[0].progress.can_cancel
        program.communicate()
        listener.until(lambda: elsewhere[-1].state is OperationState.DONE)
    assert len({told.id for told in elsewhere}) == 1
    assert elsewhere[-1].plan.schedule == "nightly"
    assert listener.operations == []
    assert listener.backend.operations() == ()

    with another_program(journal, plan) as program:
        listener.until(lambda: elsewhere[-1].state is OperationState.RUNNING)
        program.kill()
        program.wait()
        listener.until(lambda: elsewhere[-1].state is OperationState.INTERRUPTED)
        listener.until(lambda: machine.uuid in listener.backend.unfinished())
