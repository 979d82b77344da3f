"""Reverts on real QEMU, of every kind and into every state, and taken back again. Before libvirt 9.9 external ones are
SnapTree's own work, from 9.9 on libvirt's: what they give is the same."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree.ElementTree import fromstring

import libvirt
import libvirt_qemu
import pytest

from snaptree.hosts.running import run_plan
from snaptree.model.estate import DiskSnapshot, MemorySnapshot
from snaptree.plans.intention import Capture, Delete, Revert, Take, TakeBack
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import ForkAtSnapshot, RemoveLeftover, StateAfter, StopMachine, TakeSnapshot
from tests.kit.machines import NOW, EmbeddedHost, Machine

pytestmark = pytest.mark.qemu

OFF, RUNNING, PAUSED = libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED
WANTED = {StateAfter.OFF: OFF, StateAfter.RUNNING: RUNNING, StateAfter.PAUSED: PAUSED}
_TICKS = 0x46C
"""Where a PC's BIOS counts the ticks of its clock, 18 a second."""


def state(machine: Machine) -> int:
    return int(machine.handle.state()[0])


def ticks(machine: Machine) -> int:
    """What the guest has counted so far: it is memory, and goes back with it."""
    answer = libvirt_qemu.qemuMonitorCommand(
        machine.handle, f"xp /1wx {_TICKS:#x}", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    )
    return int(answer.split()[-1], 16)


def wait_for_ticks(machine: Machine, more_than: int = 0) -> int:
    """Until the guest has counted further."""
    while (found := ticks(machine)) <= more_than:
        os.sched_yield()
    return found


def put_into(machine: Machine, wanted: int) -> None:
    """Bring a machine into a state, however it is."""
    if wanted == OFF:
        if machine.is_running:
            machine.handle.destroy()
        return
    if not machine.is_running:
        machine.handle.create()
    if wanted == PAUSED:
        machine.handle.suspend()
    elif state(machine) == PAUSED:
        machine.handle.resume()


def safety_of(machine: Machine) -> str:
    (safety,) = [snapshot.name for snapshot in machine.tree() if snapshot.annotations.safety]
    return safety


def files(machine: Machine) -> set[str]:
    return {path.name for path in machine.directory.iterdir()}


def without(contents: dict[str, dict[str, str]], *names: str) -> dict[str, dict[str, str]]:
    return {name: content for name, content in contents.items() if name not in names}


@pytest.mark.parametrize("now", [RUNNING, PAUSED, OFF])
@pytest.mark.parametrize("captured", [RUNNING, PAUSED, OFF])
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_there_and_back(host: EmbeddedHost, capture: Capture, captured: int, now: int) -> None:
    """From every state to a snapshot of every kind taken in every state, and undone."""
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    machine.write(1)
    machine.write(2, target="vdb")
    put_into(machine, captured)
    machine.change(Take("good", capture=capture))
    put_into(machine, RUNNING)
    machine.write(3)
    # A child, so that what libvirt notes of the layers in use is put to the test.
    machine.change(Take("later", capture=capture))
    machine.write(4, target="vdb")
    put_into(machine, now)
    before = machine.contents()

    operation = machine.change(Revert("good"))
    after = machine.contents()
    assert after[NOW] == before["good"]
    safety = safety_of(machine)
    assert after[safety] == before[NOW]
    assert without(after, NOW, safety) == without(before, NOW)
    assert machine.tree().current == "good"
    has_memory = capture is not Capture.DISKS and captured != OFF
    assert state(machine) == (captured if has_memory else OFF)
    machine.check_images()

    undo = operation.plan.undo
    assert undo is not None
    back = machine.change(TakeBack(undo))
    restored = machine.contents()
    assert state(machine) == now
    assert restored[NOW] == before[NOW]
    stays = {finding.rule for finding in back.plan.warnings} & {"undo-keeps-snapshot"}
    if stays:
        assert without(restored, safety) == before
    else:
        assert restored == before
        assert machine.tree().current == "later"
    machine.check_images()


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
@pytest.mark.parametrize("running", [True, False])
def test_the_state_afterwards_is_the_one_asked_for(
    host: EmbeddedHost, running: bool, capture: Capture, wanted: StateAfter
) -> None:
    machine = host.make_machine(running=running)
    machine.write(1)
    machine.change(Take("good", capture=capture))
    machine.write(2)
    before = machine.contents()
    machine.change(Revert("good", state_after=wanted))
    assert state(machine) == WANTED[wanted]
    assert machine.contents()[NOW] == before["good"]
    assert machine.contents()[safety_of(machine)] == before[NOW]


def test_the_memory_comes_back(host: EmbeddedHost) -> None:
    """The guest goes on counting where it was, and no further."""
    machine = host.make_machine()
    began = wait_for_ticks(machine)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    far = wait_for_ticks(machine, began + 60)
    machine.change(Revert("good", take_safety_snapshot=False, state_after=StateAfter.PAUSED))
    back = ticks(machine)
    assert began <= back < far
    machine.handle.resume()
    assert wait_for_ticks(machine, back) > back


def test_off_afterwards_never_lets_the_guest_run(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    wait_for_ticks(machine)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    seen: list[tuple[int, int]] = []

    def note(_connection: object, domain: libvirt.virDomain, event: int, detail: int, _data: object) -> None:
        if domain.UUIDString() == machine.uuid:
            seen.append((event, detail))

    number = host.connection.handle.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, note, None)
    try:
        machine.change(Revert("good", take_safety_snapshot=False, state_after=StateAfter.OFF))
    finally:
        host.connection.handle.domainEventDeregisterAny(number)
    assert state(machine) == OFF
    assert libvirt.VIR_DOMAIN_EVENT_RESUMED not in {event for event, _ in seen}


def test_a_managed_save_is_thrown_away_only_if_that_is_asked_for(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS))
    machine.write(2)
    machine.handle.managedSave()
    before = machine.contents()
    refused = machine.plan(Revert("good"))
    (refusal,) = [finding for finding in refused.refusals if finding.rule == "managed-save"]
    assert "--drop-managed-save" in refusal.remedy
    assert machine.handle.hasManagedSaveImage()

    operation = machine.change(Revert("good", drop_managed_save=True, state_after=StateAfter.RUNNING))
    assert "managed-save-dropped" in {finding.rule for finding in operation.plan.warnings}
    assert not machine.handle.hasManagedSaveImage()
    assert machine.contents()[NOW] == before["good"]
    assert machine.contents()[safety_of(machine)] == before[NOW]


def test_a_managed_save_made_meanwhile_stops_the_plan(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("good", capture=Capture.INTERNAL))
    plan = machine.plan(Revert("good", take_safety_snapshot=False))
    machine.handle.managedSave()
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert "managed save" in str(operation.error)
    assert machine.handle.hasManagedSaveImage()


def test_a_disk_that_a_snapshot_left_out_is_not_written_below_others(host: EmbeddedHost) -> None:
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    machine.write(1, target="vdb")
    machine.change(Take("partly", capture=Capture.DISKS, excluded_disks=("vdb",)))
    machine.write(2, target="vdb")
    machine.change(Take("all", capture=Capture.DISKS))
    machine.write(3, target="vdb")
    before = machine.contents()
    machine.change(Revert("partly", state_after=StateAfter.RUNNING))
    machine.write(4, target="vdb")
    after = machine.contents()
    assert after["all"] == before["all"]
    assert after[safety_of(machine)] == before[NOW]
    machine.check_images()


# Layers that are gone are found while the machine still runs


@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.INTERNAL])
def test_a_layer_deep_down_is_missed_while_the_machine_still_runs(host: EmbeddedHost, capture: Capture) -> None:
    template = host.make_machine(running=False)
    base = template.active_layers()["vda"]
    machine = host.make_machine(backing=base)
    machine.change(Take("one", capture=capture))
    machine.change(Take("two", capture=capture))
    plan = machine.plan(Revert("one", take_safety_snapshot=False))
    assert not plan.is_refused
    base.rename(base.with_suffix(".away"))
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    assert str(base) in operation.error.summary
    assert machine.is_running
    assert "layer-missing" in {finding.rule for finding in machine.plan(Revert("one")).refusals}
    base.with_suffix(".away").rename(base)
    machine.change(Revert("one"))


def test_a_revert_that_fails_says_where_the_machine_is_and_the_way_back(host: EmbeddedHost) -> None:
    """The memory file is there, but is none: nobody can know before QEMU looks at it."""
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    before = machine.contents()
    memory_file = machine.tree()["good"].memory_file
    assert memory_file is not None
    plan = machine.plan(Revert("good"))
    content = Path(memory_file).read_bytes()
    Path(memory_file).write_bytes(b"not a memory image" + bytes(4096))
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    safety = safety_of(machine)
    assert safety in operation.error.hint
    assert ("off now" if not machine.is_running else "running now") in operation.error.hint
    assert machine.contents()[safety] == before[NOW]
    Path(memory_file).write_bytes(content)
    machine.change(Revert(safety))
    assert machine.contents()[NOW] == before[NOW]
    machine.change(Revert("good"))
    assert machine.contents()[NOW] == before["good"]


# SnapTree's own way, before libvirt 9.9


@pytest.fixture
def forks(host: EmbeddedHost) -> EmbeddedHost:
    if host.connection.host.external_snapshots:
        pytest.skip("libvirt 9.9 and later revert to external snapshots themselves")
    return host


def test_a_fork_leaves_no_file_behind(forks: EmbeddedHost) -> None:
    machine = forks.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    operation = machine.change(Revert("good"))
    kinds = [type(step) for step in operation.plan.steps]
    assert kinds == [TakeSnapshot, StopMachine, ForkAtSnapshot, RemoveLeftover]
    assert "machine-is-stopped" in {finding.rule for finding in operation.plan.warnings}
    named = {Path(path).name for path in (*machine.active_layers().values(),)}
    for snapshot in machine.tree():
        named |= {Path(disk.frozen or "").name for disk in snapshot.disks}
        named |= {Path(snapshot.memory_file).name} if snapshot.memory_file else set()
    assert files(machine) == named


def test_what_is_made_by_a_fork_is_for_its_owner_only(forks: EmbeddedHost) -> None:
    machine = forks.make_machine(running=False)
    machine.change(Take("good", capture=Capture.DISKS))
    machine.change(Revert("good"))
    assert machine.active_layers()["vda"].stat().st_mode & 0o077 == 0


def test_a_tree_grows_on_after_a_fork(forks: EmbeddedHost) -> None:
    """Branches taken, left, and deleted again: everything keeps its content, and libvirt's own definition is sound."""
    machine = forks.make_machine()
    for number, name in enumerate(("root", "left", "leaf")):
        machine.write(number)
        machine.change(Take(name, capture=Capture.DISKS_AND_MEMORY))
    machine.change(Revert("root", take_safety_snapshot=False))
    machine.write(7)
    machine.change(Take("right", capture=Capture.DISKS_AND_MEMORY))
    machine.write(8)
    before = machine.contents()
    assert machine.tree()["right"].parent == "root"
    machine.change(Revert("leaf"))
    after = machine.contents()
    assert after[NOW] == before["leaf"]
    assert without(after, NOW, safety_of(machine)) == without(before, NOW)
    machine.handle.destroy()
    machine.handle.create()
    machine.write(9)
    machine.change(Take("twig", capture=Capture.DISKS_AND_MEMORY))
    assert without(machine.contents(), NOW, "twig") == without(after, NOW)
    now = machine.contents()
    machine.change(Delete(("twig",)))
    assert machine.contents() == without(now, "twig")
    machine.check_images()


def test_a_fork_that_fails_puts_everything_back(forks: EmbeddedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = forks.make_machine(disks=("qcow2", "qcow2"), running=False)
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS))
    machine.write(2)
    machine.change(Take("later", capture=Capture.DISKS))
    before, files_before = machine.contents(), files(machine)
    definition = machine.handle.XMLDesc()
    plan = machine.plan(Revert("good", take_safety_snapshot=False))
    monkeypatch.setattr("snaptree.hosts.reverting._make_current", _fail)
    operation = run_plan(forks.connection, plan)
    assert operation.state is OperationState.FAILED
    assert machine.handle.XMLDesc() == definition
    assert machine.contents() == before
    assert machine.tree().current == "later"
    assert files(machine) == files_before


def _fail(*_arguments: object) -> None:
    from snaptree.model.errors import SnapTreeError

    raise SnapTreeError("Not today.")


def test_an_overlay_that_exists_by_now_stops_a_fork_before_the_machine_is_stopped(forks: EmbeddedHost) -> None:
    machine = forks.make_machine()
    machine.change(Take("good", capture=Capture.DISKS))
    plan = machine.plan(Revert("good", take_safety_snapshot=False))
    (fork,) = [step for step in plan.steps if isinstance(step, ForkAtSnapshot)]
    Path(fork.overlays["vda"]).write_text("precious")
    operation = run_plan(forks.connection, plan)
    assert operation.state is OperationState.FAILED
    assert operation.steps_done == 0
    assert machine.is_running
    assert Path(fork.overlays["vda"]).read_text() == "precious"


def test_the_definition_after_a_fork_knows_nothing_of_old_layers(forks: EmbeddedHost) -> None:
    machine = forks.make_machine()
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    uuid, name = machine.handle.UUIDString(), machine.handle.name()
    machine.change(Revert("good"))
    inactive = fromstring(machine.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    (source,) = inactive.findall("devices/disk/source")
    assert source.get("file") == str(machine.active_layers()["vda"])
    assert not inactive.findall("devices/disk/backingStore")
    assert (inactive.findtext("uuid"), inactive.findtext("name")) == (uuid, name)
    good = machine.tree()["good"]
    assert good.memory is MemorySnapshot.EXTERNAL
    assert [disk.how for disk in good.disks] == [DiskSnapshot.EXTERNAL]
