"""Running plans on real QEMU: what was asked for happens, nothing else changes, and what stops a plan loses nothing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.journal import Journal
from snaptree.hosts.reading import never
from snaptree.hosts.running import begin_run, run_plan
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.model.estate import Consistency, MemorySnapshot, SnapshotKind
from snaptree.plans.intention import Capture, Delete, Revert, Take, TakeBack
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import StateAfter
from tests.kit.machines import NOW, EmbeddedHost, run_tool, unchanged

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_a_snapshot_holds_what_was_there_when_it_was_taken(host: EmbeddedHost, capture: Capture, running: bool) -> None:
    machine = host.make_machine(running=running)
    machine.write(1)
    now = machine.contents()[NOW]
    machine.change(Take("first", description="before <b>all</b>", capture=capture))
    machine.write(2)

    contents = machine.contents()
    assert contents["first"] == now
    assert contents[NOW] != now
    snapshot = machine.tree()["first"]
    assert machine.tree().current == "first"
    assert snapshot.description == "before <b>all</b>"
    assert snapshot.annotations.taken_by
    assert snapshot.kind is (SnapshotKind.INTERNAL if capture is Capture.INTERNAL else SnapshotKind.EXTERNAL)
    with_memory = running and capture is not Capture.DISKS
    assert (snapshot.memory is not MemorySnapshot.NO) == with_memory
    assert snapshot.consistency is (
        Consistency.MEMORY if with_memory else Consistency.CRASH if running else Consistency.OFFLINE
    )
    impact = snapshot.annotations.impact
    assert impact is not None
    assert (impact.paused is not None) == running
    assert bool(impact.paused) == with_memory
    assert impact.wrote or (capture is Capture.INTERNAL and not running)
    machine.check_images()


@pytest.mark.parametrize("running", [True, False])
def test_deleting_a_layer_in_the_middle_keeps_every_other_snapshot(host: EmbeddedHost, running: bool) -> None:
    machine = host.make_machine(disks=("qcow2", "qcow2"))
    for number, name in enumerate(("one", "two", "three", "four")):
        machine.write(number, offset=number * 65536)
        machine.write(number + 100, target="vdb")
        machine.change(Take(name, capture=Capture.DISKS))
    machine.write(99)
    before = machine.contents()
    if not running:
        machine.handle.destroy()
    plan = machine.plan(Delete(("two", "three")))
    if plan.is_refused:
        assert not running, "libvirt 9.0 alone can't do this, and only while the machine is off"
        assert host.connection.host.libvirt_version < 9_009_000
        assert machine.contents() == before
        return
    operation = run_plan(host.connection, plan)
    assert operation.error is None
    assert unchanged(before, machine.contents(), "two", "three")
    assert list(machine.tree().snapshots) == ["one", "four"]
    assert machine.tree()["four"].parent == "one"
    assert machine.is_running == running
    machine.check_images()
    left = {path.name for path in machine.directory.iterdir()}
    assert (
        not {name for name in left if name.endswith((".two", ".three"))}
        - {path.name for path in machine.active_layers().values()}
        - {Path(disk.frozen or "").name for snapshot in machine.tree() for disk in snapshot.disks}
    ), "no file is orphaned"


def test_reverting_brings_back_the_content_and_undo_takes_it_back(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.INTERNAL))
    machine.write(2)
    before = machine.contents()

    operation = machine.change(Revert("good"))
    assert machine.contents()[NOW] == before["good"]
    safety = next(snapshot for snapshot in machine.tree() if snapshot.annotations.safety)
    assert machine.contents()[safety.name] == before[NOW]
    assert machine.is_running

    undo = operation.plan.undo
    assert undo is not None
    machine.change(TakeBack(undo))
    assert machine.contents() == before
    assert machine.tree().current == "good"
    machine.check_images()


def test_external_reverts_and_their_undo(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.write(1)
    machine.change(Take("good", capture=Capture.DISKS_AND_MEMORY))
    machine.write(2)
    machine.change(Take("later", capture=Capture.DISKS_AND_MEMORY))
    machine.write(3)
    before = machine.contents()
    operation = machine.change(Revert("good"))
    assert machine.contents()[NOW] == before["good"]
    assert machine.contents()["later"] == before["later"]
    assert machine.tree().current == "good"
    undo = operation.plan.undo
    assert undo is not None
    machine.change(TakeBack(undo))
    assert machine.contents() == before
    assert machine.tree().current == "later"


def test_the_state_after_a_revert_is_the_one_asked_for(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.change(Take("off", capture=Capture.INTERNAL))
    machine.change(Revert("off", take_safety_snapshot=False, state_after=StateAfter.PAUSED))
    assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    machine.change(Revert("off", take_safety_snapshot=False))
    assert not machine.is_running


@pytest.mark.parametrize("state", ["running", "paused", "off"])
@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.DISKS_AND_MEMORY, Capture.INTERNAL])
def test_undoing_a_take_leaves_the_machine_as_it_was(host: EmbeddedHost, capture: Capture, state: str) -> None:
    machine = host.make_machine(running=state != "off")
    machine.write(1)
    if state == "paused":
        machine.handle.suspend()
    before, state_before = machine.contents(), machine.handle.state()[0]
    operation = machine.change(Take("tried", capture=capture))
    undo = operation.plan.undo
    if state == "paused" and capture is Capture.DISKS_AND_MEMORY:
        assert undo is None, "QEMU lets go of the images of a machine that it saved while it was paused"
        assert "images-maybe-let-go" in {finding.rule for finding in machine.plan(Delete(("tried",))).warnings}
        # Seen to work with QEMU 11.1; nobody says since when.
        fails = host.connection.host.hypervisor_version < 11_000_000
        with pytest.raises(libvirt.libvirtError) if fails else nullcontext():
            machine.handle.snapshotLookupByName("tried").delete()
        assert unchanged(machine.contents(), before, "tried")
        return
    assert undo is not None
    machine.change(TakeBack(undo))
    assert machine.contents() == before
    assert machine.handle.state()[0] == state_before
    assert [path.name for path in machine.directory.iterdir()] == ["disk0.qcow2"], "the saved memory is gone too"


# What stops a plan before it does harm


def test_a_plan_stops_when_someone_took_a_snapshot_meanwhile(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("one", capture=Capture.DISKS))
    plans = [machine.plan(Take("two", capture=Capture.DISKS)), machine.plan(Delete(("one",)))]
    machine.virsh_take_disk_only("theirs")
    before = machine.contents()
    for plan in plans:
        operation = run_plan(host.connection, plan)
        assert operation.state is OperationState.FAILED
        assert operation.steps_done == 0
        assert "meanwhile" in str(operation.error)
        assert machine.contents() == before


def test_a_plan_stops_when_its_file_exists_by_now(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    plan = machine.plan(Take("one", capture=Capture.DISKS))
    precious = machine.directory / "disk0.one"
    precious.write_text("somebody's only copy")
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert str(precious) in str(operation.error)
    assert precious.read_text() == "somebody's only copy"
    assert len(machine.tree()) == 0


def test_a_missing_memory_file_is_found_while_the_machine_still_runs(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    machine.change(Take("two", capture=Capture.DISKS))
    plan = machine.plan(Revert("one", take_safety_snapshot=False))
    assert not plan.is_refused
    memory_file = machine.tree()["one"].memory_file
    assert memory_file is not None
    Path(memory_file).rename(memory_file + ".moved")
    operation = run_plan(host.connection, plan)
    assert memory_file in str(operation.error)
    assert machine.is_running
    assert machine.plan(Revert("one")).is_refused, "and planned again, it is refused at once"


def test_a_failure_after_the_first_step_says_what_stays_done(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for name in ("one", "two"):
        machine.change(Take(name, capture=Capture.INTERNAL))
    plan = machine.plan(Delete(("one", "two")))
    assert len(plan.steps) == 2
    first = plan.snapshots[0] if plan.steps[0].name == plan.snapshots[0] else plan.snapshots[1]  # type: ignore[union-attr]  # both are deletes
    other = ({"one", "two"} - {first}).pop()

    def meddle(operation: Operation) -> None:
        if operation.steps_done == 1 and len(machine.tree()) == 1:
            machine.handle.snapshotLookupByName(other).delete()

    operation = run_plan(host.connection, plan, on_progress=meddle)
    assert operation.state is OperationState.FAILED
    assert operation.steps_done == 1
    assert operation.error is not None
    assert first in operation.error.hint


def test_cancelled_between_steps(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for name in ("one", "two"):
        machine.change(Take(name, capture=Capture.INTERNAL))
    before = machine.contents()
    operation = run_plan(host.connection, machine.plan(Delete(("one", "two"))), cancelled=lambda: True)
    assert operation.state is OperationState.CANCELLED
    assert isinstance(operation.error, CancelledError)
    assert machine.contents() == before


def test_a_run_pauses_only_where_nothing_is_half_done(host: EmbeddedHost, tmp_path: Path) -> None:
    machine = host.make_machine()
    for seed, name in enumerate(("one", "two", "three", "four", "five")):
        machine.write(seed, offset=seed * 65536)
        machine.virsh_take_disk_only(name)
    before = machine.contents()
    journal = Journal(tmp_path / "journal.sqlite3")
    plan = machine.plan(Delete(("one", "three"), by_own_jobs=True))
    files = set(machine.directory.iterdir())
    run = begin_run(machine.connection, plan, journal=journal)
    assert run.until_paused(lambda: True) is None
    assert machine.contents() == before, "nothing has begun"

    assert run.until_paused(lambda: run.operation.steps_done > 0) is None, "as soon as one of the two is gone"
    assert 0 < run.operation.steps_done < len(plan.steps)
    (gone,) = set(before) - set(machine.contents())
    assert unchanged(before, machine.contents(), gone), "and libvirt knows what is left"
    assert len(files) - len(set(machine.directory.iterdir())) == 1
    operation = run.until_paused(never)
    assert operation is not None
    assert operation.state is OperationState.DONE
    assert unchanged(before, machine.contents(), "one", "three")

    # Cancelled between the two, nothing is left to be finished.
    plan = machine.plan(Delete(("two", "five"), by_own_jobs=True))
    is_cancelled = False
    run = begin_run(machine.connection, plan, journal=journal, cancelled=lambda: is_cancelled)
    assert run.until_paused(lambda: run.operation.steps_done > 0) is None
    is_cancelled = True
    cancelled = run.until_paused(never)
    assert cancelled is not None
    assert cancelled.state is OperationState.CANCELLED
    assert not journal.unfinished()
    journal.close()


def test_a_refused_plan_is_never_run(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("one", capture=Capture.DISKS))
    plan = machine.plan(Take("one", capture=Capture.DISKS))
    assert plan.is_refused
    with pytest.raises(SnapTreeError):
        run_plan(host.connection, plan)


def test_the_journal_has_every_run(host: EmbeddedHost, tmp_path: Path) -> None:
    machine = host.make_machine()
    journal = Journal(tmp_path / "journal.sqlite3")
    told: list[Operation] = []
    plan = machine.plan(Take("one", capture=Capture.DISKS))
    operation = run_plan(host.connection, plan, journal=journal, on_progress=told.append)
    (recorded,) = journal.recent()
    assert recorded == operation
    assert told[0].state is OperationState.RUNNING
    assert told[0].progress is not None
    assert "one" in told[0].progress.doing
    assert told[-1] == operation
    journal.close()


def test_a_merge_tells_how_far_it_is(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    machine.change(Take("one", capture=Capture.DISKS))
    machine.write(1, length=4 * 2**20)
    machine.change(Take("two", capture=Capture.DISKS))
    machine.handle.suspend()
    told: list[Operation] = []
    operation = run_plan(host.connection, machine.plan(Delete(("one",))), on_progress=told.append)
    assert operation.error is None
    assert all(one.progress is None or one.progress.steps == 1 for one in told)
    assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED, "a paused machine stays paused"


def test_another_machine_on_the_same_base_keeps_its_content(host: EmbeddedHost) -> None:
    template = host.make_machine(running=False)
    template.write(1)
    base = template.active_layers()["vda"]
    clone = host.make_machine(backing=base, running=False)
    clone.write(2, offset=65536)
    template.handle.create()
    template.change(Take("frozen", capture=Capture.DISKS))
    template.write(3)
    before = clone.contents()
    of_template = template.contents()
    operation = template.change(Delete(("frozen",)))
    (stays,) = [finding.reason for finding in operation.plan.warnings if finding.rule == "layer-stays"]
    assert clone.name in stays
    assert clone.contents() == before
    assert unchanged(of_template, template.contents(), "frozen")
    assert base.exists()
    info = json.loads(run_tool("qemu-img", "info", "-U", "--output=json", str(clone.active_layers()["vda"])))
    assert info["full-backing-filename"] == str(base)


def test_a_running_machine_keeps_running_through_take_and_delete(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for capture in (Capture.DISKS, Capture.DISKS_AND_MEMORY):
        machine.change(Take("it", capture=capture))
        assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        machine.change(Delete(("it",)))
        assert machine.handle.state()[0] == libvirt.VIR_DOMAIN_RUNNING
