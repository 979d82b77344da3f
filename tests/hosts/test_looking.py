"""Machines that look at a snapshot, on real QEMU: they show what it holds, and nothing else feels them come and go."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from snaptree.hosts.domain_xml import parse
from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import analysed, read_layers
from snaptree.hosts.look_xml import read_mark
from snaptree.hosts.looking import copy_out
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.errors import CancelledError, ChangedMeanwhileError, SnapTreeError
from snaptree.plans.intention import Capture, Delete, Intention, Look, Recover, Take, Unlook, take_back
from snaptree.plans.naming import part_of
from snaptree.plans.operation import Operation, OperationState, last_undoable
from snaptree.plans.plan import CopyOut, MakeLook, Plan
from snaptree.plans.planner import make_plan
from tests.hosts.test_faults import fill
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import DISK_SIZE, MIB, NOW, EmbeddedHost, Machine, remove, run_tool

pytestmark = pytest.mark.qemu

DEVICES = """
<interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>
<serial type='file'><source path='/tmp/never-made.log'/><target port='0'/></serial>
<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
"""


def looking_at(machine: Machine, operation: Operation) -> Machine:
    """The machine that a look made."""
    make = next(step for step in operation.plan.steps if isinstance(step, MakeLook))
    return Machine(machine.connection, make.machine, make.uuid, machine.directory)


def files(machine: Machine) -> set[str]:
    return {path.name for path in machine.directory.iterdir()}


def rules(plan: Plan) -> set[str]:
    return {finding.rule for finding in (*plan.refusals, *plan.warnings)}


def with_history(
    host: EmbeddedHost, capture: Capture, *, running: bool, disks: tuple[str, ...] = ("qcow2",)
) -> Machine:
    """A machine with snapshots `one` and `two`, and something written since."""
    machine = host.make_machine(disks=disks, running=running)
    for number, name in enumerate(("one", "two")):
        for target in machine.active_layers():
            machine.write(10 * number + ord(target[-1]), target=target, length=(number + 1) * 65536)
        machine.change(Take(name, capture=capture))
    machine.write(99)
    return machine


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("capture", "disks"),
    [
        (Capture.DISKS, ("qcow2", "raw")),
        (Capture.DISKS_AND_MEMORY, ("qcow2",)),
        (Capture.INTERNAL, ("qcow2", "qcow2")),
    ],
)
def test_a_look_shows_what_the_snapshot_holds_and_leaves_no_trace(
    host: EmbeddedHost, capture: Capture, disks: tuple[str, ...], running: bool
) -> None:
    machine = with_history(host, capture, running=running, disks=disks)
    before, files_before = machine.contents(), files(machine)
    operation = machine.change(Look("one", start=True))
    look = looking_at(machine, operation)
    assert look.name == f"{machine.name}-at-one"
    assert look.is_running
    assert look.contents()[NOW] == before["one"]
    # It is written to, while the other machine runs on what is below: neither sees the other's.
    for target in look.active_layers():
        look.write(200, target=target)
    machine.write(98)
    contents = machine.contents()
    assert {name: contents[name] for name in ("one", "two")} == {name: before[name] for name in ("one", "two")}
    machine.write(99)
    machine.check_images()

    look.change(Unlook())
    assert machine.contents() == before
    assert files(machine) == files_before
    assert look.name not in {other.name() for other in host.connection.handle.listAllDomains()}
    machine.check_images()


def analysed_plan(machine: Machine, intention: Intention) -> Plan:
    """Plan with what is in the clusters of the images, as the program does."""
    situation = read_situation(machine.connection, machine.uuid)
    return make_plan(intention, replace(situation, layers=analysed(machine.connection, situation.layers)))


def run_well(machine: Machine, plan: Plan, journal: Journal | None = None) -> Operation:
    assert not plan.is_refused, plan.refusals
    operation = run_plan(machine.connection, plan, journal=journal)
    assert operation.error is None, f"{operation.error} {operation.error.details}"
    return operation


def data_in(path: Path) -> int:
    """Bytes that an image defines as data, itself and not by what it stands on."""
    entries = json.loads(run_tool("qemu-img", "map", "-U", "--output=json", "-f", "qcow2", str(path)))
    return sum(entry["length"] for entry in entries if entry["depth"] == 0 and entry["data"])


@pytest.mark.parametrize("running", [True, False])
def test_an_internal_snapshot_is_copied_with_what_it_holds_and_no_more(
    host: EmbeddedHost, tmp_path: Path, running: bool
) -> None:
    base = tmp_path / "base.raw"
    run_tool("qemu-img", "create", "-q", "-f", "raw", str(base), str(DISK_SIZE))
    run_tool("qemu-io", "-f", "raw", "-c", "write -P 7 4M 1M", str(base))
    machine = host.make_machine(running=running, backing=base)
    machine.write(1, length=192 * 1024)
    machine.change(Take("inside", capture=Capture.INTERNAL))
    machine.write(2, offset=MIB, length=2 * MIB)
    plan = analysed_plan(machine, Look("inside"))
    look = looking_at(machine, run_well(machine, plan))
    assert look.contents()[NOW] == machine.contents()["inside"]
    assert data_in(look.active_layers()["vda"]) == plan.forecast.copies.bytes == 192 * 1024


@pytest.mark.parametrize("is_read_first", [True, False])
def test_a_snapshot_that_is_deleted_while_it_is_copied_gives_no_copy(
    host: EmbeddedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read_first: bool
) -> None:
    machine = with_history(host, Capture.INTERNAL, running=False)
    step = analysed_plan(machine, Look("one")).steps[0]
    assert isinstance(step, CopyOut)
    left = files(machine)
    deleted = tmp_path / "deleted"
    real = shutil.which("qemu-img")
    waits = f"while [ ! -e {deleted} ]; do sleep 0.02; done"
    order = [f'{real} "$@" || exit', waits] if is_read_first else ["echo '(0.00/100%)'", waits, f'exec {real} "$@"']
    others = f'[ "$1" = convert ] || exec {real} "$@"'  # libvirt's own, by which it deletes the snapshot
    slow = tmp_path / "qemu-img"
    slow.write_text("\n".join(["#!/bin/sh", others, *order, ""]))
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def delete(share: float) -> None:
        if not deleted.exists() and share == (1 if is_read_first else 0):
            machine.handle.snapshotLookupByName("one").delete()
            deleted.touch()

    with pytest.raises(ChangedMeanwhileError, match="one"):
        copy_out(step, on_progress=delete)
    with pytest.raises(ChangedMeanwhileError, match="one"):
        copy_out(step, on_progress=lambda _share: None)
    assert files(machine) == left


def test_a_copy_can_be_cancelled(host: EmbeddedHost) -> None:
    machine = with_history(host, Capture.INTERNAL, running=True)
    step = analysed_plan(machine, Look("one")).steps[0]
    assert isinstance(step, CopyOut)
    left = files(machine)
    with pytest.raises(CancelledError):
        copy_out(step, on_progress=lambda _share: None, cancelled=lambda: True)
    assert files(machine) == left


def test_the_new_machine_is_another_one(host: EmbeddedHost) -> None:
    machine = host.make_machine(extra_devices=DEVICES, running=False)
    machine.change(Take("one", capture=Capture.DISKS))
    plan = machine.plan(Look("one", machine="looker"))
    assert {"look-networks-off", "look-keeps-layers"} <= rules(plan)
    look = looking_at(machine, run_well(machine, plan))
    definition = parse(look.handle.XMLDesc())
    assert definition.findtext("name") == look.name == "looker"
    assert definition.findtext("uuid") == look.uuid != machine.uuid
    (interface,) = definition.findall("devices/interface")
    assert interface.find("link[@state='down']") is not None
    mac = interface.find("mac")
    assert mac is not None
    assert mac.get("address") not in (None, "52:54:00:11:22:33")
    assert [serial.get("type") for serial in definition.findall("devices/serial")] == ["pty"]
    assert not look.handle.autostart()
    mark = read_mark(definition)
    assert mark is not None
    assert (mark.snapshot, mark.domain, mark.domain_uuid) == ("one", machine.name, machine.uuid)
    assert read_layers(host.connection, look.uuid, look.tree()).looks_at == mark
    assert read_layers(host.connection, machine.uuid, machine.tree()).looks_at is None

    connected = looking_at(machine, machine.change(Look("one", connect_networks=True)))
    assert parse(connected.handle.XMLDesc()).find("devices/interface/link[@state='down']") is None
    assert connected.name == f"{machine.name}-at-one"


def test_what_it_stands_on_outlives_the_snapshot(host: EmbeddedHost) -> None:
    machine = with_history(host, Capture.DISKS, running=True)
    before = machine.contents()
    looks = {name: looking_at(machine, machine.change(Look(name))) for name in ("one", "two")}
    plan = analysed_plan(machine, Delete(("one",)))
    assert looks["one"].name in "".join(warning.reason for warning in plan.warnings)
    run_well(machine, plan)
    run_well(machine, analysed_plan(machine, Delete(("two",))))
    assert not len(machine.tree())
    assert machine.contents() == {NOW: before[NOW]}
    for name, look in looks.items():
        assert look.contents()[NOW] == before[name]
        look.handle.create()
        look.change(Unlook())
    machine.check_images()


def test_its_own_snapshots_go_with_it_and_what_stands_on_it_keeps_it(host: EmbeddedHost) -> None:
    machine = with_history(host, Capture.DISKS, running=False)
    before, files_before = machine.contents(), files(machine)
    look = looking_at(machine, machine.change(Look("one", start=True)))
    look.write(5)
    look.change(Take("inner", capture=Capture.DISKS_AND_MEMORY))
    look.write(6)
    # A second look, at a snapshot of the first: that one can't go before.
    second = looking_at(look, look.change(Look("inner")))
    refused = look.plan(Unlook())
    assert [refusal.rule for refusal in refused.refusals] == ["unlook-needed"]
    assert second.name in refused.refusals[0].reason
    second.change(Unlook())
    plan = look.plan(Unlook())
    assert {"unlook-loses", "unlook-stops"} <= rules(plan)
    run_well(look, plan)
    assert files(machine) == files_before
    assert machine.contents() == before


def test_only_what_a_look_made_is_removed(host: EmbeddedHost) -> None:
    machine = with_history(host, Capture.DISKS, running=False)
    assert [refusal.rule for refusal in machine.plan(Unlook()).refusals] == ["unlook-no-look"]
    look = looking_at(machine, machine.change(Look("one")))
    plan = look.plan(Unlook())
    # A copy of its definition, as other tools make it, is another machine.
    definition = parse(look.handle.XMLDesc())
    for tag, text in (("name", "copy"), ("uuid", "c0ffee00-0000-4000-8000-000000000001")):
        element = definition.find(tag)
        assert element is not None
        element.text = text
    copy = host.connection.handle.defineXML(ET.tostring(definition, encoding="unicode"))
    left = files(machine)
    copied = Machine(host.connection, "copy", copy.UUIDString(), machine.directory)
    assert [refusal.rule for refusal in copied.plan(Unlook()).refusals] == ["unlook-no-look"]
    assert [refusal.rule for refusal in look.plan(Unlook()).refusals] == ["unlook-needed"]
    operation = run_plan(host.connection, plan)
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert "copy" in operation.error.summary
    assert files(machine) == left
    remove(copy)
    assert run_plan(host.connection, plan).error is None


def test_what_is_in_the_way_is_said(host: EmbeddedHost) -> None:
    machine = with_history(host, Capture.DISKS, running=False)
    assert "look-name-taken" in rules(machine.plan(Look("one", machine=machine.name)))
    assert "look-name-not-allowed" in rules(machine.plan(Look("one", machine="a/b")))
    (machine.directory / "here-vda.qcow2").touch()
    assert "look-file-exists" in rules(machine.plan(Look("one", machine="here")))
    plan = machine.plan(Look("one", machine="later"))
    (machine.directory / "later-vda.qcow2").touch()
    operation = run_plan(host.connection, plan)
    assert isinstance(operation.error, ChangedMeanwhileError)
    assert operation.state is OperationState.FAILED
    (machine.directory / "later-vda.qcow2").unlink()
    frozen = machine.tree()["one"].disks[0].frozen
    assert frozen is not None
    away = Path(shutil.move(frozen, f"{frozen}.away"))
    left = files(machine)
    assert "look-layer-missing" in rules(machine.plan(Look("one")))
    operation = run_plan(host.connection, replace(plan, expected_chains={}))
    assert isinstance(operation.error, SnapTreeError)
    assert "missing" in operation.error.summary
    assert files(machine) == left
    shutil.move(away, frozen)
    assert run_plan(host.connection, plan).error is None


def test_a_disk_that_is_full_by_then_leaves_nothing(host: EmbeddedHost, small_disk: Path) -> None:
    directory = small_disk / "vm"
    directory.mkdir()
    machine = host.make_machine(running=False, directory=directory)
    machine.write(1, length=4 * MIB)
    machine.change(Take("inside", capture=Capture.INTERNAL))
    before, left = machine.contents(), files(machine)
    plan = analysed_plan(machine, Look("inside"))
    filler = fill(small_disk)
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    assert "No space left" in operation.error.summary
    assert files(machine) == left
    assert machine.contents() == before
    assert [each.rule for each in analysed_plan(machine, Look("inside")).refusals] == ["look-lacks-room"]
    filler.unlink()
    run_well(machine, plan)


# Undo, and programs that die


def ask(machine: Machine, journal: Journal, intention: Intention) -> Plan:
    """Plan as the program does, with what the journal knows."""
    situation = read_situation(machine.connection, machine.uuid)
    recovers = isinstance(intention, Recover)
    return make_plan(intention, with_operations(machine.connection, situation, journal, recovers=recovers))


def test_undo_removes_the_machine(host: EmbeddedHost, journal: Journal) -> None:
    machine = with_history(host, Capture.DISKS, running=False)
    left = files(machine)
    operation = run_well(machine, machine.plan(Look("one")), journal)
    last = last_undoable(journal.recent())
    assert last is not None
    assert last.id == operation.id
    uuid, intention = take_back(last.plan)
    look = looking_at(machine, operation)
    assert (uuid, intention) == (look.uuid, Unlook())
    assert run_plan(host.connection, look.plan(intention), journal=journal, undoes=last.id).error is None
    assert files(machine) == left
    assert last_undoable(journal.recent()) is None

    # Removed without a word of undo, it is not offered to be taken back either.
    again = looking_at(machine, run_well(machine, machine.plan(Look("one")), journal))
    run_well(again, again.plan(Unlook()), journal)
    assert last_undoable(journal.recent(), machine.uuid) is None


MOMENTS = [
    (Capture.DISKS, Moment.BEGUN, 0),
    (Capture.DISKS, Moment.ACTED, 0),
    (Capture.INTERNAL, Moment.BEGUN, 0),
    (Capture.INTERNAL, Moment.ACTED, 0),
    (Capture.INTERNAL, Moment.BEFORE, 1),
    (Capture.INTERNAL, Moment.ENDED, 0),
]


@pytest.mark.parametrize("leave", [False, True])
def test_a_look_whose_program_was_killed_is_finished_or_left(
    daemon: LibvirtDaemon, journal: Journal, leave: bool
) -> None:
    for capture, moment, step in MOMENTS:
        machine = daemon.make_machine(running=False)
        machine.write(1)
        machine.change(Take("one", capture=capture))
        before, files_before = machine.contents(), files(machine)
        plan = machine.plan(Look("one"))
        run_and_kill(daemon.uri, plan, journal.path, moment, step)
        if moment is Moment.BEGUN:  # what a program killed a little later leaves
            path = machine.directory / f"{machine.name}-at-one-vda.qcow2"
            Path(part_of(str(path)) if isinstance(plan.steps[0], CopyOut) else path).touch()
        assert "unfinished-operation" in rules(ask(machine, journal, Look("one")))
        recovery = ask(machine, journal, Recover(leave=leave))
        operation = run_well(machine, recovery, journal)
        assert not journal.unfinished()
        assert machine.contents() == before
        if leave:
            stray = files(machine) - files_before
            said = " ".join(f"{warning.reason} {warning.remedy}" for warning in recovery.warnings)
            assert all(name in said for name in stray)
            continue
        look = looking_at(machine, Operation(0, plan, OperationState.DONE, 0))
        assert look.contents()[NOW] == before["one"]
        assert last_undoable(journal.recent(), machine.uuid) == journal.operation(operation.id)
        run_well(look, look.plan(Unlook()), journal)
        assert files(machine) == files_before


def test_a_removal_whose_program_was_killed_is_finished(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = daemon.make_machine(running=False)
    machine.change(Take("one", capture=Capture.DISKS))
    before, left = machine.contents(), files(machine)
    look = looking_at(machine, machine.change(Look("one")))
    run_and_kill(daemon.uri, look.plan(Unlook()), journal.path, Moment.BEGUN, 0)
    (machine.directory / f"{look.name}-vda.qcow2").unlink()
    recovery = ask(look, journal, Recover())
    assert "half-done" in rules(recovery)
    run_well(look, recovery, journal)
    assert look.name not in {other.name() for other in daemon.connection.handle.listAllDomains()}
    assert files(machine) == left
    assert machine.contents() == before
