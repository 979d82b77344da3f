"""What goes wrong in the middle of a change, or just before it: nothing is lost, and a second try succeeds.

SNAPTREE_TEST_FAULTS says how often somebody is killed.
"""

from __future__ import annotations

import dataclasses
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.helper_machine import helpers
from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import live_chains
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.errors import ChangedMeanwhileError
from snaptree.plans.intention import Capture, Delete, Recover, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import RemoveLeftover
from snaptree.plans.planner import make_plan
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, EmbeddedHost, Machine, RealHost, unchanged
from tests.kit.processes import qemu_processes

pytestmark = pytest.mark.qemu

TIMES = int(os.environ.get("SNAPTREE_TEST_FAULTS", "20"))
BANDWIDTH = 6 * MIB
"""Bytes per second: a merge of these machines takes about one."""
MOMENTS = 2.0
"""Seconds within which somebody is killed: not much less than the whole takes, nor much more."""
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steady_daemon() -> Iterator[LibvirtDaemon]:
    """One for many tests, some of which kill it."""
    daemon = LibvirtDaemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


def grown_machine(host: RealHost, *, live: bool, directory: Path | None = None) -> Machine:
    """Three snapshots, one, two and three, of 4 MiB each that overlap by half."""
    machine = host.make_machine(directory=directory)
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number, offset=number * 2 * MIB, length=4 * MIB)
        machine.virsh_take_disk_only(name)
    machine.write(4, offset=MIB, length=4 * MIB)
    if not live:
        machine.handle.destroy()
    return machine


def check_all_is_well(machine: Machine, before: dict[str, dict[str, str]], *gone: str) -> None:
    """Only what was meant to go is gone, and nobody's files and jobs are left."""
    assert unchanged(before, machine.contents(), *gone)
    machine.check_images(leaks=True)
    used = {layer for chain in live_chains(machine.connection, machine.handle) for layer in chain.layers}
    assert {str(path) for path in machine.directory.iterdir()} == used
    assert not is_merging(machine)


# Killed at any moment


def kill(pid: int) -> None:
    """And wait until it is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], 10)
    finally:
        os.close(process)


def try_to_delete(
    machine: Machine, journal: Journal, names: tuple[str, ...], do: Callable[[], None], wait: float
) -> None:
    """Delete snapshots here, while something happens some time after the beginning."""
    begun, ended = threading.Event(), threading.Event()

    def happen() -> None:
        begun.wait()
        if not ended.wait(wait):
            do()

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        plan = machine.plan(Delete(names, by_own_jobs=True))
        run_plan(
            machine.connection,
            plan,
            journal=journal,
            bandwidth=lambda: BANDWIDTH,
            on_progress=lambda operation: begun.set(),
        )
    finally:
        begun.set()
        ended.set()
        thread.join()


def try_in_another_process(machine: Machine, journal: Path, names: tuple[str, ...], wait: float) -> None:
    """Let another SnapTree delete snapshots, and kill it some time after the beginning."""
    words = [machine.connection.uri, machine.uuid, str(journal), str(BANDWIDTH), *names]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kit.deleting", *words], cwd=CHECKOUT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()


def is_merging(machine: Machine) -> bool:
    """Whether a QEMU goes on with it: until it has ended, nobody else may read these images."""
    return is_merging_itself(machine) or helpers(machine.connection) != ()


def is_merging_itself(machine: Machine) -> bool:
    try:
        return machine.is_running and any(machine.handle.blockJobInfo(target) for target in machine.active_layers())
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        return False  # it ended while it was asked


def finish(machine: Machine, journal: Journal, names: tuple[str, ...]) -> None:
    """Finish what was interrupted, as is offered; or delete what is still there, if it was not begun or given up."""
    situation = read_situation(machine.connection, machine.uuid)
    situation = with_operations(machine.connection, situation, journal, recovers=True)
    if situation.unfinished is not None:
        plan = make_plan(Recover(), situation)
        if plan.is_refused:
            (refusal,) = plan.refusals
            assert refusal.rule == "cannot-finish"
            if "shut it down" in refusal.reason:  # QEMU ended a merge before the daemon was there again
                machine.handle.destroy()
                finish(machine, journal, names)
                return
            plan = make_plan(Recover(leave=True), situation)
        operation = run_plan(machine.connection, plan, journal=journal)
        assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert not journal.unfinished()
    left = tuple(name for name in names if name in machine.tree())
    if left:
        machine.change(Delete(left, by_own_jobs=True))


@pytest.mark.daemon
@pytest.mark.parametrize("number", range(TIMES))
def test_whoever_is_killed_at_any_moment(steady_daemon: LibvirtDaemon, journal: Journal, number: int) -> None:
    choose = random.Random(number)
    victim = ("SnapTree", "daemon", "QEMU")[number % 3]
    live = choose.random() < 0.7
    names = choose.choice([("one",), ("two",), ("three",), ("one", "two"), ("two", "three")])
    wait = choose.uniform(0, MOMENTS)
    machine = grown_machine(steady_daemon, live=live)
    before = machine.contents()
    match victim:
        case "SnapTree":
            try_in_another_process(machine, journal.path, names, wait)
        case "daemon":
            try_to_delete(machine, journal, names, steady_daemon.kill, wait)
        case _:

            def kill_qemus() -> None:
                for pid in qemu_processes(machine.directory):
                    kill(pid)

            try_to_delete(machine, journal, names, kill_qemus, wait)
    if not steady_daemon.is_running:
        steady_daemon.stop()
        steady_daemon.start()
    machine = dataclasses.replace(machine, connection=steady_daemon.connection)
    if not is_merging(machine):
        after = machine.contents()
        assert {name for name, content in before.items() if after.get(name) != content} <= set(names)
    finish(machine, journal, names)
    check_all_is_well(machine, before, *names)


# Full


def fill(place: Path) -> Path:
    """Leave hardly any room."""
    path = place.parent / "small" / "filler"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - 256 * 1024)
    return path


@pytest.mark.parametrize(("name", "live"), [("one", True), ("two", False), ("three", True)])
def test_a_disk_that_is_full_by_then(host: EmbeddedHost, small_disk: Path, name: str, live: bool) -> None:
    directory = small_disk / "vm"
    directory.mkdir()
    machine = grown_machine(host, live=live, directory=directory)
    before = machine.contents()
    plan = machine.plan(Delete((name,), by_own_jobs=True))
    assert not plan.is_refused
    filler = fill(small_disk)
    operation = run_plan(host.connection, plan)
    assert operation.state in (OperationState.FAILED, OperationState.INTERRUPTED)
    assert operation.error is not None
    assert "No space left" in operation.error.summary
    assert "Free some space" in operation.error.hint
    assert "merge-may-fill-disk" in machine.spoken(Delete((name,)))
    refused = machine.plan(Delete((name,), by_own_jobs=True)).refusals
    assert {each.rule for each in refused} == {"merge-lacks-room"}, "it is seen before, the next time"
    filler.unlink()
    after = machine.contents()
    assert {each for each in before if after.get(each) != before[each]} <= {name}
    machine.change(Delete((name,), by_own_jobs=True))
    check_all_is_well(machine, before, name)


def test_no_room_for_the_memory(host: EmbeddedHost, small_disk: Path) -> None:
    directory = small_disk / "vm"
    directory.mkdir()
    machine = grown_machine(host, live=True, directory=directory)
    before = machine.contents()
    plan = machine.plan(Take("new", capture=Capture.DISKS_AND_MEMORY))
    filler = fill(small_disk)
    operation = run_plan(host.connection, plan)
    assert "no-space-for-memory" in machine.spoken(Take("new", capture=Capture.DISKS_AND_MEMORY))
    filler.unlink()
    assert operation.state in (OperationState.FAILED, OperationState.INTERRUPTED)
    check_all_is_well(machine, before)
    machine.change(Take("new", capture=Capture.DISKS_AND_MEMORY))


# Not permitted, or gone


@pytest.mark.daemon
@pytest.mark.parametrize("live", [True, False])
def test_permission_that_was_lost(daemon: LibvirtDaemon, live: bool) -> None:
    machine = grown_machine(daemon, live=live)
    before = machine.contents()
    plan = machine.plan(Delete(("one",), by_own_jobs=True))
    (frozen,) = {Path(str(disk.frozen)) for disk in machine.tree()["one"].disks}
    owner = frozen.stat()
    frozen.chmod(0o444)
    if os.geteuid() == 0:
        os.chown(frozen, 0, 0)
    operation = run_plan(machine.connection, plan)
    assert operation.state in (OperationState.FAILED, OperationState.INTERRUPTED)
    assert "ermission denied" in f"{operation.error} {operation.error.details if operation.error else ''}"
    assert unchanged(before, machine.contents())
    os.chown(frozen, owner.st_uid, owner.st_gid)
    frozen.chmod(owner.st_mode & 0o777)
    machine.change(Delete(("one",), by_own_jobs=True))
    check_all_is_well(machine, before, "one")


@pytest.mark.parametrize("of", ["one", "two", "three"])
def test_a_file_that_vanished(host: EmbeddedHost, of: str) -> None:
    machine = grown_machine(host, live=False)
    before = machine.contents()
    plan = machine.plan(Delete(("two",), by_own_jobs=True))
    (frozen,) = {Path(str(disk.frozen)) for disk in machine.tree()[of].disks}
    away = frozen.rename(frozen.parent.parent / "away")
    operation = run_plan(host.connection, plan)
    assert operation.state in (OperationState.FAILED, OperationState.INTERRUPTED)
    assert operation.steps_done == 0
    assert str(frozen) in f"{operation.error} {operation.error.details if operation.error else ''}"
    again = machine.plan(Delete(("two",)))
    assert not any(isinstance(step, RemoveLeftover) for step in again.steps), "what is gone may stand on anything"
    assert again.is_refused or of == "two", "its own layer is gone: it can still be forgotten"
    if of == "three":
        assert {each.rule for each in again.refusals} == {"removed-layer-is-needed"}
    away.rename(frozen)
    assert unchanged(before, machine.contents())
    machine.change(Delete(("two",), by_own_jobs=True))
    check_all_is_well(machine, before, "two")


# Others change the same


def take(machine: Machine) -> None:
    machine.virsh_take_disk_only("theirs")


def delete_leaf(machine: Machine) -> None:
    machine.handle.snapshotLookupByName("three").delete()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("names", [("three",), ("one", "three")])
@pytest.mark.parametrize("meddle", [take, delete_leaf])
def test_virsh_between_planning_and_running(
    host: EmbeddedHost, names: tuple[str, ...], meddle: Callable[[Machine], None], live: bool
) -> None:
    machine = grown_machine(host, live=live)
    plan = machine.plan(Delete(names, by_own_jobs=True))
    meddle(machine)
    before = machine.contents()
    files = set(machine.directory.iterdir())
    operation = run_plan(host.connection, plan)
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert operation.steps_done == 0
    assert machine.contents() == before
    assert set(machine.directory.iterdir()) == files
    left = [name for name in names if name in before]
    if left:
        machine.change(Delete(tuple(left), by_own_jobs=True))
    check_all_is_well(machine, before, *left)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("names", [("two",), ("one", "three")])
@pytest.mark.parametrize("at", [1, 2])
def test_virsh_between_two_steps(host: EmbeddedHost, names: tuple[str, ...], at: int, live: bool) -> None:
    """Whether it is stopped or not: nothing is lost, and what is left to do can be done."""
    machine = grown_machine(host, live=live)
    before = machine.contents()
    told: list[Operation] = []

    def meddle(operation: Operation) -> None:
        if operation.steps_done == at and not told:
            told.append(operation)
            take(machine)

    operation = run_plan(host.connection, machine.plan(Delete(names, by_own_jobs=True)), on_progress=meddle)
    assert operation.error is None or isinstance(operation.error, ChangedMeanwhileError)
    before["theirs"] = before["Now"]
    after = machine.contents()
    assert {name for name, content in before.items() if after.get(name) != content} <= set(names)
    left = tuple(name for name in names if name in machine.tree())
    if left:
        machine.change(Delete(left))
    check_all_is_well(machine, before, *names)
