"""Programs and daemons that die in the middle of a plan: what they had begun is found, and finished or left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.helper_machine import helpers
from snaptree.hosts.journal import Journal
from snaptree.hosts.recovery import block_job, with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.hosts.snapshot_xml import take_xml
from snaptree.plans.intention import Capture, Delete, Intention, Recover, Rename, Revert, Take, TakeBack
from snaptree.plans.operation import Operation, OperationState, last_undoable
from snaptree.plans.plan import (
    Action,
    DeleteSnapshot,
    EndOrphanedMerge,
    MergeLayers,
    MergeWay,
    Plan,
    RecordLayers,
    TakeSnapshot,
)
from snaptree.plans.planner import make_plan
from tests.hosts.test_merging import grow, plan_of, steps_to_delete
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import MIB, NOW, EmbeddedHost, Machine, run_tool, unchanged
from tests.kit.processes import give_way, qemu_processes

pytestmark = pytest.mark.qemu


def ask(machine: Machine, journal: Journal, intention: Intention) -> Plan:
    """Plan as the program does, with what the journal knows."""
    situation = read_situation(machine.connection, machine.uuid)
    recovers = isinstance(intention, Recover)
    return make_plan(intention, with_operations(machine.connection, situation, journal, recovers=recovers))


def recover(machine: Machine, journal: Journal) -> Operation:
    """Finish what was interrupted; it must end well, and nothing be left to do."""
    plan = ask(machine, journal, Recover())
    assert not plan.is_refused, plan.refusals
    operation = run_plan(machine.connection, plan, journal=journal)
    assert operation.error is None, f"{operation.error} {operation.error.details}"
    assert not journal.unfinished()
    assert not machine.plan(Take("another")).is_refused
    return operation


def by_libvirt(machine: Machine, *names: str) -> Plan:
    """A plan of libvirt's own deletes of external snapshots in use, the oldest first."""
    tree = machine.tree()
    return Plan(
        action=Action.DELETE,
        host_uri=machine.connection.uri,
        domain_uuid=machine.uuid,
        domain=machine.name,
        snapshots=names,
        steps=tuple(DeleteSnapshot(name, tree.children(name), merges=True) for name in names),
    )


def rules(plan: Plan) -> set[str]:
    return {finding.rule for finding in (*plan.refusals, *plan.warnings)}


MOMENTS = [(Moment.BEGUN, 0), (Moment.ACTED, 0), (Moment.BEFORE, 1), (Moment.BEGUN, 1), (Moment.ACTED, 1)]
MOMENTS += [(Moment.ENDED, 0)]


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.INTERNAL])
def test_a_delete_whose_program_was_killed_is_finished(
    daemon: LibvirtDaemon, journal: Journal, capture: Capture, moment: Moment, step: int
) -> None:
    machine = daemon.make_machine(disks=("qcow2", "qcow2"))
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number, offset=number * 65536)
        machine.write(number + 100, target="vdb")
        machine.change(Take(name, capture=capture))
    machine.write(99)
    before = machine.contents()

    plan = by_libvirt(machine, "one", "two") if capture is Capture.DISKS else machine.plan(Delete(("one", "two")))
    run_and_kill(daemon.uri, plan, journal.path, moment, step)

    refused = ask(machine, journal, Take("in between", capture=capture))
    assert "unfinished-operation" in rules(refused)
    plan = ask(machine, journal, Recover())
    assert len(plan.steps) == 2 - (step if moment is not Moment.ENDED else 2)
    assert ("half-done" in rules(plan)) == (moment is Moment.BEGUN and capture is Capture.DISKS)
    assert ("finished-already" in rules(plan)) == (step == 1 or moment in (Moment.ACTED, Moment.ENDED))
    operation = recover(machine, journal)
    assert operation.plan.action is Action.FINISH
    assert unchanged(before, machine.contents(), "one", "two")
    assert list(machine.tree().snapshots) == ["three"]
    machine.check_images()


@pytest.mark.parametrize("moment", [Moment.BEGUN, Moment.ACTED, Moment.ENDED])
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_a_snapshot_whose_program_was_killed_is_taken(
    daemon: LibvirtDaemon, journal: Journal, capture: Capture, moment: Moment
) -> None:
    machine = daemon.make_machine()
    machine.write(1)
    now = machine.contents()[NOW]
    run_and_kill(daemon.uri, machine.plan(Take("it", capture=capture)), journal.path, moment, 0)
    assert len(machine.tree()) == (moment is not Moment.BEGUN)
    operation = recover(machine, journal)
    assert machine.contents() == {"it": now, NOW: now}
    assert machine.tree()["it"].annotations.taken_by
    assert machine.tree().current == "it"

    undo = last_undoable(journal.recent())
    assert undo is not None
    assert undo.id == operation.id
    assert undo.plan.undo is not None
    back = ask(machine, journal, TakeBack(undo.plan.undo))
    assert run_plan(machine.connection, back, journal=journal, undoes=undo.id).error is None
    assert machine.contents() == {NOW: now}
    assert last_undoable(journal.recent()) is None


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
def test_a_revert_whose_program_was_killed_is_finished_and_can_be_undone(
    daemon: LibvirtDaemon, journal: Journal, moment: Moment, step: int
) -> None:
    machine = daemon.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.INTERNAL))
    machine.write(2)
    before = machine.contents()
    run_and_kill(daemon.uri, machine.plan(Revert("good")), journal.path, moment, step)
    recover(machine, journal)
    assert machine.contents()[NOW] == before["good"]

    (last, *_) = journal.recent()
    assert last.can_undo
    undo = last.plan.undo
    assert undo is not None
    machine.change(TakeBack(undo))
    assert machine.contents() == before


def take_unrecorded(machine: Machine, plan: Plan, journal: Journal, patch: pytest.MonkeyPatch) -> TakeSnapshot:
    """As when libvirt's daemon dies after QEMU has switched the disks, and before it has written that down."""
    step = plan.steps[0]
    assert isinstance(step, TakeSnapshot)
    with patch.context() as dead:
        dead.setattr("snaptree.hosts.journal.this_process", lambda: (2**22 + 1, 1.0))
        number = journal.begin(plan).id
        journal.step_begins(number, 0, was_active=machine.is_running)
    disk_only = 0 if step.memory_file else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    machine.handle.snapshotCreateXML(take_xml(step), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | disk_only)
    return step


@pytest.mark.parametrize(
    ("capture", "running", "as_first"),
    [(Capture.DISKS, True, True), (Capture.DISKS, False, False), (Capture.DISKS_AND_MEMORY, True, False)],
)
def test_a_snapshot_that_libvirt_did_not_write_down_is_recorded(
    host: EmbeddedHost,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    capture: Capture,
    running: bool,
    as_first: bool,
) -> None:
    machine = host.make_machine(disks=("raw", "qcow2"), running=running)
    machine.write(1)
    machine.write(1, target="vdb")
    if not as_first:
        machine.change(Take("before", capture=capture))
        machine.write(2)
    then = machine.contents()
    plan = machine.plan(Take("it", description="<kept>", capture=capture))
    step = take_unrecorded(machine, plan, journal, monkeypatch)
    machine.write(3)
    assert "it" not in machine.tree()
    assert "half-done" in rules(ask(machine, journal, Recover()))

    recover(machine, journal)
    tree = machine.tree()
    it = tree["it"]
    assert (tree.current, it.parent, it.description) == ("it", None if as_first else "before", "<kept>")
    assert it.consistency is step.consistency
    assert it.annotations.taken_by
    now = machine.contents()
    assert now["it"] == then[NOW]
    machine.change(Take("later", capture=capture))
    machine.change(Revert("it", take_safety_snapshot=False))
    assert machine.contents()[NOW] == then[NOW]
    assert machine.is_running == (capture is Capture.DISKS_AND_MEMORY)
    machine.change(Delete(("it",)))
    after = machine.contents()
    assert unchanged({**then, "later": now[NOW], NOW: then[NOW]}, after)
    machine.check_images()


def test_a_safety_snapshot_that_libvirt_did_not_write_down_is_recorded_and_the_revert_goes_on(
    host: EmbeddedHost, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    before = machine.contents()
    plan = machine.plan(Revert("good"))
    take_unrecorded(machine, plan, journal, monkeypatch)
    recover(machine, journal)
    assert machine.contents()[NOW] == before["good"]
    (last, *_) = journal.recent()
    assert last.can_undo
    assert last.plan.undo is not None
    machine.change(TakeBack(last.plan.undo))
    assert machine.contents() == before


def test_a_snapshot_whose_memory_was_not_saved_to_the_end_is_not_recorded(
    host: EmbeddedHost, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = host.make_machine()
    plan = machine.plan(Take("it", capture=Capture.DISKS_AND_MEMORY))
    memory_file = Path(take_unrecorded(machine, plan, journal, monkeypatch).memory_file or "")
    memory_file.write_bytes(memory_file.read_bytes().replace(b"LibvirtQemudSave", b"LibvirtQemudPart", 1))
    finish = ask(machine, journal, Recover())
    (refusal,) = [finding for finding in finish.refusals if finding.rule == "cannot-finish"]
    assert str(memory_file) in refusal.reason
    leave = ask(machine, journal, Recover(leave=True))
    assert run_plan(machine.connection, leave, journal=journal).error is None
    assert memory_file.exists()


def test_files_of_a_snapshot_that_was_not_taken_are_removed_and_it_is_taken(
    daemon: LibvirtDaemon, journal: Journal
) -> None:
    machine = daemon.make_machine()
    plan = machine.plan(Take("it", capture=Capture.DISKS))
    run_and_kill(daemon.uri, plan, journal.path, Moment.BEGUN, 0)
    left = machine.directory / "disk0.it"
    left.write_text("begun")
    assert "half-done" in rules(ask(machine, journal, Recover()))
    recover(machine, journal)
    assert machine.active_layers() == {"vda": left}


def test_somebody_elses_file_is_not_taken_for_what_was_left(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = daemon.make_machine()
    machine.change(Take("first", capture=Capture.DISKS))
    plan = by_libvirt(machine, "first")
    (take,) = machine.plan(Take("it", capture=Capture.DISKS)).steps
    assert isinstance(take, TakeSnapshot)
    both = dataclasses.replace(plan, steps=(*plan.steps, dataclasses.replace(take, expected_current=None)))
    run_and_kill(daemon.uri, both, journal.path, Moment.BEFORE, 1)
    precious = machine.directory / "disk0.it"
    precious.write_text("somebody's only copy")
    plan = ask(machine, journal, Recover())
    assert rules(plan) >= {"cannot-finish"}
    assert precious.read_text() == "somebody's only copy"


def test_what_somebody_changed_meanwhile_can_only_be_left(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = daemon.make_machine()
    for name in ("one", "two", "three"):
        machine.change(Take(name, capture=Capture.DISKS))
    run_and_kill(daemon.uri, by_libvirt(machine, "two"), journal.path, Moment.BEGUN, 0)
    daemon.virsh("snapshot-delete", machine.name, "three")
    before = machine.contents()
    assert "cannot-finish" in rules(ask(machine, journal, Recover()))
    plan = ask(machine, journal, Recover(leave=True))
    assert not plan.is_refused
    assert not plan.steps
    assert "do not revert" in " ".join(finding.reason + finding.remedy for finding in plan.warnings)
    left = run_plan(machine.connection, plan, journal=journal)
    assert (left.state, left.plan.action) == (OperationState.DONE, Action.LEAVE)
    assert machine.contents() == before
    assert not journal.unfinished()
    assert not ask(machine, journal, Delete(("two",))).is_refused


def test_a_finish_that_is_killed_is_finished_itself(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = daemon.make_machine()
    for number, name in enumerate(("one", "two", "three")):
        machine.write(number)
        machine.change(Take(name, capture=Capture.DISKS))
    before = machine.contents()
    run_and_kill(daemon.uri, by_libvirt(machine, "one", "two"), journal.path, Moment.BEGUN, 0)
    run_and_kill(daemon.uri, ask(machine, journal, Recover()), journal.path, Moment.BEFORE, 0)
    assert "half-done" in rules(ask(machine, journal, Recover()))
    run_and_kill(daemon.uri, ask(machine, journal, Recover()), journal.path, Moment.ACTED, 0)
    run_and_kill(daemon.uri, ask(machine, journal, Recover()), journal.path, Moment.BEGUN, 1)
    assert len(journal.unfinished()) == 1
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "one", "two")
    assert [operation.state for operation in journal.recent()] == [
        OperationState.DONE,
        *[OperationState.INTERRUPTED] * 4,
    ]


# Daemons, links and QEMUs that die


def with_a_large_layer(daemon: LibvirtDaemon, size: int) -> Machine:
    """A running machine with snapshots `one` and `two`, and so many bytes in the layer between them."""
    machine = daemon.make_machine(running=False)
    run_tool("qemu-img", "resize", "-q", str(machine.active_layers()["vda"]), str(2 * size))
    machine.handle.create()
    machine.write(1)
    machine.change(Take("one", capture=Capture.DISKS))
    machine.write(2, length=size)
    machine.change(Take("two", capture=Capture.DISKS))
    machine.write(3)
    for qemu in qemu_processes(machine.directory):
        give_way(qemu)
    return machine


class Change(threading.Thread):
    """A plan that runs while something happens to what it needs."""

    def __init__(self, machine: Machine, plan: Plan, journal: Journal) -> None:
        super().__init__(name="change")
        self._machine, self._plan, self._journal = machine, plan, journal
        self._link = Connection(machine.connection.uri)
        self._link.open()
        self.operation: Operation | None = None

    def run(self) -> None:
        self.operation = run_plan(self._link, self._plan, journal=self._journal)
        self._link.close()

    def until_it_merges(self) -> None:
        """Start, and come back as soon as libvirt merges."""
        self.start()
        while not block_job(self._machine.handle, "vda"):
            assert self.is_alive(), self.operation

    def end(self) -> Operation:
        self.join()
        assert self.operation is not None
        return self.operation


def test_a_delete_whose_daemon_was_killed_while_the_machine_ran_is_finished(
    daemon: LibvirtDaemon, journal: Journal
) -> None:
    machine = with_a_large_layer(daemon, 192 * MIB)
    before = machine.contents()
    change = Change(machine, by_libvirt(machine, "one"), journal)
    change.until_it_merges()
    daemon.kill()
    operation = change.end()
    assert operation.state is OperationState.INTERRUPTED
    assert journal.recent()[0].state is OperationState.INTERRUPTED

    daemon.start()
    machine.connection = daemon.connection
    finish = ask(machine, journal, Recover())
    if finish.is_refused:  # QEMU was faster, and ended the merge before the daemon was there again
        assert "shut it down" in finish.refusals[0].reason
        machine.handle.destroy()
    else:
        assert "half-done" in rules(finish)
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "one")
    machine.check_images()


def test_a_delete_whose_machine_was_killed_is_finished(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = with_a_large_layer(daemon, 192 * MIB)
    before = machine.contents()
    change = Change(machine, by_libvirt(machine, "one"), journal)
    change.until_it_merges()
    (qemu,) = qemu_processes(machine.directory)
    os.kill(qemu, signal.SIGKILL)
    assert change.end().state is OperationState.INTERRUPTED
    if not daemon.connection.host.external_snapshots:
        assert ask(machine, journal, Recover()).is_refused, "libvirt 9.0 merges running machines only"
        machine.handle.create()
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "one")
    machine.check_images()


def test_what_libvirt_still_does_for_a_killed_program_is_waited_for(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = with_a_large_layer(daemon, 384 * MIB)
    before = machine.contents()
    plan = by_libvirt(machine, "one")
    run_and_kill(daemon.uri, plan, journal.path, Moment.BEGUN, 0)
    theirs = threading.Thread(target=machine.handle.snapshotLookupByName("one").delete)
    theirs.start()
    while theirs.is_alive() and not block_job(machine.handle, "vda"):
        pass  # asking may itself have to wait, until there is nothing left to be seen
    told: list[Operation] = []
    finish = ask(machine, journal, Recover())
    operation = run_plan(machine.connection, finish, journal=journal, on_progress=told.append)
    theirs.join()
    assert operation.error is None, operation.error
    assert unchanged(before, machine.contents(), "one")


def test_a_delete_of_a_machine_that_is_off_whose_daemon_was_killed_is_finished(
    daemon: LibvirtDaemon, journal: Journal
) -> None:
    """LIBVIRT.md, 9: its QEMU is left paused, with a merge that nobody finishes."""
    machine = with_a_large_layer(daemon, 192 * MIB)
    before = machine.contents()
    machine.handle.destroy()
    if not daemon.connection.host.external_snapshots:
        pytest.skip("this libvirt does not merge machines that are off")
    change = Change(machine, by_libvirt(machine, "one"), journal)
    change.until_it_merges()
    daemon.kill()
    assert change.end().state is OperationState.INTERRUPTED

    daemon.start()
    machine.connection = daemon.connection
    assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    finish = ask(machine, journal, Recover())
    assert finish.steps[0] == EndOrphanedMerge(("vda",))
    recover(machine, journal)
    assert not machine.is_running
    assert unchanged(before, machine.contents(), "one")
    machine.check_images()


# Merges of our own


MERGE_MOMENTS = [
    *((moment, step) for step in range(3) for moment in (Moment.BEGUN, Moment.ACTED)),
    (Moment.MERGING, 0),
    (Moment.ENDED, 0),
]


@pytest.mark.parametrize(("moment", "number"), MERGE_MOMENTS)
@pytest.mark.parametrize(("way", "live"), [(MergeWay.COMMIT, True), (MergeWay.COMMIT, False), (MergeWay.PULL, False)])
def test_a_merge_whose_program_was_killed_is_gone_on_with(
    daemon: LibvirtDaemon, journal: Journal, way: MergeWay, live: bool, moment: Moment, number: int
) -> None:
    machine = daemon.make_machine()
    grow(machine, "one", "two", "three")
    before = machine.contents()
    if not live:
        machine.handle.destroy()
    steps = steps_to_delete(machine, "two", way, live=live)
    run_and_kill(daemon.uri, plan_of(machine, steps), journal.path, moment, number)
    if number == 0 and moment is not Moment.ENDED:
        assert "half-done" in rules(ask(machine, journal, Recover()))
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "two")
    assert list(machine.tree().snapshots) == ["one", "three"]
    assert not helpers(daemon.connection)
    machine.check_images()


def commit_behind_libvirts_back(machine: Machine, step: MergeLayers) -> None:
    """Let QEMU merge, and libvirt know nothing of it: as if its daemon had been dead all the time."""

    def ask_qemu(command: str, **arguments: str) -> Any:
        asked = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(machine.handle, asked, 0))
        assert "return" in answer, answer
        return answer["return"]

    nodes = {each["file"]: each["node-name"] for each in ask_qemu("query-named-block-nodes") if each["drv"] == "qcow2"}
    active, (top, base) = str(machine.active_layers()[step.target]), step.layers
    ask_qemu(
        "block-commit",
        **{"job-id": "merge", "device": nodes[active], "top-node": nodes[top], "base-node": nodes[base]},
        **{"backing-file": base},
    )
    while ask_qemu("query-jobs"):
        pass


def test_a_merge_that_libvirt_never_heard_of_is_finished_when_the_machine_is_off(
    daemon: LibvirtDaemon, journal: Journal
) -> None:
    machine = daemon.make_machine()
    grow(machine, "one", "two", "three")
    before = machine.contents()
    steps = steps_to_delete(machine, "two", MergeWay.COMMIT, live=True)
    run_and_kill(daemon.uri, plan_of(machine, steps), journal.path, Moment.BEGUN, 0)
    assert isinstance(steps[0], MergeLayers)
    commit_behind_libvirts_back(machine, steps[0])
    refused = ask(machine, journal, Recover())
    assert rules(refused) == {"cannot-finish"}
    assert "shut it down" in refused.refusals[0].reason
    machine.handle.destroy()
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "two")
    assert list(machine.tree().snapshots) == ["one", "three"]
    machine.check_images()


def test_a_merge_that_goes_on_in_the_machine_is_taken_up_and_hurried(daemon: LibvirtDaemon, journal: Journal) -> None:
    machine = daemon.make_machine()
    grow(machine, "one", "two", "three")
    before = machine.contents()
    steps = steps_to_delete(machine, "two", MergeWay.COMMIT, live=True)
    run_and_kill(daemon.uri, plan_of(machine, steps), journal.path, Moment.MERGING, 0)
    job = block_job(machine.handle, "vda")
    assert 0 < job["cur"] < job["end"], "it goes on without its program"
    assert "goes on" in " ".join(finding.reason for finding in ask(machine, journal, Recover()).warnings)
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "two")


def test_a_merge_whose_machine_ended_is_left_and_planned_anew(daemon: LibvirtDaemon, journal: Journal) -> None:
    """It was to go on in a QEMU that is no more: what is off is merged by other steps."""
    machine = daemon.make_machine()
    grow(machine, "one", "two", "three")
    before = machine.contents()
    steps = steps_to_delete(machine, "two", MergeWay.COMMIT, live=True)
    run_and_kill(daemon.uri, plan_of(machine, steps), journal.path, Moment.MERGING, 0)
    machine.handle.destroy()
    (refusal,) = ask(machine, journal, Recover()).refusals
    assert refusal.rule == "cannot-finish"
    assert "does not run any more" in refusal.reason
    assert run_plan(machine.connection, ask(machine, journal, Recover(leave=True)), journal=journal).error is None
    assert run_plan(machine.connection, ask(machine, journal, Delete(("two",))), journal=journal).error is None
    assert unchanged(before, machine.contents(), "two")


@pytest.mark.parametrize("moment", [Moment.MERGING, Moment.ACTED])
def test_what_was_overwritten_is_not_reverted_to(daemon: LibvirtDaemon, journal: Journal, moment: Moment) -> None:
    """It is a mixture, which libvirt would bring back without a word."""
    machine = daemon.make_machine()
    grow(machine, "one", "two", "three")
    before = machine.contents()
    machine.handle.destroy()
    steps = steps_to_delete(machine, "two", MergeWay.COMMIT, live=False)
    run_and_kill(daemon.uri, plan_of(machine, steps), journal.path, moment, 0)
    leave = ask(machine, journal, Recover(leave=True))
    assert {"half-done", "left-undone"} <= rules(leave)
    says = " ".join(finding.remedy for finding in leave.warnings)
    assert "All other snapshots are what they were" in says
    assert "do not revert to snapshots" not in says, "libvirt has nothing to learn of yet"
    assert run_plan(machine.connection, leave, journal=journal).error is None
    assert machine.contents()["two"] != before["two"] or moment is Moment.MERGING
    assert machine.tree()["two"].annotations.half_deleted, "so that others learn of it too"
    assert "left-half-deleted" in rules(machine.plan(Revert("two")))
    assert "rename-half-deleted" in rules(ask(machine, journal, Rename("two", "good-old")))
    assert run_plan(machine.connection, ask(machine, journal, Delete(("two",))), journal=journal).error is None
    assert unchanged(before, machine.contents(), "two")


def test_what_qemu_merged_to_the_end_is_told_to_libvirt(daemon: LibvirtDaemon, journal: Journal) -> None:
    """As when QEMU or the daemon dies between the end of the merge and libvirt's note of it."""
    machine = daemon.make_machine(disks=("qcow2", "qcow2"))
    grow(machine, "one", "two", "three", targets=("vda", "vdb"))
    before = machine.contents()
    run_and_kill(daemon.uri, by_libvirt(machine, "two"), journal.path, Moment.BEGUN, 0)
    two = machine.tree()["two"]
    for disk in two.disks:
        daemon.virsh(
            "blockcommit", machine.name, disk.target, "--base", str(disk.frozen), "--top", str(disk.overlay), "--wait"
        )
    plan = ask(machine, journal, Recover())
    assert isinstance(plan.steps[0], RecordLayers)
    recover(machine, journal)
    assert unchanged(before, machine.contents(), "two")
    assert list(machine.tree().snapshots) == ["one", "three"]
    assert not any(Path(str(disk.overlay)).exists() for disk in two.disks)
    machine.change(Delete(("one",)))
    assert unchanged(before, machine.contents(), "one", "two")
