"""The memory of a snapshot is given up: what its disks hold stays, and a revert works, whatever dies meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snaptree.hosts.forgetting import find_forgotten, forget_memory
from snaptree.hosts.journal import Journal
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.errors import ChangedMeanwhileError
from snaptree.model.estate import Consistency, DomainState, MemorySnapshot
from snaptree.plans.intention import Capture, Delete, DropMemory, Recover, Revert, Take
from snaptree.plans.operation import OperationState, StepState
from snaptree.plans.plan import ForgetMemory, StateAfter
from snaptree.plans.planner import make_plan
from tests.hosts.test_far_reverts import far, pool
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import NOW, EmbeddedHost, Machine, unchanged

pytestmark = pytest.mark.qemu

REDEFINE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
CURRENT = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT


def grow(machine: Machine) -> Machine:
    """one and two hold memory, and three the disks; two was reverted to, and is current."""
    machine.write(1)
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    machine.change(Take("two", capture=Capture.DISKS_AND_MEMORY))
    machine.write(3)
    machine.change(Take("three", capture=Capture.DISKS))
    machine.write(4)
    machine.change(Revert("two", take_safety_snapshot=False))
    machine.write(5)
    return machine


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    return grow(host.make_machine())


def texts(machine: Machine) -> dict[str, str]:
    """All that libvirt has on record of the snapshots."""
    secure = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
    return {each.getName(): each.getXMLDesc(secure) for each in machine.handle.listAllSnapshots()}


def without_memory(text: str) -> str:
    """A snapshot's text as it shall be, made in another way than by the program."""
    text = re.sub(r"<memory snapshot='external' file='[^']*'/>", "<memory snapshot='no'/>", text)
    text = re.sub(r"  <cookie>.*?</cookie>\n", "", text, flags=re.DOTALL)
    text = text.replace("<state>running</state>", "<state>disk-snapshot</state>")
    return text.replace('consistency="memory"', 'consistency="crash"')


def test_the_file_goes_and_everything_else_stays(machine: Machine) -> None:
    before, recorded = machine.contents(), texts(machine)
    for name in ("two", "one"):
        file = Path(machine.tree()[name].memory_file or "")
        takes = file.stat().st_blocks * 512
        operation = machine.change(DropMemory(name))
        assert operation.plan.forecast.frees.bytes == takes
        assert operation.plan.undo is None
        assert not file.exists()
        assert unchanged(before, machine.contents())
        recorded[name] = without_memory(recorded[name])
        assert texts(machine) == recorded, "nothing but that, in this snapshot and in no other"
        snapshot = machine.tree()[name]
        assert (snapshot.memory, snapshot.state) == (MemorySnapshot.NO, DomainState.DISK_ONLY)
        assert snapshot.consistency is Consistency.CRASH
    assert machine.tree().current == "two"
    machine.change(Revert("one", take_safety_snapshot=False))
    assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_SHUTOFF, "as to any snapshot of the disks"
    assert machine.contents()[NOW] == before["one"]
    machine.change(Revert("two", take_safety_snapshot=False, state_after=StateAfter.RUNNING))
    assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    assert machine.contents() == {**before, NOW: before["two"]}
    machine.change(Delete(("one", "two")))
    assert machine.contents()["three"] == before["three"]
    machine.check_images()


@pytest.mark.parametrize("name", ["one", "two"])
def test_dying_anywhere_between_its_calls_loses_nothing(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ForgetMemory(name, "without-memory", machine.tree()[name].memory_file or "")
    recorded, order = texts(machine), list(machine.tree().snapshots)
    wanted = {**recorded, name: without_memory(recorded[name])}
    contents = machine.contents()
    calls = 0
    while True:
        calls += 1
        with monkeypatch.context() as context:
            left = _die_after(context, calls)
            try:
                forget_memory(machine.connection, machine.handle, step)
            except _Died:
                pass
            else:
                assert left() > 0, "it came to its end before that call"
                break
        listed = machine.tree()
        assert {name, step.stand_in} & set(listed.snapshots), "one of the two is always there"
        if {name, step.stand_in} <= set(listed.snapshots):
            refused = machine.plan(Delete((name,))).refusals
            assert [finding.rule for finding in refused] == ["two-names"], "that would lose what stands on it"
        assert listed.current in (name, step.stand_in, "two")
        assert find_forgotten(machine.handle, step).state is not StepState.CHANGED
        forget_memory(machine.connection, machine.handle, step)
        assert texts(machine) == wanted
        assert machine.tree().current == "two"
        assert find_forgotten(machine.handle, step).state is StepState.DONE
        forget_memory(machine.connection, machine.handle, step)
        assert texts(machine) == wanted, "once more does nothing more"
        _put_back(machine, recorded, order)
    assert calls > 6, "it was killed after each of its calls"
    assert machine.contents() == contents


class _Died(BaseException):
    """What the program does not catch."""


def _die_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> Callable[[], int]:
    """Let the program die right after so many calls that change something; returns how many are left."""
    left = calls

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            nonlocal left
            answer = real(*given)
            left -= 1
            if left == 0:
                raise _Died
            return answer

        return call

    monkeypatch.setattr(libvirt.virDomain, "snapshotCreateXML", dying(libvirt.virDomain.snapshotCreateXML))
    monkeypatch.setattr(libvirt.virDomainSnapshot, "delete", dying(libvirt.virDomainSnapshot.delete))
    return lambda: left


def _put_back(machine: Machine, recorded: dict[str, str], order: list[str]) -> None:
    """Let libvirt forget all snapshots, and tell it of them as they were."""
    metadata_only = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
    for name in reversed(order):
        machine.handle.snapshotLookupByName(name).delete(metadata_only)
    for name in order:
        machine.handle.snapshotCreateXML(recorded[name], REDEFINE | (CURRENT if name == "two" else 0))
        machine.handle.snapshotCreateXML(recorded[name], REDEFINE)
    assert texts(machine) == recorded


def test_what_changed_since_the_plan_stops_it(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    file = machine.tree()["one"].memory_file or ""
    recorded = texts(machine)
    for step in (ForgetMemory("gone", "x", file), ForgetMemory("one", "x", "/elsewhere")):
        with pytest.raises(ChangedMeanwhileError):
            forget_memory(machine.connection, machine.handle, step)
    other = host.make_machine(running=False)
    elsewhere = recorded["one"].replace(machine.uuid, other.uuid)
    elsewhere = elsewhere.replace(f"<name>{machine.name}</name>", f"<name>{other.name}</name>")
    other.handle.snapshotCreateXML(elsewhere, REDEFINE)
    operation = run_plan(machine.connection, machine.plan(DropMemory("one")))
    assert operation.state is OperationState.FAILED
    assert other.name in str(operation.error)
    assert texts(machine) == recorded
    assert Path(file).exists()


def test_a_missing_file_is_forgotten_and_the_revert_works_again(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    one = machine.contents()["one"]
    Path(machine.tree()["one"].memory_file or "").unlink()
    assert machine.plan(Revert("one", take_safety_snapshot=False)).is_refused
    operation = machine.change(DropMemory("one"))
    assert operation.plan.forecast.frees.bytes == 0
    assert len(operation.plan.steps) == 1
    machine.change(Revert("one", take_safety_snapshot=False))
    assert machine.contents()[NOW] == one


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


@pytest.mark.parametrize(("moment", "step"), [(Moment.BEGUN, 0), (Moment.ACTED, 0), (Moment.BEGUN, 1)])
def test_one_whose_program_was_killed_is_finished(
    daemon: LibvirtDaemon, journal: Journal, moment: Moment, step: int
) -> None:
    machine = daemon.make_machine()
    machine.write(1)
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    before, file = machine.contents(), Path(machine.tree()["one"].memory_file or "")
    run_and_kill(daemon.uri, machine.plan(DropMemory("one")), journal.path, moment, step)
    assert file.exists()
    daemon.disconnect()
    daemon.kill()
    daemon.start()  # what libvirt wrote down is what it knows again
    machine = replace(machine, connection=daemon.connection)
    situation = with_operations(
        machine.connection, read_situation(machine.connection, machine.uuid), journal, recovers=True
    )
    assert make_plan(DropMemory("one"), situation).refusals[0].rule == "unfinished-operation"
    plan = make_plan(Recover(), situation)
    assert not plan.is_refused, plan.refusals
    assert run_plan(machine.connection, plan, journal=journal).error is None
    assert not journal.unfinished()
    assert not file.exists()
    assert machine.tree()["one"].memory is MemorySnapshot.NO
    assert unchanged(before, machine.contents())
    assert make_plan(DropMemory("one"), replace(situation, tree=machine.tree(), unfinished=None)).is_refused


@pytest.mark.daemon
def test_on_a_far_host_the_file_is_removed_as_a_volume(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine()
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    file = Path(machine.tree()["one"].memory_file or "")
    with far(daemon) as connection:
        refused = make_plan(DropMemory("one"), read_situation(connection, machine.uuid))
        assert [refusal.rule for refusal in refused.refusals] == ["memory-out-of-reach"]
        pool(daemon, machine)
        plan = make_plan(DropMemory("one"), read_situation(connection, machine.uuid))
        assert not plan.is_refused, plan.refusals
        assert plan.forecast.frees.bytes == file.stat().st_blocks * 512
        assert run_plan(connection, plan).error is None
    assert not file.exists()
    assert machine.tree()["one"].memory is MemorySnapshot.NO
