"""What libvirt accepts and loses data on, SnapTree refuses: each case made on real libvirt, as it happens to users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Capture, Delete, Intention, Revert, Take
from snaptree.plans.plan import DeleteSnapshot, TakeSnapshot
from snaptree.plans.planner import make_plan
from tests.kit.machines import NOW, EmbeddedHost, Machine, RealHost, run_tool, unchanged

pytestmark = pytest.mark.qemu

REDEFINE = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
CURRENT = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
METADATA_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
SECURE = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE


def assert_refused(machine: Machine, intention: Intention, *rules: str) -> None:
    """The plan is refused, by one of these rules at least, and says why and what to do."""
    plan = machine.plan(intention)
    spoke = {finding.rule for finding in plan.refusals}
    assert spoke & set(rules), f"{intention}: {spoke or 'not refused'}"
    assert not plan.steps
    for finding in plan.refusals:
        assert finding.reason
        assert finding.remedy


def assert_merged_by_ourselves(machine: Machine, *names: str) -> None:
    """libvirt's own delete, which would lose something, is avoided; by our way all that stays keeps its content."""
    before = machine.contents()
    operation = machine.change(Delete(names))
    assert not any(isinstance(step, DeleteSnapshot) for step in operation.plan.steps)
    assert unchanged(before, machine.contents(), *names)
    machine.check_images()


def chain(host: RealHost, *names: str, running: bool = True, disks: Sequence[str] = ("qcow2",)) -> Machine:
    """A machine with external snapshots; what is written overlaps."""
    machine = host.make_machine(running=running, disks=disks)
    for number, name in enumerate(names):
        machine.write(number)
        machine.virsh_take_disk_only(name)
    machine.write(99)
    return machine


def assert_mended_by_a_safety_snapshot(machine: Machine, name: str) -> None:
    """Taking one first owns the layers in use, so that libvirt may revert: every snapshot keeps its content."""
    before = machine.contents()
    operation = machine.change(Revert(name))
    after = machine.contents()
    assert after[NOW] == before[name]
    safety = operation.plan.steps[0]
    assert isinstance(safety, TakeSnapshot)
    assert after[safety.name] == before[NOW]
    assert {name: after[name] for name in before if name != NOW} == {
        name: content for name, content in before.items() if name != NOW
    }
    machine.check_images()


def assert_refused_if_libvirt_reverts(machine: Machine, name: str, *rules: str) -> None:
    """Without a safety snapshot. Before 9.9 SnapTree reverts by steps of its own, which do no such harm."""
    intention = Revert(name, take_safety_snapshot=False)
    if machine.connection.host.external_snapshots:
        assert_refused(machine, intention, *rules)
    else:
        assert not machine.plan(intention).is_refused


def forget_current(machine: Machine) -> None:
    """Define all snapshots anew without CURRENT, as a restore of their XML files does."""
    names = list(machine.tree().snapshots)
    texts = [machine.handle.snapshotLookupByName(name).getXMLDesc(SECURE) for name in names]
    for name in reversed(names):
        machine.handle.snapshotLookupByName(name).delete(METADATA_ONLY)
    for text in texts:
        machine.handle.snapshotCreateXML(text, REDEFINE)
    assert machine.tree().current is None


def test_external_snapshots_without_a_current_one(host: EmbeddedHost) -> None:
    """Libvirt 11.3: its daemon crashes on revert and delete, or unlinks the image under the active layer."""
    machine = chain(host, "one", "two")
    forget_current(machine)
    assert_refused_if_libvirt_reverts(machine, "one", "revert-without-current")
    assert_mended_by_a_safety_snapshot(machine, "one")


@pytest.mark.parametrize("names", [("one",), ("two",), ("one", "two")])
def test_deleting_external_snapshots_without_a_current_one(host: EmbeddedHost, names: tuple[str, ...]) -> None:
    """Libvirt 11.3: its daemon crashes, or it unlinks the image under the active layer."""
    machine = chain(host, "one", "two")
    forget_current(machine)
    assert_merged_by_ourselves(machine, *names)


def test_an_internal_snapshot_inside_the_layer_that_would_go(host: EmbeddedHost) -> None:
    """Libvirt merges and unlinks the overlay, and the internal snapshot in it is lost, still listed."""
    machine = chain(host, "external")
    machine.virsh_take("internal")
    assert_refused(machine, Delete(("external",)), "merge-stuck")
    machine.virsh_take_disk_only("another")
    machine.write(5)
    assert_merged_by_ourselves(machine, "another")


def test_a_layer_that_was_merged_by_hand(host: EmbeddedHost) -> None:
    """Libvirt reverts to a stale snapshot without a word, to the wrong content."""
    machine = chain(host, "one", "two", "three")
    layers = [Path(disk.frozen or "") for snapshot in machine.tree() for disk in snapshot.disks]
    domain = machine.handle
    domain.blockCommit("vda", str(layers[0]), str(layers[1]), 0, 0)
    wait_for_block_job(machine)
    for name in ("one", "two"):
        assert_refused(machine, Revert(name), "content-changed")
    domain.destroy()
    before = machine.contents()
    operation = machine.change(Delete(("two",)))
    assert unchanged(before, machine.contents(), "two")
    assert "last-trace" in {warning.rule for warning in operation.plan.warnings}
    assert machine.tree()["one"].annotations.doubtful, "nothing else tells of it any more"
    assert not machine.tree()["three"].annotations.doubtful
    assert "doubtful" in machine.spoken(Revert("one"))
    assert "last-good-goes" in {warning.rule for warning in machine.plan(Delete(("three",))).warnings}


def wait_for_block_job(machine: Machine) -> None:
    """Until QEMU is done with the job on the first disk."""
    while machine.handle.blockJobInfo("vda"):
        pass


def test_going_back_inside_an_image_that_others_stand_on(host: EmbeddedHost) -> None:
    """Libvirt overwrites the image: the external snapshot on it gets other content."""
    machine = host.make_machine()
    machine.virsh_take("internal")
    machine.write(1)
    machine.virsh_take_disk_only("external")
    assert_refused(machine, Revert("internal"), "written-image-has-overlays", "written-image-holds-snapshot")


def test_a_managed_save(host: EmbeddedHost) -> None:
    """The saved machine comes back and writes to the old disk."""
    machine = chain(host, "one")
    machine.handle.managedSave()
    for intention in (Take("two", capture=Capture.DISKS), Revert("one"), Delete(("one",))):
        assert_refused(machine, intention, "managed-save")


def with_wrong_current(host: RealHost) -> Machine:
    """The first of three snapshots is current, by somebody's hand."""
    machine = chain(host, "one", "two", "three")
    text = machine.handle.snapshotLookupByName("one").getXMLDesc(SECURE)
    machine.handle.snapshotCreateXML(text, REDEFINE | CURRENT)
    assert machine.tree().current == "one"
    return machine


def test_a_current_snapshot_that_does_not_own_the_disks(host: EmbeddedHost) -> None:
    """Libvirt takes the layers in use for a leaf that nobody needs, and unlinks them."""
    assert_merged_by_ourselves(with_wrong_current(host), "three")
    machine = with_wrong_current(host)
    assert_refused_if_libvirt_reverts(machine, "two", "current-does-not-own-disks")
    assert_mended_by_a_safety_snapshot(machine, "two")


def test_a_block_job_of_somebody_else(host: EmbeddedHost) -> None:
    machine = chain(host, "one")
    copy = machine.directory / "copy.qcow2"
    machine.handle.blockCopy(
        "vda",
        f"<disk type='file'><source file='{copy}'/><driver type='qcow2'/></disk>",
        {},
        libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
    )
    for intention in (Take("two", capture=Capture.DISKS), Delete(("one",)), Revert("one")):
        assert_refused(machine, intention, "block-job-running")
    machine.handle.blockJobAbort("vda")


def test_an_internal_snapshot_named_like_the_number_of_another(host: EmbeddedHost) -> None:
    """QEMU looks for the number first: the revert brings back the other one's content."""
    machine = host.make_machine(running=False)
    machine.virsh_take("first")
    machine.write(1)
    machine.virsh_take("1")
    assert_refused(machine, Revert("1"), "named-like-an-id")
    assert not machine.plan(Revert("first")).is_refused
    first = machine.contents()["first"]
    machine.change(Delete(("1",)))
    assert machine.contents()["first"] == first, "deleting goes by the name"


def test_a_layer_that_is_gone(host: EmbeddedHost) -> None:
    """Libvirt stops the machine first, and then finds that it can't revert."""
    machine = chain(host, "one", "two")
    frozen = Path(machine.tree()["one"].disks[0].frozen or "")
    frozen.rename(frozen.with_suffix(".away"))
    assert_refused(machine, Revert("one"), "layer-missing")
    assert machine.is_running


def test_an_internal_snapshot_that_the_image_does_not_hold(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.virsh_take("gone")
    run_tool("qemu-img", "snapshot", "-d", "gone", str(machine.active_layers()["vda"]))
    assert_refused(machine, Revert("gone"), "not-in-image")


def test_checkpoints_and_a_running_internal_revert(host: EmbeddedHost) -> None:
    """QEMU refuses to load it and the machine is gone."""
    machine = host.make_machine()
    machine.virsh_take("good")
    machine.handle.checkpointCreateXML("<domaincheckpoint><name>backup</name></domaincheckpoint>")
    assert_refused(machine, Revert("good"), "checkpoints-break", "bitmaps-block-revert")


def test_forks(host: EmbeddedHost) -> None:
    """Libvirt 11.3 refuses to delete what two stand on, 9.0 does not check it."""
    machine = host.make_machine()
    for name in ("root", "left", "leaf"):
        machine.change(Take(name, capture=Capture.DISKS_AND_MEMORY))
    machine.change(Revert("root", take_safety_snapshot=False))
    machine.change(Take("right", capture=Capture.DISKS_AND_MEMORY))
    assert_merged_by_ourselves(machine, "left")
    before = machine.contents()
    machine.change(Delete(("leaf",)))
    machine.change(Delete(("root",)))
    assert unchanged(before, machine.contents(), "leaf", "root")


def test_a_branch_whose_layers_libvirt_has_to_look_up(host: EmbeddedHost) -> None:
    """Libvirt 11.3: deleting below a branch that was taken while the machine was off crashes its daemon."""
    machine = host.make_machine(running=False)
    for name in ("s1", "s2", "s3"):
        machine.change(Take(name, capture=Capture.DISKS))
    machine.change(Revert("s2", take_safety_snapshot=False))
    machine.change(Take("s4", capture=Capture.DISKS))
    assert_merged_by_ourselves(machine, "s1")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "two\nlines", "x" * 248, "<b>x</b>", "12", "-rf", "ü", " "])
def test_names_that_break_something_are_refused_with_another_to_take(host: EmbeddedHost, name: str) -> None:
    machine = host.make_machine()
    assert_refused(machine, Take(name, capture=Capture.INTERNAL), "name-not-allowed", "file-name-too-long")
    assert len(machine.tree()) == 0


def test_a_name_or_file_that_exists(host: EmbeddedHost) -> None:
    machine = chain(host, "one")
    assert_refused(machine, Take("one", capture=Capture.DISKS), "name-taken")
    (machine.directory / "disk0.two").write_text("precious")
    assert_refused(machine, Take("two", capture=Capture.DISKS), "file-exists")


def test_a_read_only_connection_reads_and_changes_nothing(host: EmbeddedHost) -> None:
    machine = chain(host, "one")
    connection = Connection(host.uri, read_only=True)
    connection.open()
    try:
        for intention in (Take("two"), Delete(("one",)), Revert("one")):
            plan = make_plan(intention, read_situation(connection, machine.uuid))
            assert "read-only-connection" in {finding.rule for finding in plan.refusals}
    finally:
        connection.close()


def test_chains_that_libvirt_can_no_longer_read(host: EmbeddedHost) -> None:
    """Libvirt 11.3 starts no machine with more than 25 layers, and stops it before it finds out."""
    if not 10_008_000 <= host.connection.host.libvirt_version < 12_000_000:
        pytest.skip("only libvirt between 10.8 and 12.0 reads QEMU's answers 32 levels deep and no further")
    machine = chain(host, *(f"s{number}" for number in range(24)))
    assert len(machine.plan(Take("x", capture=Capture.DISKS)).refusals) > 0
    machine.handle.destroy()
    machine.handle.create()
    for number in range(24, 30):
        machine.virsh_take_disk_only(f"s{number}")
    before = machine.contents()
    assert_refused(machine, Take("x", capture=Capture.DISKS), "too-deep-to-start-again")
    assert "too-deep-to-merge" in machine.spoken(Delete(("s10",)))
    assert_merged_by_ourselves(machine, "s10")
    before = machine.contents()
    assert_refused(machine, Revert("s28"), "too-deep-to-go-back", "too-deep-to-leave")
    assert_refused(machine, Revert("s2", take_safety_snapshot=False), "too-deep-to-leave")
    assert machine.contents() == before
    assert machine.is_running
    machine.handle.destroy()
    with pytest.raises(libvirt.libvirtError, match="nesting too deep"):
        machine.handle.create()
    assert_refused(machine, Delete(("s28",)), "merge-too-deep", "merge-stuck")
